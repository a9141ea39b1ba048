"""Stages: a supernet, a search in it, the winner as an ordinary bundle."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from hetero import models, nas
from hetero._files import make_folder, write_json
from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import ConfigError, TrainingError
from hetero.fit import Settings
from hetero.nas.rewards import Which
from hetero.nas.search import spoken
from hetero.nas.space import Architecture
from hetero.progress import Reporter
from hetero.train import SupernetRecipe, Trained, train_query, train_supernet

Start = Literal["inherited", "scratch"]


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        trials: Architectures to look at.
        which: The reward that is sought.
        probes: Architectures trained on their own to see whether the supernet's scores mean
            anything; 0 searches without asking.
        probe_epochs: Of each probe.
        finalists: Of the most rewarding candidates so many are trained on their own, and the one
            with the best validation mAP in the gallery's index wins: a supernet tells good
            architectures from bad ones, but hardly the best ones from each other.
        tries: So many candidates, see `hetero.nas.contenders`, are trained on their own for
            `try_epochs`, from scratch, and the best of them on validation classes are the
            finalists; 0 takes the most rewarding ones.
        try_epochs: Of each try. A few epochs rank architectures better than a supernet does.
        epochs: Of a finalist's own training; 0 takes the supernet's weights as they are.
        start: "inherited" trains a finalist on from the supernet's weights, "scratch" anew.
        lr: Of the finalists' and the probes' own training.
    """

    trials: int = 150
    which: Which = "r3"
    probes: int = 3
    probe_epochs: int = 4
    finalists: int = 1
    tries: int = 0
    try_epochs: int = 3
    epochs: int = 40
    start: Start = "inherited"
    lr: float = 1e-2

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        counts = min(self.trials, self.probe_epochs, self.try_epochs, self.finalists)
        if counts < 1 or self.probes < 0 or self.epochs < 0:
            raise ConfigError(
                "search: at least 1 trial, 1 finalist and 1 epoch of probes and tries, no negative "
                f"number of probes or epochs; got trials={self.trials}, "
                f"finalists={self.finalists}, probes={self.probes}, "
                f"probe_epochs={self.probe_epochs}, try_epochs={self.try_epochs}, "
                f"epochs={self.epochs}"
            )
        if self.tries and self.tries < self.finalists:
            raise ConfigError(
                f"search: {self.finalists} finalists of {self.tries} tries; try at least as many, "
                "or none"
            )


@dataclass(frozen=True)
class Outcome:
    """What a search ended in.

    Attributes:
        bundle: The winner.
        found: All candidates.
        health: Of the supernet, or None where nobody asked.
    """

    bundle: Bundle
    found: nas.Found
    health: nas.Health | None


