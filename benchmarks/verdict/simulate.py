"""Does the verdict err as rarely as it says? Simulated trials with the truth known.

A trial draws classes from a population, sizes as in the emoji test split, and paired outcomes that
are alike within a class: a class loses a query with a probability of its own (beta-binomial) and
gains one with another. The mean loss over queries of the population is exactly what is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, t

from hetero import sequential
from hetero.verdict import SPENT, bound

#: Sizes of classes in the emoji test split: queries of a class, and how many classes have them.
SIZES, CLASSES_OF_SIZE = np.asarray([5, 6, 7, 8, 9]), np.asarray([102, 1, 5, 131, 181])
ALPHA = BETA = 0.05
DRAWS = 2000


@dataclass(frozen=True)
class Truth:
    """A population: share of queries lost and gained, and how alike a class's queries are.

    Attributes:
        name: For the tables.
        gained: Probability that a query is gained.
        alike: Intra-class correlation of losses, 0..1; 1 is classes lost whole.
        least_size: Only classes of this size or more lose anything.
    """

    name: str
    gained: float
    alike: float
    least_size: int = 0


TRUTHS = (
    Truth("losses scattered", 0.0, 0.02),
    Truth("losses in a few classes", 0.0, 0.3),
    Truth("classes lost whole", 0.0, 1.0),
    Truth("losses and gains, as int8", 0.01, 0.05),
    Truth("only large classes lose", 0.0, 0.3, 8),
)


def draw(
    truth: Truth, net: float, trials: int, classes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, outcomes -1, 0, 1 and which places are taken, each (trials, classes, 9)."""
    sizes = rng.choice(SIZES, (trials, classes), p=CLASSES_OF_SIZE / CLASSES_OF_SIZE.sum())
    there = np.arange(SIZES.max()) < sizes[..., None]
    share = (SIZES * CLASSES_OF_SIZE)[truth.least_size <= SIZES].sum()
    lost = (net + truth.gained) / (share / (SIZES @ CLASSES_OF_SIZE))
    if truth.alike == 1 or lost == 0:
        chance = (rng.random(sizes.shape) < lost).astype(np.float64)
    else:
        total = 1 / truth.alike - 1
        chance = rng.beta(lost * total, (1 - lost) * total, sizes.shape)
    chance = np.where(sizes >= truth.least_size, chance, 0.0)[..., None]
    dice = rng.random(there.shape)
    # A query is lost, or gained, never both.
    gained = (dice >= chance) & (dice < chance + truth.gained)
    return sizes, np.where(there, (dice < chance) * 1.0 - gained, 0.0), there


def rows_of(sums: np.ndarray, sizes: np.ndarray) -> list[tuple[float, int, float]]:
    """One trial's classes as rows of evidence, classes that are alike together."""
    key, count = np.unique(np.stack([sums, sizes], 1), axis=0, return_counts=True)
    return [(float(s), int(n), float(k)) for (s, n), k in zip(key, count, strict=True)]


