"""Evolution under a budget: the most reward for the least cost, every candidate kept.

Papers: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, by Optuna;
    Guo et al., "Single Path One-Shot NAS", ECCV 2020, arXiv:1904.00420, evolution with inherited
    weights.
Differs: reward and cost are two objectives, so that the whole front is found and not one point.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hetero._files import make_folder, write_json
from hetero.errors import ConfigError, require
from hetero.nas.rewards import Rewards, Which
from hetero.nas.space import Architecture, SearchSpace
from hetero.progress import Reporter

#: Times as many architectures are asked for as are scored: in a small space most are known.
ASKED = 20
#: Contenders differ in at least this share of their choices.
APART = 0.25
JOURNAL = "search.journal"
FOUND = "found.json"


@dataclass(frozen=True)
class Budget:
    """What a query model may cost.

    Attributes:
        cost: See `hetero.nas.costs`.
        most: In the cost's unit.
        least: The same; below it, cheaper is not better. A search that is after the best model
            within a budget would else spend most of its looks on the cheapest ones.
    """

    cost: str
    most: float
    least: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a budget that nothing fits."""
        if not (self.most > 0 and 0 <= self.least <= self.most):
            raise ConfigError(
                f"budget: {self.cost} above 0 and at least 0 to {self.most}, got {self.most} and "
                f"{self.least}"
            )


def spoken(amount: float) -> str:
    """A cost as people write it, and as `--max-macs` takes it: "825.7k", "1.09M", "0.0612"."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= factor:
            return f"{amount / factor:.4g}{letter}"
    return f"{amount:.4g}"


@dataclass(frozen=True)
class Candidate:
    """An architecture that was looked at.

    Attributes:
        backbone: Its name.
        architecture: Its place in the space.
        cost: In the budget's unit.
        r1, r2: See `hetero.nas.rewards`; 0 for one above the budget, which is not scored.
        fits: Whether it is within the budget.
    """

    backbone: str
    architecture: Architecture
    cost: float
    r1: float
    r2: float
    fits: bool

    def reward(self, which: Which) -> float:
        """The reward of this name."""
        return float(getattr(Rewards(self.r1, self.r2), which))


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        candidates: Each architecture once, in the order they were looked at.
        which: The reward that was sought.
        budget: And within what.
    """

    candidates: tuple[Candidate, ...]
    which: Which
    budget: Budget

    @property
    def best(self) -> Candidate:
        """The most rewarding one within the budget; of equals the cheapest.

        Raises:
            ConfigError: None is within it.
        """
        fitting = [c for c in self.candidates if c.fits]
        if not fitting:
            cheapest = min(self.candidates, key=lambda c: c.cost)
            raise ConfigError(
                f"search: none of {len(self.candidates)} architectures costs at most "
                f"{spoken(self.budget.most)} ({self.budget.cost}); the cheapest, "
                f"{cheapest.backbone}, costs {spoken(cheapest.cost)}"
            )
        return max(fitting, key=self._rank)

    def _rank(self, candidate: Candidate) -> tuple[float, float]:
        return candidate.reward(self.which), -candidate.cost

    def first(self, count: int, apart: float = 0.0) -> tuple[Candidate, ...]:
        """So many of the most rewarding ones within the budget, `best` first; fewer in a small one.

        Args:
            count: How many.
            apart: Of those that differ in less than this share of their choices only the most
                rewarding one. Near twins are equally good on their own, so that to try both of
                them tells little.

        Raises:
            ConfigError: None is within it.
        """
        fitting = sorted((c for c in self.candidates if c.fits), key=self._rank, reverse=True)
        chosen: list[Candidate] = []
        for c in fitting:
            if len(chosen) < count and all(_differing(c, other) >= apart for other in chosen):
                chosen.append(c)
        return tuple(chosen) or (self.best,)

    @property
    def front(self) -> tuple[Candidate, ...]:
        """Those within the budget that none is better than at no more cost, the cheapest first."""
        out: list[Candidate] = []
        for c in sorted(
            (c for c in self.candidates if c.fits), key=lambda c: (c.cost, -c.reward(self.which))
        ):
            if not out or c.reward(self.which) > out[-1].reward(self.which):
                out.append(c)
        return tuple(out)


