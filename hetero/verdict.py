"""Pass, fail or inconclusive, with declared error rates, from paired outcomes.

A file is *not inferior* if it loses less than a margin against the reference (H0: loss >= margin).
Each query is its own control: +1 if only the reference found the right picture, -1 if only the
file did, 0 otherwise. Queries of a class resemble each other, so classes are resampled.

The bounds are those of Gaffke: weights of the classes are drawn from a flat Dirichlet distribution
(the Bayesian bootstrap of classes), with one pretended class more that lost everything (for the
upper bound) or gained everything (for the lower); the bound is a quantile of the weighted mean.
Why not a bootstrap or a t interval: with few classes or few flips both are too sure of themselves.
At a true loss of exactly the margin they pass far more often than they say, and with no flip seen
their width is zero. Here no flip in C classes gives 1 - alpha ** (1 / C), which is the bound of
Clopper and Pearson (about 3 / C at 5 %), and with many classes the bound comes down to the usual
one. `python -m benchmarks.verdict` measures all of them side by side.

Paper: N. Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a
nonnegative variable", Mathematical Methods of Statistics 14(4), 2005; E. Learned-Miller and
P. S. Thomas, "A new confidence interval for the mean of a bounded random variable", 2019,
arXiv:1905.06208. D. Rubin, "The Bayesian bootstrap", Annals of Statistics 9(1), 1981.
Differs: the mean is over queries while classes are drawn, so it is a ratio of two weighted sums;
the pretended class has the size of the class that a random query is in. That the bound holds for
every distribution is proven for outcomes of two values and conjectured otherwise; simulated here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from hetero.errors import DataError

#: Dirichlet draws behind a bound; its level is then exact to about 0.2 points in 5.
DRAWS = 10_000

#: Draws while planning, and how many times more data is still worth proposing.
PLAN_DRAWS, PLAN_LIMIT = 2000, 1000.0

#: The part of alpha and of beta that a sequence may use, see `hetero.sequential`; the rest is for
#: the fixed test after it.
SPENT = 0.5

#: Numbers held at one time while drawing.
_BLOCK = 2**21

Design = Literal["classes", "sequence", "after_sequence"]
Decided = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Evidence:
    """Paired outcomes by class: as little of them as a verdict needs, and how they were come by.

    Attributes:
        design: "classes": all queries, planned beforehand; a row is (sum of the paired losses,
            queries, how many classes are like this). "sequence": classes in random order, stopped
            by what was seen; a row is one class (sum over the queries asked, queries asked, queries
            it has). "after_sequence": as "classes", after a sequence had not come to a decision.
        rows: See above.
        largest: Queries of the largest class there is.
    """

    design: Design
    rows: tuple[tuple[float, int, int], ...]
    largest: int

    def __post_init__(self) -> None:
        if self.design not in ("classes", "sequence", "after_sequence"):
            raise DataError(f"evidence of an unknown design {self.design!r}")
        for row in self.rows:
            lost, queries, last = row
            sound = math.isfinite(lost) and queries >= 1 and last >= 1 and abs(lost) <= queries
            size = last if self.design == "sequence" else queries
            if not (sound and queries <= size <= self.largest):
                raise DataError(
                    f"evidence: row {row} is none: a loss lies in -1..1 for each query, and no "
                    f"class has more than {self.largest}"
                )
        if not self.rows:
            raise DataError("evidence: no class in it")

    @property
    def classes(self) -> int:
        """How many classes were looked at."""
        return len(self.rows) if self.design == "sequence" else sum(k for _, _, k in self.rows)

    @property
    def queries(self) -> int:
        """How many queries were asked."""
        return sum(n * (1 if self.design == "sequence" else k) for _, n, k in self.rows)

    @property
    def estimate(self) -> float:
        """The mean paired loss over queries, in -1..1; by size of class where a part was asked."""
        if self.design == "sequence":
            return sum(s / n * size for s, n, size in self.rows) / sum(x for _, _, x in self.rows)
        return sum(s * k for s, _, k in self.rows) / self.queries

    def to_json(self) -> dict[str, Any]:
        """As in `report.json`."""
        return {
            "design": self.design,
            "largest": self.largest,
            "rows": [[float(s), int(n), int(k)] for s, n, k in self.rows],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Evidence:
        """What `to_json` wrote."""
        rows = tuple((float(s), int(n), int(k)) for s, n, k in value["rows"])
        return cls(value["design"], rows, int(value["largest"]))


@dataclass(frozen=True)
class Decision:
    """What evidence says about a margin.

    Attributes:
        outcome: "pass" if the upper bound is below the margin, "fail" if the lower is above it.
        low: One-sided lower bound of the loss, at 1 - beta.
        high: One-sided upper bound, at 1 - alpha.
        more_queries, more_classes: How many more of the same kind would decide, if what was seen
            so far is typical; None where it is decided, or where no amount in reach would.
    """

    outcome: Decided
    low: float
    high: float
    more_queries: int | None = None
    more_classes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As in `report.json`; the outcome stands beside it."""
        return {
            "low": self.low,
            "high": self.high,
            "more_queries": self.more_queries,
            "more_classes": self.more_classes,
        }