def _by_class(sums: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> float:
    rows = np.asarray(rows_of(sums, sizes))
    drawn = rng.multinomial(len(sums), rows[:, 2] / len(sums), 1000)
    return float(np.quantile((drawn @ rows[:, 0]) / (drawn @ rows[:, 1]), 1 - ALPHA))


def _by_query(outcomes: np.ndarray, rng: np.random.Generator) -> float:
    values, count = np.unique(outcomes, return_counts=True)
    drawn = rng.multinomial(len(outcomes), count / len(outcomes), 1000)
    return float(np.quantile(drawn @ values / len(outcomes), 1 - ALPHA))


def _t(sums: np.ndarray, sizes: np.ndarray) -> float:
    value, count = sums.sum() / sizes.sum(), len(sums)
    spread = np.sqrt(count / (count - 1) * ((sums - value * sizes) ** 2).sum()) / sizes.sum()
    return float(value + t.ppf(1 - ALPHA, count - 1) * spread)


def rate(events: int, trials: int) -> dict[str, Any]:
    """A share with its Clopper-Pearson interval, 95 %."""
    found = binomtest(int(events), trials).proportion_ci(0.95, "exact")
    return {"rate": events / trials, "ci": [float(found.low), float(found.high)]}


def fixed(
    truth: Truth, net: float, margin: float, classes: int, trials: int, seed: int, others: bool
) -> dict[str, Any]:
    """How often the fixed test passes and fails, and how often the usual bounds would pass."""
    rng = np.random.default_rng(seed)
    passes = dict.fromkeys(("hetero", "bootstrap of queries", "bootstrap of classes", "t"), 0)
    failed = 0
    sizes, outcomes, there = draw(truth, net, trials, classes, rng)
    for trial in range(trials):
        sums, size = outcomes[trial].sum(-1), sizes[trial]
        rows, draws = rows_of(sums, size), int(rng.integers(2**31))
        passes["hetero"] += bound(rows, ALPHA, "high", draws=DRAWS, seed=draws) < margin
        failed += bound(rows, BETA, "low", draws=DRAWS, seed=draws) > margin
        if others:
            single = outcomes[trial][there[trial]]
            passes["bootstrap of queries"] += _by_query(single, rng) < margin
            passes["bootstrap of classes"] += _by_class(sums, size, rng) < margin
            passes["t"] += _t(sums, size) < margin
    kept = passes if others else {"hetero": passes["hetero"]}
    return {
        "truth": truth.name,
        "loss": net,
        "margin": margin,
        "classes": classes,
        "trials": trials,
        "seed": seed,
        "pass": {name: rate(int(n), trials) for name, n in kept.items()},
        "fail": rate(int(failed), trials),
    }


def play(
    outcomes: np.ndarray, there: np.ndarray, margin: float, rng: np.random.Generator
) -> tuple[str, int, bool]:
    """Outcome, queries asked and whether it stopped early, of one trial of the sequential form.

    Looked at after every class, which is more often than `hetero check` looks.
    """
    count, largest = len(outcomes), int(SIZES.max())
    dice = np.where(there, rng.random(there.shape), 2.0)
    order = np.argsort(dice, -1)
    mixed = np.take_along_axis(outcomes, order, -1)
    size = there.sum(-1)
    logs, asked, changed = np.zeros((2, len(sequential.FRACTIONS))), 0, False
    need = (-np.log(SPENT * ALPHA), -np.log(SPENT * BETA))
    for begin in range(0, count, sequential.CLASSES_AT_ONCE):
        block = slice(begin, begin + sequential.CLASSES_AT_ONCE)
        k = np.minimum(sequential.queries_of_each(changed), size[block])
        some = np.where(np.arange(mixed.shape[1]) < k[:, None], mixed[block], 0.0)
        hit = []
        for row, side in enumerate(("below", "above")):
            steps = sequential.log_factors(some.sum(-1) / k, size[block] / largest, margin, side)  # type: ignore[arg-type]
            path = logs[row] + steps.cumsum(0)
            at = np.flatnonzero(sequential.log_capital(path) >= need[row])
            hit.append(int(at[0]) if len(at) else count)
            logs[row] = path[-1]
        if min(hit) < count:
            return (
                "pass" if hit[0] <= hit[1] else "fail",
                asked + int(k[: min(hit) + 1].sum()),
                True,
            )
        asked, changed = asked + int(k.sum()), changed or bool(np.any(some != 0))
    rows, everything = rows_of(outcomes.sum(-1), size), int(size.sum())
    left = 1 - SPENT
    seed = int(rng.integers(2**31))
    if bound(rows, left * ALPHA, "high", draws=DRAWS, seed=seed) < margin:
        return "pass", everything, False
    if bound(rows, left * BETA, "low", draws=DRAWS, seed=seed) > margin:
        return "fail", everything, False
    return "inconclusive", everything, False


def stopped(
    truth: Truth, net: float, margin: float, classes: int, trials: int, seed: int
) -> dict[str, Any]:
    """How often the sequential form passes and fails, and what it asks."""
    rng = np.random.default_rng(seed)
    sizes, outcomes, there = draw(truth, net, trials, classes, rng)
    played = [play(outcomes[i], there[i], margin, rng) for i in range(trials)]
    asked, whole = np.asarray([x[1] for x in played]), sizes.sum(-1)
    return {
        "truth": truth.name,
        "loss": net,
        "margin": margin,
        "classes": classes,
        "trials": trials,
        "seed": seed,
        "pass": rate(sum(x[0] == "pass" for x in played), trials),
        "fail": rate(sum(x[0] == "fail" for x in played), trials),
        "stopped_early": rate(sum(x[2] for x in played), trials),
        "queries_mean": float(asked.mean()),
        "queries_quantiles": [float(x) for x in np.quantile(asked, (0.1, 0.5, 0.9))],
        "queries_fixed": float(whole.mean()),
        "times_fewer": float(whole.mean() / asked.mean()),
    }


#: Classes and a margin that so many can resolve, and small ones with a margin that they cannot.
CELLS = ((20, 0.2), (20, 0.02), (60, 0.08), (60, 0.02), (420, 0.02))

NONE = Truth("no answer changes", 0.0, 0.0001)
INT8 = Truth("losses and gains, as int8", 0.01, 0.05)
SPREAD = Truth("losses in a few classes", 0.0, 0.3)


def run(trials: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything, as plain numbers."""
    at_margin, clear, stopping = [], [], []
    seed = 0
    for classes, margin in CELLS:
        for truth in TRUTHS:
            seed += 1
            at_margin.append(fixed(truth, margin, margin, classes, trials, seed, others=True))
            say(f"{classes} classes, margin {margin:g}, {truth.name}: {at_margin[-1]['pass']}")
        for truth, net in ((NONE, 0.0), (INT8, 0.0), (SPREAD, 3 * margin)):
            seed += 1
            clear.append(fixed(truth, net, margin, classes, trials, seed, others=False))
    for truth in TRUTHS:
        seed += 1
        stopping.append(stopped(truth, 0.02, 0.02, 420, trials, seed))
        say(f"stopping, at the margin, {truth.name}: {stopping[-1]['pass']}")
    for truth, net in (
        (NONE, 0.0),
        (INT8, 0.0),
        (SPREAD, 0.06),
        (SPREAD, 0.1),
        (SPREAD, 0.3),
    ):
        seed += 1
        stopping.append(stopped(truth, net, 0.02, 420, trials, seed))
        say(f"stopping, loss {net:g}, {truth.name}: {stopping[-1]['times_fewer']:.1f} times fewer")
    return {
        "alpha": ALPHA,
        "beta": BETA,
        "at_margin": at_margin,
        "clear": clear,
        "sequential": stopping,
    }