def search(
    space: SearchSpace,
    price: Callable[[Architecture], float],
    score: Callable[[Architecture], Rewards],
    budget: Budget,
    folder: Path,
    *,
    trials: int,
    which: Which = "r3",
    population: int = 20,
    seed: int = 0,
    identity: str = "",
    reporter: Reporter,
) -> Found:
    """What evolution found; every candidate is on disk before the next one is looked at.

    Called again with the same folder it goes on where it was, whatever stopped it.

    Args:
        space: What can be chosen.
        price: The cost of an architecture, in the budget's unit.
        score: Its rewards with inherited weights; asked only within the budget.
        budget: What it may cost.
        folder: Gets search.journal and found.json.
        trials: Architectures to score, those of an earlier call included. Those above the budget
            and those known already come for nothing; at most `ASKED` times as many are asked for.
        which: The reward that is sought.
        population: Of a generation.
        seed: Of evolution.
        identity: What the scores depend on; another one in the folder is refused.
        reporter: Shows progress.

    Raises:
        ConfigError: The folder belongs to another search.
        MissingExtraError: Optuna is not installed.
    """
    name = f"{which} {budget.cost} from {budget.least:g} {identity}"
    study = _study(make_folder(folder), name)
    done = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    looked_at = (_candidate(t.user_attrs["candidate"]) for t in done)
    known, asked = {c.backbone: c for c in looked_at}, len(done)
    # The first generation knows both ends; the rest of it is drawn.
    ends = (space.smallest(), space.largest())
    scored = sum(c.fits for c in known.values())
    with reporter.bar("search", trials, done=min(scored, trials)) as bar:
        while scored < trials and asked < ASKED * trials:
            # Drawn anew for each: what follows depends on what is on disk, and not on whether it
            # was written by this process or by one that was stopped.
            study.sampler = _sampler(population, seed, asked)
            if asked < len(ends):
                end = zip(space.choices, ends[asked], strict=True)
                study.enqueue_trial({c.name: value for c, value in end})
            trial = study.ask()
            architecture = tuple(
                trial.suggest_categorical(c.name, list(c.values)) for c in space.choices
            )
            backbone = space.backbone(architecture)
            new = backbone not in known
            if new:
                cost = price(architecture)
                fits = cost <= budget.most
                found = score(architecture) if fits else Rewards(0.0, 0.0)
                known[backbone] = Candidate(backbone, architecture, cost, found.r1, found.r2, fits)
            candidate = known[backbone]
            trial.set_user_attr("candidate", asdict(candidate))
            # Above 0 beyond the budget, by how much; such candidates rank last.
            trial.set_constraint("over", candidate.cost / budget.most - 1)
            study.tell(trial, (candidate.reward(which), max(candidate.cost, budget.least)))
            asked += 1
            if new and candidate.fits:
                scored += 1
                bar.advance(1, f"{which} {candidate.reward(which):.3f}  {spoken(candidate.cost)}")
    found_all = Found(tuple(known.values()), which, budget)
    write_json(
        folder / FOUND,
        {
            "which": which,
            "budget": asdict(budget),
            "identity": identity,
            "candidates": [asdict(c) for c in found_all.candidates],
            "front": [c.backbone for c in found_all.front],
        },
    )
    return found_all


