"""Stage: refresh curves of an index that goes from one gallery model to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetero import versions
from hetero._files import make_folder, write_json
from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import ConfigError, SpaceMismatchError
from hetero.evaluate import Task
from hetero.metrics import per_query
from hetero.progress import Reporter
from hetero.refresh import (
    SHARES,
    Correction,
    Curve,
    NoCorrectionError,
    at_random,
    fit_correction,
    mean_curve,
    most_first,
    ranks,
    uncertainty,
)
from hetero.refresh import curve as curve_of
from hetero.render import upgrades
from hetero.space import Embeddings
from hetero.stages.checking import unseen
from hetero.stages.drawing import drawn
from hetero.stages.embedding import embed
from hetero.stages.versioning import embedded
from hetero.verdict import Decided

if TYPE_CHECKING:
    from hetero.maps._stored import StoredMap

#: What a refresh curve may fall below its first score before it is a failure.
DIP = 0.01


@dataclass(frozen=True)
class RefreshOptions:
    """How to draw refresh curves.

    Attributes:
        metric: Of `hetero.versions.METRICS`.
        shares: At which to score, ascending from 0 to 1.
        orders: Random orders, of which the mean is taken.
        map: A file by `hetero upgrade map` that leads the old rows into the new space first.
    """

    metric: str = "map"
    shares: tuple[float, ...] = SHARES
    orders: int = 3
    map: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what is no curve from start to end."""
        versions.metric_of(self.metric)
        if self.orders < 1 or len(self.shares) < 2 or {0.0, 1.0} - set(self.shares):
            raise ConfigError(
                "refresh: at least one random order, and shares from 0 to 1 with both ends; got "
                f"{self.orders} and {self.shares}"
            )


@dataclass(frozen=True)
class Refreshed:
    """What a refresh does on the way.

    Attributes:
        curves: Name -> curve: "random", "uncertain first", each "…, corrected" where scores can be
            corrected, and "control".
        correction: Of cosines to old rows; None where none rises or helps on validation classes.
        before: The old model searching its own index, the system that is replaced.
        complete: The new model in its whole new index; more than the curve's end where its vectors
            are longer than the space it shares with the old ones.
        outcome: Fail where a curve other than the control's falls more than `DIP` below its start.
    """

    curves: Mapping[str, Curve]
    correction: Correction | None
    before: float
    complete: float

    @property
    def outcome(self) -> Decided:
        """See the class."""
        worst = max(c.dip for name, c in self.curves.items() if name != "control")
        return "fail" if worst > DIP else "pass"

    def to_json(self, metric: str) -> dict[str, Any]:
        """As plain values."""
        c = self.correction
        return {
            "outcome": self.outcome,
            "metric": metric,
            "before": self.before,
            "complete": self.complete,
            "correction": c and {"slope": c.slope, "offset": c.offset},
            "curves": {
                name: {
                    "shares": list(curve.shares),
                    "scores": list(curve.scores),
                    "area": curve.area,
                    "dip": curve.dip,
                    "sag": curve.sag,
                }
                for name, curve in self.curves.items()
            },
        }


