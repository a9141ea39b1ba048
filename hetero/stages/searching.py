"""Stages: a supernet, a search in it, the winner as an ordinary bundle; and latency tables."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hetero import models, nas
from hetero._files import make_folder, write_json
from hetero.bundle import Artifact, Bundle
from hetero.data import Images
from hetero.errors import ConfigError, TrainingError
from hetero.fit import Settings
from hetero.latency import quiet
from hetero.nas.costs import latency
from hetero.nas.rewards import Which
from hetero.nas.space import Architecture, SearchSpace
from hetero.progress import Reporter
from hetero.space import Space
from hetero.train import SupernetRecipe, Trained, train_query, train_supernet

if TYPE_CHECKING:
    from hetero.devices import RunResult

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
        epochs: Of a finalist's own training; 0 takes the supernet's weights as they are.
        start: "inherited" trains a finalist on from the supernet's weights, "scratch" anew.
        lr: Of the finalists' and the probes' own training.
    """

    trials: int = 150
    which: Which = "r3"
    probes: int = 3
    probe_epochs: int = 4
    finalists: int = 1
    epochs: int = 40
    start: Start = "inherited"
    lr: float = 1e-2

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        counts = min(self.trials, self.probe_epochs, self.finalists)
        if counts < 1 or self.probes < 0 or self.epochs < 0:
            raise ConfigError(
                "search: at least 1 trial, 1 finalist and 1 epoch of probes, no negative number of "
                f"probes or epochs; got trials={self.trials}, finalists={self.finalists}, "
                f"probes={self.probes}, probe_epochs={self.probe_epochs}, epochs={self.epochs}"
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
        root: Gets supernet/, probes/, search/, front.svg, finalists/ (of more
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
            f"search: the smallest architecture of {recipe.space} costs {least:.4g} {cost.unit}, "
            f"the budget is {budget.most:g}; allow more, or search a space of smaller ones"
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
    health = _health(trained, settings, options, root, reporter) if options.probes else None
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
    first = found.first(options.finalists)
    for candidate in first:
        reporter.line(
            f"search: {candidate.backbone}, {candidate.cost:.4g} {cost.unit}, R2 {candidate.r2:.3f}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        reporter.line("search: no plot of the front, which needs the extra 'report'")
    else:
        _plot(found, cost.unit, root / "front.svg")
    best, bundle = _winner(trained, first, settings, options, root, resume, reporter)
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


def _winner(
    trained: Trained,
    first: Sequence[nas.Candidate],
    settings: Settings,
    options: SearchOptions,
    root: Path,
    resume: bool,
    reporter: Reporter,
) -> tuple[nas.Candidate, Bundle]:
    """The finalist that is best on validation classes, and its bundle in ``root/query``."""
    query = root / "query"
    if len(first) == 1:
        return first[0], _own(trained, first[0], settings, options, root, query, resume, reporter)
    bundles = [
        _own(trained, c, settings, options, root, root / "finalists" / str(at), resume, reporter)
        for at, c in enumerate(first)
    ]
    found = [trained.score_net(models.load(b)).r2 for b in bundles]
    at = max(range(len(first)), key=found.__getitem__)
    said = ", ".join(f"{x:.3f}" for x in found)
    reporter.line(f"search: finalist {at + 1} of {len(first)} is best, validation mAP {said}")
    shutil.rmtree(query, ignore_errors=True)
    shutil.copytree(bundles[at].root, query)
    return first[at], Bundle.load(query)


def _own(
    trained: Trained,
    candidate: nas.Candidate,
    settings: Settings,
    options: SearchOptions,
    root: Path,
    output: Path,
    resume: bool,
    reporter: Reporter,
) -> Bundle:
    """A candidate with inherited weights, or trained on from them, or from scratch."""
    vectors = root / "vectors"
    if not options.epochs:
        return trained.bundle(candidate.architecture, output)
    own = replace(settings, epochs=options.epochs, lr=options.lr)
    if options.start == "inherited":
        return trained.tuned(
            candidate.architecture, own, output, vectors=vectors, resume=resume, reporter=reporter
        )
    return train_query(
        trained.gallery,
        trained.images,
        trained.recipe.query(candidate.backbone),
        own,
        output,
        vectors=vectors,
        resume=resume,
        reporter=reporter,
    )


def _health(
    trained: Trained,
    settings: Settings,
    options: SearchOptions,
    root: Path,
    reporter: Reporter,
) -> nas.Health:
    """The supernet's scores of a few architectures beside those of their own training."""
    space = trained.net.space
    rng = np.random.default_rng(settings.seed)
    middle = [space.draw(rng) for _ in range(max(0, options.probes - 2))]
    probes = [space.smallest(), *middle, space.largest()][: options.probes]
    inherited, alone = [], []
    for at, architecture in enumerate(probes):
        bundle = train_query(
            trained.gallery,
            trained.images,
            trained.recipe.query(space.backbone(architecture)),
            replace(settings, epochs=options.probe_epochs, lr=options.lr),
            root / "probes" / str(at),
            vectors=root / "vectors",
            resume=True,
            reporter=reporter,
        )
        inherited.append(trained.score(architecture).r2)
        alone.append(trained.score_net(models.load(bundle)).r2)
    health = nas.judge_health(inherited, alone)
    write_json(root / "health.json", asdict(health))
    reporter.line(f"supernet: {health}")
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


# -- latency tables -----------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure a space on a device.

    Attributes:
        device: As `hetero.devices.open_device` takes it.
        format, precision: Of the files.
        fitted: Architectures that the table is fitted to.
        held_out: Others, that it is judged by.
        threads: Of the runtime.
        seed: Of the architectures.
    """

    device: str = "local"
    format: str = "tflite"
    precision: str = "int8"
    fitted: int = 40
    held_out: int = 10
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a table that nothing would speak for."""
        if self.fitted < 2 or self.held_out < 1:
            raise ConfigError(
                f"measure: at least 2 architectures to fit and 1 held out, got {self.fitted} and "
                f"{self.held_out}"
            )


def measure(
    gallery: Bundle,
    images: Images,
    space: str,
    options: MeasureOptions,
    root: Path,
    *,
    reporter: Reporter,
) -> latency.Table:
    """The latency table of a space on a device, in ``root/table.csv``.

    Architectures are drawn, given random weights, exported and run; each is kept as soon as it was
    measured, so a stopped run goes on where it was.

    Raises:
        ConfigError: The device only emulates, so its times mean nothing.
        DeviceError: It failed; what was measured is kept.
    """
    from hetero import devices

    device = devices.open_device(options.device)
    if device.execution != "native":
        raise ConfigError(
            f"{options.device}: an {device.execution} device has no times of its own; measure on "
            "the board itself"
        )
    searched = nas.load_space(space)
    rng = np.random.default_rng(options.seed)
    drawn = [searched.smallest(), searched.largest()]
    while len(drawn) < options.fitted + options.held_out:
        drawn.append(searched.draw(rng))
    # The ends are fitted to; what is held out was drawn like what a search will ask for.
    rows = []
    with reporter.bar("measure", len(drawn)) as bar:
        for at, architecture in enumerate(drawn):
            path = root / "architectures" / f"{at:03d}.json"
            row = _measured(path, searched, architecture, gallery, images, device, options)
            rows.append(row)
            bar.advance(1, f"{row['latency_ns'] / 1e6:.3f} ms")
    done = [{k: (int(c), float(m)) for k, (c, m) in r["operators"].items()} for r in rows]
    took = np.array([r["latency_ns"] for r in rows], float)
    fit = slice(0, options.fitted)
    table = latency.fitted(done[fit], took[fit], {})
    errors = latency.errors(table, done[options.fitted :], took[options.fitted :])
    off = np.abs(errors)
    margin = max(0.0, float(np.quantile(1 / (1 + errors) - 1, 0.9)))
    about = {
        "device": options.device,
        "format": options.format,
        "precision": options.precision,
        "threads": str(options.threads),
        "space": space,
        "fitted to": f"{options.fitted} architectures",
        "held-out error": f"median {np.median(off):.1%}, worst {off.max():.1%} of "
        f"{options.held_out} architectures",
        "margin": f"{margin:.3f}",
    }
    table = replace(table, about=about)
    table.save(root / "table.csv")
    write_json(
        root / "table.json",
        {
            "about": about,
            "held_out_errors": [float(x) for x in errors],
            "rows": {k: list(v) for k, v in table.rows.items()},
        },
    )
    return table


def _measured(
    path: Path,
    space: SearchSpace,
    architecture: Architecture,
    gallery: Bundle,
    images: Images,
    device: Any,
    options: MeasureOptions,
) -> dict[str, Any]:
    """Latency and operators of one architecture, from `path` if it was measured before."""
    import torch

    from hetero import devices

    backbone = space.backbone(architecture)
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["backbone"] == backbone and kept["options"] == asdict(options):
            return kept
    preprocess, dim = gallery.preprocess, gallery.space.dim
    torch.manual_seed(0)
    net = models.build(backbone, dim, preprocess.size_px).eval()
    pixels = images.pixels(images.rows("val")[:8], preprocess)
    root = path.with_suffix("")
    made = models.as_it_is(root, net, backbone, Space("measure", "0" * 64, dim), preprocess, pixels)
    bundle, item = one_file(made, images, options.format, options.precision)
    inputs = bundle.inputs(item, pixels)
    result = timed(device, bundle, item, inputs, root / "runs", options.threads, resume=True)
    row = {
        "backbone": backbone,
        "options": asdict(options),
        "latency_ns": quiet(result.latency_ns),
        "validity": devices.timing(result).validity,
        "macs": made.manifest.model.macs,
        "operators": latency.operators(net, preprocess.size_px),
    }
    write_json(path, row)
    return row


def one_file(
    bundle: Bundle, images: Images, format: str, precision: str
) -> tuple[Bundle, Artifact]:
    """The bundle with one exported file, and that file.

    Args:
        bundle: With no other file.
        images: For int8 calibration.
        format: Of the file.
        precision: Of the file.
    """
    from hetero.stages.exporting import export_all

    done = export_all(
        bundle,
        (format,),
        (precision,),
        images=images,
        bake=True,
        batch=None,
        resume=True,
        reporter=Reporter(quiet=True),
    )
    (item,) = done.exported()
    return done, item


def timed(
    device: Any,
    bundle: Bundle,
    item: Artifact,
    inputs: Any,
    folder: Path,
    threads: int,
    *,
    resume: bool = False,
) -> RunResult:
    """The run on a device that latency tables are made of.

    Args:
        device: From `hetero.devices.open_device`.
        bundle: Of the file.
        item: The file.
        inputs: As the file takes them.
        folder: Where the run's results go.
        threads: Of the runtime.
        resume: Take over what an equal run left there.
    """
    from hetero import devices

    return devices.run(
        device,
        bundle.path(item),
        item.kind,
        inputs,
        folder=folder,
        plan=devices.Plan(warmup_runs=20, warmup_s=0.2, min_runs=200, min_s=1.0, threads=threads),
        resume=resume,
    )
