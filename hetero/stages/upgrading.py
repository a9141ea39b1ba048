"""Stage: a new gallery model for an old index, trained once or swept over what holds it.

How hard to hold the new model to the old one is a trade: held softly it searches its own index
best, held hard the old one. Default weights can miss the criterion without a word, so a sweep draws
the frontier, on validation classes, and every form of training ends in the version matrix on test
classes, where the criterion is judged.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetero import compatibility, versions
from hetero._files import make_folder, storage_errors, write_json
from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import ConfigError, TrainingError
from hetero.evaluate import task
from hetero.metrics import Score
from hetero.progress import Reporter
from hetero.render import upgrades
from hetero.stages import aligning
from hetero.stages.drawing import drawn
from hetero.stages.embedding import embed
from hetero.stages.versioning import Versions, version_matrix

if TYPE_CHECKING:
    from hetero.fit import Settings
    from hetero.retrieval import Ranks
    from hetero.train import UpgradeRecipe

#: Name of the closed-form baseline on the frontier, the unconstrained model, turned: hours of
#: training have to beat one singular value decomposition.
TURNED = "unconstrained, turned"


@dataclass(frozen=True)
class SweepOptions:
    """What is tried.

    Attributes:
        influences: Weights of the frozen old classifier's term, `bct.influence`.
        regressions: Weights of the pull to the old vectors, `regression.weight`; 0 leaves it out.
        rounds: While no point has a higher mAP in the old index than the old model has, on
            validation classes, the regression of the best one is tripled, at most this often.
        free: Whether to train the unconstrained model too, for update gain, tax and the baseline.
    """

    influences: tuple[float, ...] = (1.0, 3.0, 10.0)
    regressions: tuple[float, ...] = (0.0, 10.0, 30.0)
    rounds: int = 2
    free: bool = True

    def __post_init__(self) -> None:
        """Refuse what holds nothing."""
        weights = (*self.influences, *self.regressions)
        if not self.influences or not self.regressions or min(weights) < 0 or self.rounds < 0:
            raise ConfigError(
                "sweep: weights of at least 0, one or more of each kind; got influences "
                f"{self.influences} and regressions {self.regressions}"
            )
        if not any(a + b > 0 for a in self.influences for b in self.regressions):
            raise ConfigError("sweep: all weights are 0, so nothing holds the new model to the old")


@dataclass(frozen=True)
class Point:
    """One trained model of a sweep, on validation classes.

    Attributes:
        name: Of its folder below points/, or `TURNED`.
        influence, regression: Its weights; 0 for the baseline.
        crossed: mAP in the old model's index, 0..1.
        own: mAP in its own index.
        leads: Metric -> `crossed` less the old model in its own index, paired by query.
    """

    name: str
    influence: float
    regression: float
    crossed: float
    own: float
    leads: Mapping[str, Score]

    @property
    def meets(self) -> bool:
        """Whether it is sure to search the old index better than the old model does.

        Its lead in mAP has its interval above 0, and no metric's lies below: of many points some
        lead by luck, and their lead is gone on other classes.
        """
        held = {name: compatibility.held(lead).met for name, lead in self.leads.items()}
        return held["map"] is True and False not in held.values()


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        points: Every model trained, in order, and the closed-form baseline.
        frontier: Names of the points that no other beats in both, of those that are trained.
        chosen: Name of the point taken: the best in its own index of those that meet the criterion
            on validation classes, `Point.meets`; if none does, that of the surest lead in mAP.
        before: mAP of the old model in its own index.
        free: mAP of the unconstrained model in its own index; None without it.
    """

    points: tuple[Point, ...]
    frontier: tuple[str, ...]
    chosen: str
    before: float
    free: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def frontier(points: Sequence[Point]) -> tuple[str, ...]:
    """Names of the points that no other one equals or beats in both, in order."""
    return tuple(
        p.name
        for p in points
        if not any(
            q.crossed >= p.crossed and q.own >= p.own and (q.crossed, q.own) != (p.crossed, p.own)
            for q in points
        )
    )


def choose(points: Sequence[Point]) -> Point:
    """The point to take, see `Sweep.chosen`."""
    if meeting := [p for p in points if p.meets]:
        return max(meeting, key=lambda p: (p.own, p.crossed))

    def surest(point: Point) -> tuple[float, float]:
        lead = point.leads["map"]
        return (lead.ci or (lead.value, lead.value))[0], point.own

    return max(points, key=surest)


def verdict(
    old: Bundle,
    new: Bundle,
    images: Images,
    output: Path,
    reporter: Reporter,
    *,
    ancestors: Sequence[Bundle] = (),
    free: Bundle | None = None,
) -> Versions:
    """The version matrix of a new gallery model and those before it, written to verdict.json.

    Args:
        old: The gallery model that is replaced.
        new: What replaces it.
        images: Its test split is used.
        output: Folder for verdict.json.
        reporter: Shows progress.
        ancestors: Gallery models older than `old`, the newest first.
        free: The new model trained without the constraint.
    """
    line = [*reversed(ancestors), old, new]
    found = version_matrix(line, line, images, reporter, free=free)
    make_folder(output)
    write_json(output / "verdict.json", found.to_json())
    return found