def contenders(
    space: SearchSpace,
    price: Callable[[Architecture], float],
    score: Callable[[Architecture], Rewards],
    found: Found,
    count: int,
    *,
    seed: int = 0,
) -> tuple[Candidate, ...]:
    """Architectures worth a short training of their own: half the search's best, half drawn.

    Inherited weights are unfair to some kinds of architecture, which a search by them then never
    looks at; those drawn within the budget (and above its `least`) do not depend on them. Drawn
    alike, nearly all would have small values of the choices that cost most, such as width and
    stride, as few others fit a budget; so the two dearest ones take all pairs of values in turn.

    Args:
        space: That was searched.
        price: The cost of an architecture, in the budget's unit.
        score: Its rewards with inherited weights.
        found: What the search found.
        count: How many; fewer where no more are found.
        seed: Of the draws.

    Raises:
        ConfigError: The search found none within its budget.
    """
    chosen = list(found.first(count - count // 2, APART))
    known = {c.backbone for c in chosen}
    budget, rng = found.budget, np.random.default_rng(seed)
    fixed = _dearest(space, price)
    left = [
        dict(zip(fixed, values, strict=True))
        for values in itertools.product(*(space.choices[at].values[::-1] for at in fixed))
    ]
    while left and len(chosen) < count:
        given = left.pop(0)
        for _ in range(5 * ASKED):
            drawn = space.draw(rng)
            architecture = tuple(given.get(at, value) for at, value in enumerate(drawn))
            backbone, cost = space.backbone(architecture), price(architecture)
            if backbone not in known and budget.least <= cost <= budget.most:
                known.add(backbone)
                r = score(architecture)
                chosen.append(Candidate(backbone, architecture, cost, r.r1, r.r2, fits=True))
                left.append(given)
                break
    return tuple(chosen)


def _dearest(space: SearchSpace, price: Callable[[Architecture], float]) -> list[int]:
    """The two choices that make the largest architecture cheapest by taking their first values."""
    largest = space.largest()

    def without(at: int) -> float:
        return price((*largest[:at], space.choices[at].values[0], *largest[at + 1 :]))

    return sorted(range(len(largest)), key=without)[:2]


def _differing(one: Candidate, other: Candidate) -> float:
    """Share of the choices in which two architectures differ."""
    pairs = list(zip(one.architecture, other.architecture, strict=True))
    return sum(a != b for a, b in pairs) / len(pairs)


def _candidate(kept: dict[str, Any]) -> Candidate:
    """What was kept as JSON, which has no tuples."""
    return Candidate(**{**kept, "architecture": tuple(kept["architecture"])})


def _study(folder: Path, name: str) -> Any:
    optuna: Any = require("optuna", "nas")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    known = [s.study_name for s in storage.get_all_studies()]
    if known and known != [name]:
        raise ConfigError(
            f"{folder}: holds another search ({known[0]}, not {name}); choose another folder"
        )
    with contextlib.suppress(optuna.exceptions.DuplicatedStudyError):
        optuna.create_study(study_name=name, storage=storage, directions=["maximize", "minimize"])
    study = optuna.load_study(study_name=name, storage=storage)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        # An end that a stopped process was about to look at; it is queued again.
        storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
    return study


def _sampler(population: int, seed: int, asked: int) -> Any:
    optuna: Any = require("optuna", "nas")
    # Evolution, and the values it leaves to chance: by one seed, a mutation and what it leads to
    # would begin with the same number.
    seeds = np.random.SeedSequence([seed, asked]).generate_state(2).tolist()
    chance = optuna.samplers.RandomSampler(seed=seeds[1])

    # Optuna keeps its data on disk under the class's name.
    class NSGAIISampler(optuna.samplers.NSGAIISampler):  # type: ignore[misc]
        def select_parent(self, study: Any, generation: int) -> list[Any]:
            # In the order in which they are read from disk later.
            chosen = super().select_parent(study, generation)
            return sorted(chosen, key=lambda trial: trial.number)

        def sample_independent(self, *of: Any) -> Any:
            return chance.sample_independent(*of)

    return NSGAIISampler(population_size=population, seed=seeds[0])