def refresh(
    old: Bundle,
    new: Bundle,
    images: Images,
    options: RefreshOptions,
    output: Path,
    reporter: Reporter,
    *,
    query: Bundle | None = None,
    control: Bundle | None = None,
) -> Refreshed:
    """Refresh curves of a test gallery on its way from one gallery model to the next.

    Writes refresh.json and refresh.svg.

    Args:
        old: Gallery bundle whose rows are in the index.
        new: Gallery bundle that re-embeds them.
        images: Test split for the curves, training split for what is uncertain, validation split
            for the correction of scores.
        options: Metric, shares, map.
        output: Folder for results.
        reporter: Shows progress.
        query: What asks; the new gallery model if not given.
        control: A model trained without the constraint, to show what the constraint is for: it asks
            and re-embeds as if it were compatible.

    Raises:
        SpaceMismatchError: The models share no space, and no map leads from the old to the new.
        ConfigError: The map is of other models.
    """
    asking = query or new
    bundles = {b.digest: b for b in (old, new, asking)}
    for bundle in (*bundles.values(), *((control,) if control else ())):
        unseen(bundle, images)
    led = _map_of(options.map)

    def sides(
        vectors: Mapping[str, Embeddings],
    ) -> tuple[Embeddings, Embeddings, Embeddings]:
        """Queries, old rows and new rows, all in one space."""
        before, holds = vectors[old.digest], old.nested
        if led is not None:
            before, holds = led.apply(before), ()
        ours, before, after = versions.common(
            (vectors[asking.digest], asking.nested),
            (before, holds),
            (vectors[new.digest], new.nested),
        )
        return ours, before, after

    job, vectors = embedded(tuple(bundles.values()), images, "test", reporter)
    queries, before, after = sides(vectors)
    watch, watched = embedded(tuple(bundles.values()), images, "val", reporter)
    correction = None
    module, k = versions.metric_of(options.metric)
    if images.labelled:
        try:
            correction = _helping(watch, sides(watched), module, k)
        except NoCorrectionError as error:
            reporter.line(str(error))

    def curve(
        order: Sequence[str],
        how: Correction | None = None,
        by: tuple[Embeddings, Embeddings, Embeddings] = (queries, before, after),
    ) -> Curve:
        return curve_of(job, *by, order, shares=options.shares, metric=module, k=k, correction=how)

    random = [at_random(job.gallery_ids, seed) for seed in range(options.orders)]
    learnt_old, learnt_new = _training(old, new, images, led, reporter)
    unsure = uncertainty(before.take(job.gallery_ids), learnt_old, learnt_new)
    first = most_first(job.gallery_ids, unsure)
    curves: dict[str, Curve] = {}
    ways = (None, correction) if correction else (None,)
    with reporter.bar("refresh", len(ways) * (len(random) + 1) + bool(control)) as bar:
        for way in ways:
            what = ", corrected" if way else ""
            found = []
            for order in random:
                found.append(curve(order, way))
                bar.advance(1)
            curves[f"random{what}"] = mean_curve(found)
            curves[f"uncertain first{what}"] = curve(first, way)
            bar.advance(1)
        if control is not None:
            as_if = _as_if(control, vectors[old.digest], job, images, reporter)
            curves["control"] = curve(random[0], by=as_if)
            bar.advance(1)
    done = Refreshed(
        curves,
        correction,
        versions.scored(job.rank(vectors[old.digest], vectors[old.digest]), options.metric).value,
        versions.scored(
            job.rank(
                *versions.meet(
                    vectors[asking.digest], vectors[new.digest], asking.nested, new.nested
                )
            ),
            options.metric,
        ).value,
    )
    make_folder(output)
    write_json(output / "refresh.json", done.to_json(options.metric))
    drawn(
        output / "refresh.svg",
        lambda: upgrades.refresh(done.curves, done.before, options.metric),
        reporter,
    )
    return done


def _helping(
    task: Task, sides: tuple[Embeddings, Embeddings, Embeddings], metric: str, k: int
) -> Correction:
    """The correction fitted to a task's pictures, if it helps there while half is re-embedded.

    Equal odds do not have to rank better: what two scales of scores cost may be less than what a
    slope makes of the older rows' errors.

    Raises:
        NoCorrectionError: No correction rises, or the ranking is worse with it.
    """
    made = fit_correction(task, *sides)
    half = at_random(task.gallery_ids, 0)[: len(task.gallery_ids) // 2]
    plain, corrected = (
        float(per_query(metric, ranks(task, *sides, half, how), k).mean()) for how in (None, made)
    )
    if corrected < plain:
        raise NoCorrectionError(
            f"scores of older rows are left as they are: corrected, a half-refreshed gallery of "
            f"validation classes scores {100 * corrected:.1f}, and {100 * plain:.1f} without"
        )
    return made


def _map_of(path: Path | None) -> StoredMap | None:
    if path is None:
        return None
    from hetero.maps._stored import StoredMap

    led = StoredMap.load(path)
    if led.side is not None:
        raise ConfigError(
            f"{path}: a map with side information; apply it with `hetero upgrade map --apply` and "
            "score the result, a refresh of it is not drawn"
        )
    return led


def _training(
    old: Bundle, new: Bundle, images: Images, led: StoredMap | None, reporter: Reporter
) -> tuple[Embeddings, Embeddings]:
    """Both models' vectors of the training pictures, in the space they share."""
    rows = images.rows("train")
    ids = [images.ids[r] for r in rows]
    before, after = (embed(b, ids, images.pixels(rows, b.preprocess), reporter) for b in (old, new))
    if led is not None:
        before = led.apply(before)
    after, before = versions.meet(after, before, new.nested, () if led else old.nested)
    return before, after


def _as_if(
    control: Bundle, old: Embeddings, job: Task, images: Images, reporter: Reporter
) -> tuple[Embeddings, Embeddings, Embeddings]:
    """Queries and new rows by a model that is not compatible, as if it were."""
    dim = old.space.dim
    if control.space.dim != dim:
        raise SpaceMismatchError(
            f"{control.root}: the control has dim {control.space.dim}, the old model {dim}; train "
            f"it with --dim {dim}"
        )
    pixels = images.pixels(job.rows, control.preprocess)
    ours = embed(control, job.ids, pixels, reporter).pretend_in(old.space)
    return ours, old, ours