def sweep(
    old: Bundle,
    images: Images,
    recipe: UpgradeRecipe,
    settings: Settings,
    options: SweepOptions,
    root: Path,
    reporter: Reporter,
    *,
    ancestors: Sequence[Bundle] = (),
) -> tuple[Bundle, Sweep, Versions]:
    """The chosen new gallery model, what was tried, and the verdict on it.

    Args:
        old: The gallery model that is to be replaced.
        images: As for `hetero.train.train_upgrade`.
        recipe: Its method is replaced by bct+regression with the weights of each point.
        settings: Of every training.
        options: What is tried.
        root: Gets points/NAME/ for each model, free/, vectors/, sweep.json, frontier.svg,
            verdict.json and best/, a copy of the chosen bundle. Models that are there are not
            trained again.
        reporter: Shows progress.
        ancestors: See `hetero.train.train_upgrade`.

    Raises:
        TrainingError: No point came to an end.
        Interrupted: Ctrl-C; the same command goes on from there.
    """
    from hetero.train import GalleryRecipe, train_gallery, train_upgrade

    settings = replace(settings, keep_going=True)
    make_folder(root)
    free = None
    if options.free:
        free = train_gallery(
            images,
            GalleryRecipe(
                recipe.backbone,
                max(recipe.dim or old.space.dim, old.space.dim),
                recipe.head,
                recipe.scale,
                recipe.margin,
            ),
            old.preprocess,
            settings,
            root / "free",
            resume=True,
            reporter=reporter,
        )
    job = task(images, "val")
    pixels = images.pixels(job.rows, old.preprocess)
    theirs = embed(old, job.ids, pixels, reporter)
    base = job.rank(theirs, theirs)
    before = versions.scored(base, "map").value
    points: list[Point] = []
    unconstrained = None
    if free:
        alone = embed(free, job.ids, pixels, reporter)
        unconstrained = versions.scored(job.rank(alone, alone), "map").value
        turned = aligning.align(
            free, old, images, root / "turned", aligning.AlignOptions(), reporter
        ).bundle
        crossed = job.rank(embed(turned, job.ids, pixels, reporter), theirs)
        # A turn leaves distances as they are, so its own index is the unconstrained model's.
        points.append(_point(TURNED, (0.0, 0.0), crossed, base, unconstrained))
    untrained = len(points)

    def swept() -> Sweep:
        trained = points[untrained:]
        chosen = choose(trained).name
        return Sweep(tuple(points), frontier(trained), chosen, before, unconstrained)

    def train(influence: float, regression: float) -> None:
        name = f"influence-{influence:g}-regression-{regression:g}"
        if any(p.name == name for p in points):
            return
        weights = {"bct.influence": influence, "regression.weight": regression}
        try:
            made = train_upgrade(
                old,
                images,
                replace(
                    recipe,
                    method="bct+regression",
                    settings={**(recipe.settings or {}), **weights},
                ),
                settings,
                root / "points" / name,
                ancestors=ancestors,
                vectors=root / "vectors",
                resume=True,
                reporter=reporter,
            )
        except TrainingError as error:
            reporter.line(f"{name}: left out: {error}")
            return
        ours = embed(made, job.ids, pixels, reporter)
        crossed = job.rank(*versions.meet(ours, theirs, made.nested, old.nested))
        own = versions.scored(job.rank(ours, ours), "map").value
        points.append(_point(name, (influence, regression), crossed, base, own))
        _write(swept(), root, reporter)

    for influence in options.influences:
        for regression in options.regressions:
            if influence or regression:
                train(influence, regression)
    for _ in range(options.rounds):
        best = choose(points[untrained:]) if points[untrained:] else None
        if best is None or best.crossed > before:
            break
        train(best.influence, 3 * best.regression or 10.0)
    if not points[untrained:]:
        raise TrainingError(f"{root}: no point of the sweep came to an end; lower --lr")
    done = swept()
    chosen = root / "points" / done.chosen
    with storage_errors(root / "best"):
        shutil.rmtree(root / "best", ignore_errors=True)
        shutil.copytree(chosen, root / "best", ignore=shutil.ignore_patterns("training"))
    new = Bundle.load(root / "best")
    found = verdict(old, new, images, root, reporter, ancestors=ancestors, free=free)
    return new, done, found


def _point(
    name: str, weights: tuple[float, float], crossed: Ranks, before: Ranks, own: float
) -> Point:
    """A point by what it finds in the old index, and what the old model finds there."""
    score = versions.scored(crossed, "map").value
    leads = {
        metric: compatibility.difference(crossed, before, *versions.metric_of(metric))
        for metric in versions.JUDGED
    }
    return Point(name, *weights, score, own, leads)


def _write(done: Sweep, root: Path, reporter: Reporter) -> None:
    write_json(root / "sweep.json", done.to_json())

    def short(name: str) -> str:
        return name.replace("influence-", "λ ").replace("-regression-", ", r ")

    drawn(
        root / "frontier.svg",
        lambda: upgrades.frontier(
            [(short(p.name), p.crossed, p.own) for p in done.points],
            [short(name) for name in done.frontier],
            short(done.chosen),
            done.before,
            done.free,
        ),
        reporter,
    )