def search(
    gallery: Bundle,
    images: Images,
    recipe: SupernetRecipe,
    settings: Settings,
    budget: nas.Budget,
    options: SearchOptions,
    root: Path,
    *,
    resume: bool = False,
    reporter: Reporter,
) -> Outcome:
    """The best query model of a space within a budget, as a bundle in ``root/query``.

    Args:
        gallery: Whose space the query models embed into.
        images: Training and validation classes; test classes are never looked at.
        recipe: Of the supernet.
        settings: The same.
        budget: What the model may cost.
        options: How to search.
        root: Gets supernet/, probes/, search/, front.svg, tries/, finalists/ (of more
            than one) and query/.
        resume: Go on with what is there.
        reporter: Shows progress.

    Raises:
        TrainingError: The supernet's scores mean nothing; the message says by how much.
        ConfigError: Nothing fits the budget.
    """
    space, cost = nas.load_space(recipe.space), nas.load_cost(budget.cost)
    price = nas.priced(space, cost, gallery.space.dim, gallery.preprocess.size_px, recipe.dim)
    least = price(space.smallest())
    if least > budget.most:
        raise ConfigError(
            f"search: the smallest architecture of {recipe.space} costs {spoken(least)} "
            f"{cost.unit}, the budget is {spoken(budget.most)}; allow more, or search a space of "
            "smaller ones"
        )
    trained = train_supernet(
        gallery,
        images,
        recipe,
        settings,
        make_folder(root / "supernet"),
        vectors=root / "vectors",
        resume=resume,
        reporter=reporter,
    )
    run = _Run(trained, settings, options, root, resume, reporter)
    health = _health(run) if options.probes else None
    if health is not None and not health.healthy:
        raise TrainingError(
            f"supernet {root / 'supernet'}: {health}; less than half, so its ranking of "
            "architectures would be noise. Train it longer (--epochs), by the sandwich rule, or on "
            "a smaller space"
        )
    found = nas.search(
        space,
        price,
        trained.score,
        budget,
        root / "search",
        trials=options.trials,
        which=options.which,
        seed=settings.seed,
        identity=trained.digest,
        reporter=reporter,
    )
    first = _finalists(run, found, price)
    for candidate in first:
        reporter.line(
            f"search: {candidate.backbone}, {spoken(candidate.cost)} {cost.unit}, "
            f"R2 {candidate.r2:.3f}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        reporter.line("search: no plot of the front, which needs the extra 'report'")
    else:
        _plot(found, cost.unit, root / "front.svg")
    best, bundle = _winner(run, first)
    write_json(
        root / "search.json",
        {
            "budget": asdict(budget),
            "unit": cost.unit,
            "best": asdict(best),
            "looked_at": len(found.candidates),
            "health": asdict(health) if health else None,
        },
    )
    return Outcome(bundle, found, health)


@dataclass(frozen=True)
class _Run:
    """What every training of a candidate needs to know of the search that it belongs to."""

    trained: Trained
    settings: Settings
    options: SearchOptions
    root: Path
    resume: bool
    reporter: Reporter

    def scratch(self, backbone: str, epochs: int, output: Path) -> Bundle:
        """An architecture trained on its own, from weights of its own."""
        return train_query(
            self.trained.gallery,
            self.trained.images,
            self.trained.recipe.query(backbone),
            replace(self.settings, epochs=epochs, lr=self.options.lr),
            output,
            vectors=self.root / "vectors",
            resume=self.resume,
            reporter=self.reporter,
        )

    def briefly(self, backbone: str, epochs: int, name: str) -> float:
        """Validation mAP in the gallery's index after a short training of its own."""
        return self.worth(self.scratch(backbone, epochs, self.root / name))

    def worth(self, bundle: Bundle) -> float:
        """Validation mAP in the gallery's index."""
        return self.trained.score_net(models.load(bundle)).r2

    def own(self, candidate: nas.Candidate, output: Path) -> Bundle:
        """A candidate with inherited weights, or trained on from them, or from scratch."""
        epochs = self.options.epochs
        if not epochs:
            return self.trained.bundle(candidate.architecture, output)
        if self.options.start == "scratch":
            return self.scratch(candidate.backbone, epochs, output)
        return self.trained.tuned(
            candidate.architecture,
            replace(self.settings, epochs=epochs, lr=self.options.lr),
            output,
            vectors=self.root / "vectors",
            resume=self.resume,
            reporter=self.reporter,
        )


def _finalists(
    run: _Run, found: nas.Found, price: Callable[[Architecture], float]
) -> tuple[nas.Candidate, ...]:
    """The candidates to train on their own; after short trainings of more of them, if asked."""
    options, trained = run.options, run.trained
    if not options.tries:
        return found.first(options.finalists)
    pool = nas.contenders(
        trained.net.space, price, trained.score, found, options.tries, seed=run.settings.seed
    )
    reached = [
        run.briefly(c.backbone, options.try_epochs, f"tries/{at}") for at, c in enumerate(pool)
    ]
    order = sorted(range(len(pool)), key=lambda at: -reached[at])
    write_json(
        run.root / "tries.json",
        {
            "epochs": options.try_epochs,
            "tries": [{**asdict(pool[at]), "validation_map": reached[at]} for at in order],
        },
    )
    return tuple(pool[at] for at in order[: options.finalists])


def _winner(run: _Run, first: Sequence[nas.Candidate]) -> tuple[nas.Candidate, Bundle]:
    """The finalist that is best on validation classes, and its bundle in ``root/query``."""
    query = run.root / "query"
    if len(first) == 1:
        return first[0], run.own(first[0], query)
    bundles = [run.own(c, run.root / "finalists" / str(at)) for at, c in enumerate(first)]
    found = [run.worth(b) for b in bundles]
    at = max(range(len(first)), key=found.__getitem__)
    said = ", ".join(f"{x:.3f}" for x in found)
    run.reporter.line(f"search: finalist {at + 1} of {len(first)} is best, validation mAP {said}")
    shutil.rmtree(query, ignore_errors=True)
    shutil.copytree(bundles[at].root, query)
    return first[at], Bundle.load(query)


def _health(run: _Run) -> nas.Health:
    """The supernet's scores of a few architectures beside those of their own training."""
    space, options = run.trained.net.space, run.options
    rng = np.random.default_rng(run.settings.seed)
    middle = [space.draw(rng) for _ in range(max(0, options.probes - 2))]
    probes = [space.smallest(), *middle, space.largest()][: options.probes]
    inherited, alone = [], []
    for at, architecture in enumerate(probes):
        backbone = space.backbone(architecture)
        inherited.append(run.trained.score(architecture).r2)
        alone.append(run.briefly(backbone, options.probe_epochs, f"probes/{at}"))
    health = nas.judge_health(inherited, alone)
    write_json(run.root / "health.json", asdict(health))
    run.reporter.line(f"supernet: {health}")
    return health


def _plot(found: nas.Found, unit: str, path: Path) -> None:
    """Cost against reward of all that were scored, and the front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=unit, ylabel=f"reward {found.which}", xscale="log")
    fitting = [c for c in found.candidates if c.fits]
    axes.scatter(
        [c.cost for c in fitting], [c.reward(found.which) for c in fitting], s=12, label="looked at"
    )
    axes.plot(
        [c.cost for c in found.front],
        [c.reward(found.which) for c in found.front],
        color="C1",
        marker="o",
        label="front",
    )
    axes.axvline(found.budget.most, color="0.6", linestyle=":", label="budget")
    axes.legend()
    figure.savefig(path)