def paired(
    losses: Float64[np.ndarray, " q"], labels: Sequence[str], design: Design = "classes"
) -> Evidence:
    """The evidence of a whole test set.

    Args:
        losses: Reference minus candidate for each query, in -1..1.
        labels: The class of each query.
        design: "classes" or "after_sequence".
    """
    if len(losses) != len(labels) or not len(losses):
        raise DataError(f"evidence: {len(losses)} outcomes of {len(labels)} queries")
    _, code = np.unique(np.asarray(labels), return_inverse=True)
    sums, counts = np.bincount(code, weights=losses), np.bincount(code)
    alike = Counter(zip(sums.tolist(), counts.tolist(), strict=True))
    rows = tuple((s, n, k) for (s, n), k in sorted(alike.items()))
    return Evidence(design, rows, int(counts.max()))


def bound(
    rows: Sequence[tuple[float, int, float]],
    level: float,
    side: Literal["low", "high"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """The one-sided bound of the mean loss over queries, in -1..1.

    Args:
        rows: (sum of the losses, queries, how many classes are like this), as in `Evidence`.
        level: Probability, in 0..0.5, that the bound is on the wrong side of the truth.
        side: Which bound.
        draws: Of the weights.
        seed: Of the draws; equal input gives equal bounds.
    """
    sign = 1.0 if side == "high" else -1.0
    sums, sizes, alike = (np.asarray(x, dtype=np.float64) for x in zip(*rows, strict=True))
    queries = float(sizes @ alike)
    # The class of the query one happens to meet: large classes are met more often.
    size = float(sizes**2 @ alike) / queries
    sums, sizes = np.append(sign * sums, size), np.append(sizes, size)
    # Classes that are alike share one weight: a sum of k exponentials is a gamma of shape k.
    shapes = np.append(alike, 1.0)
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // len(shapes))
    means = []
    for begin in range(0, draws, step):
        weights = rng.standard_gamma(shapes, (min(step, draws - begin), len(shapes)))
        means.append((weights @ sums) / (weights @ sizes))
    return sign * float(np.quantile(np.concatenate(means), 1 - level, method="higher"))


def decide(evidence: Evidence, margin: float, alpha: float, beta: float) -> Decision:
    """Pass, fail or inconclusive on "the mean paired loss is below the margin".

    Args:
        evidence: Paired outcomes by class.
        margin: The loss that is too much, in -1..1.
        alpha: At most this often passes what loses the margin or more.
        beta: At most this often fails what loses the margin or less.
    """
    if evidence.design == "sequence":
        from hetero import sequential

        return sequential.decide(evidence, margin, alpha, beta)
    if evidence.design == "after_sequence":
        alpha, beta = (1 - SPENT) * alpha, (1 - SPENT) * beta
    rows = evidence.rows
    low, high = bound(rows, beta, "low"), bound(rows, alpha, "high")
    if high < margin:
        return Decision("pass", low, high)
    if low > margin:
        return Decision("fail", low, high)
    factor = _factor(evidence, margin, alpha, beta)
    if factor is None:
        return Decision("inconclusive", low, high)
    more = (math.ceil((factor - 1) * n) for n in (evidence.queries, evidence.classes))
    return Decision("inconclusive", low, high, *more)


def _factor(evidence: Evidence, margin: float, alpha: float, beta: float) -> float | None:
    """How many times the classes seen so far would decide, or None if not even PLAN_LIMIT times."""
    passes = evidence.estimate < margin
    level, side = (alpha, "high") if passes else (beta, "low")

    def decided(factor: float) -> bool:
        rows = [(s, n, k * factor) for s, n, k in evidence.rows]
        found = bound(rows, level, side, draws=PLAN_DRAWS)  # type: ignore[arg-type]
        return found < margin if passes else found > margin

    if evidence.estimate == margin or not decided(PLAN_LIMIT):
        return None
    low, high = 1.0, PLAN_LIMIT
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
