"""Stages about an index that outlives its models: the version matrix, refresh curves, forward maps.

Nothing is trained here but maps between vectors; see `hetero.stages.upgrading` for models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hetero import compatibility, versions
from hetero import refresh as refreshing
from hetero._files import make_folder, write_atomically, write_json
from hetero.bundle import Bundle
from hetero.data import Images, Split
from hetero.errors import ConfigError, MissingExtraError, SpaceMismatchError
from hetero.evaluate import Scores, Task, scores, task
from hetero.metrics import Score
from hetero.progress import Reporter
from hetero.refresh import Correction, Curve
from hetero.render import upgrades
from hetero.space import Embeddings
from hetero.stages import aligning
from hetero.stages.checking import unseen
from hetero.stages.embedding import embed
from hetero.verdict import Decided
from hetero.versions import Matrix

if TYPE_CHECKING:
    from hetero.maps._stored import StoredMap
    from hetero.retrieval import Ranks

#: What a refresh curve may fall below its first score before it is a failure.
DIP = 0.01


# -- the version matrix ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Versions:
    """A version matrix and what an unconstrained model adds to it.

    Attributes:
        matrix: See `hetero.versions`.
        gain: Metric -> older gallery -> update gain of the newest query version; None where the
            denominator may be 0. Empty without an unconstrained model.
        tax: Metric -> what compatibility costs the newest query version in its own index.
        free: Metric -> the unconstrained model in its own index.
    """

    matrix: Matrix
    gain: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    tax: Mapping[str, Score] = field(default_factory=dict)
    free: Mapping[str, Score] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plain = {
            name: {m: {"value": s.value, "ci": s.ci} for m, s in found.items()}
            for name, found in (("tax", self.tax), ("unconstrained", self.free))
        }
        return {**self.matrix.to_json(), "update_gain": self.gain, **plain}


def version_matrix(
    queries: Sequence[Bundle],
    galleries: Sequence[Bundle],
    images: Images,
    reporter: Reporter,
    *,
    free: Bundle | None = None,
    metrics: Sequence[str] = ("recall_at_1", "map"),
    margin: float = versions.MARGIN,
) -> Versions:
    """Every query version in every gallery version, on test classes, with the criterion judged.

    Args:
        queries: Query bundles, or gallery bundles that are to query: each is at home in the
            gallery version it was trained into, or is.
        galleries: Gallery bundles, oldest first.
        images: Its test split is used.
        reporter: Shows progress.
        free: The newest model, trained without the constraint, for update gain and tax; it searches
            its own index.
        metrics: Of `hetero.versions.METRICS`.
        margin: What an older query version may lose in a newer index.

    Raises:
        ConfigError: A query bundle belongs to none of the galleries.
        SpaceMismatchError: Two versions share no space.
        DataError: A test class was trained on, or there is nothing to judge.
    """
    for name in metrics:
        versions.metric_of(name)
    named = _named([*galleries, *queries])
    homes = {named[q.root]: named[_home(q, galleries).root] for q in queries}
    everyone = {b.digest: b for b in (*galleries, *queries, *((free,) if free else ()))}
    for bundle in everyone.values():
        unseen(bundle, images)
    job, vectors = embedded(tuple(everyone.values()), images, "test", reporter)
    ranks: dict[tuple[str, str], Ranks] = {}
    with reporter.bar("search", len(queries) * len(galleries)) as bar:
        for q in queries:
            for g in galleries:
                ours, theirs = versions.meet(
                    vectors[q.digest], vectors[g.digest], q.nested, g.nested
                )
                ranks[named[q.root], named[g.root]] = job.rank(ours, theirs)
                bar.advance(1)
    made = versions.matrix(ranks, homes, [named[g.root] for g in galleries], metrics, margin)
    if free is None:
        return Versions(made)
    alone = job.rank(vectors[free.digest], vectors[free.digest])
    newest = made.queries[-1]
    resident = {home: query for query, home in homes.items()}
    older = [g for g in made.galleries if g in resident and g != homes[newest]]
    return Versions(
        made,
        {
            m: {
                g: compatibility.update_gain(
                    ranks[newest, g], ranks[resident[g], g], alone, *versions.metric_of(m)
                )
                for g in older
            }
            for m in metrics
        },
        {
            m: compatibility.tax(alone, ranks[newest, homes[newest]], *versions.metric_of(m))
            for m in metrics
        },
        {m: versions.scored(alone, m) for m in metrics},
    )


def _named(bundles: Sequence[Bundle]) -> dict[Path, str]:
    """A name for each folder: its own where that is enough, else its path."""
    roots = dict.fromkeys(b.root for b in bundles)
    short = [r.name for r in roots]
    return {r: r.name if short.count(r.name) == 1 else str(r) for r in roots}


def _home(query: Bundle, galleries: Sequence[Bundle]) -> Bundle:
    """The gallery version that a query bundle was trained into, or is.

    Raises:
        ConfigError: It is none of these.
    """
    wanted = query.digest if query.role == "gallery" else query.manifest.parent
    for gallery in galleries:
        if gallery.digest == wanted:
            return gallery
    raise ConfigError(
        f"{query.root}: a {query.role} bundle whose gallery version ({wanted[:12]}) is none of "
        f"{', '.join(str(g.root) for g in galleries)}; name it with --gallery"
    )


def embedded(
    bundles: Sequence[Bundle], images: Images, split: Split, reporter: Reporter
) -> tuple[Task, dict[str, Embeddings]]:
    """A split's task, and its pictures' vectors by each bundle, by digest."""
    job = task(images, split)
    out, pixels = {}, {}
    for bundle in bundles:
        key = bundle.preprocess.sha256
        if key not in pixels:
            pixels[key] = images.pixels(job.rows, bundle.preprocess)
        out[bundle.digest] = embed(bundle, job.ids, pixels[key], reporter)
    return job, out


# -- refresh --------------------------------------------------------------------------------------


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
    shares: tuple[float, ...] = refreshing.SHARES
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
        correction: Of cosines to old rows; None where none rises.
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
    if images.labelled:
        try:
            correction = refreshing.fit_correction(watch, *sides(watched))
        except refreshing.NoCorrectionError as error:
            reporter.line(str(error))
    module, k = versions.metric_of(options.metric)

    def curve(
        order: Sequence[str],
        how: Correction | None = None,
        by: tuple[Embeddings, Embeddings, Embeddings] = (queries, before, after),
    ) -> Curve:
        return refreshing.curve(
            job, *by, order, shares=options.shares, metric=module, k=k, correction=how
        )

    random = [refreshing.at_random(job.gallery_ids, seed) for seed in range(options.orders)]
    learnt_old, learnt_new = _training(old, new, images, led, reporter)
    unsure = refreshing.uncertainty(before.take(job.gallery_ids), learnt_old, learnt_new)
    first = refreshing.most_first(job.gallery_ids, unsure)
    curves: dict[str, Curve] = {}
    ways = (None, correction) if correction else (None,)
    with reporter.bar("refresh", len(ways) * (len(random) + 1) + bool(control)) as bar:
        for way in ways:
            what = ", corrected" if way else ""
            found = []
            for order in random:
                found.append(curve(order, way))
                bar.advance(1)
            curves[f"random{what}"] = refreshing.mean_curve(found)
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


def drawn(path: Path, draw: Callable[[], str], reporter: Reporter) -> None:
    """A plot in a file, or a word on why there is none."""
    try:
        write_atomically(path, draw())
    except MissingExtraError as error:
        reporter.line(f"no plot: {error}")


# -- forward maps ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mapped:
    """A map for stored vectors, and what it is worth on validation classes.

    Attributes:
        map: The map.
        pairs: It was fitted to.
        before: The old model in its own index.
        mapped: The new model in the old index, mapped.
        after: The new model in its own index.
    """

    map: StoredMap
    pairs: int
    before: Scores
    mapped: Scores
    after: Scores


def forward_map(
    old: Bundle,
    new: Bundle,
    images: Images,
    options: aligning.AlignOptions,
    output: Path,
    reporter: Reporter,
    *,
    side: Bundle | None = None,
) -> Mapped:
    """A map from stored vectors of the old model into the new model's space, written to a file.

    Args:
        old: Gallery bundle whose vectors are stored.
        new: Gallery bundle whose space they are to come into; trained as one likes.
        images: Its training split gives the pairs, its validation split the scores.
        options: Which map (not "auto"), and from what.
        output: The file, safetensors.
        reporter: Shows progress.
        side: The model of the side information that is stored with each old vector.

    Raises:
        ConfigError: Unknown map or setting.
        SpaceMismatchError: The models prepare pictures differently.
        DataError: Too few pairs, or nothing to validate on.
    """
    from hetero import maps, models
    from hetero.maps._stored import StoredMap
    from hetero.train._pictures import gather

    bundles = [old, new, *([side] if side else [])]
    for bundle in bundles:
        if bundle.preprocess != old.preprocess:
            raise SpaceMismatchError(
                f"{bundle.root}: its preprocessing differs from that of {old.root}; pairs are made "
                "of pictures that both see the same way"
            )
    if not images.labelled:
        raise ConfigError(f"{images.name}: no labels, by which a mapped index is scored")
    kind = maps.make(options.map, options.settings)
    pictures = gather(images, old.preprocess, reporter)
    nets = [models.load(b) for b in bundles]
    made = [
        aligning.pairs_of(net, b, pictures, options, reporter)
        for net, b in zip(nets, bundles, strict=True)
    ]
    watched = [
        aligning.watched(net, b, pictures, b.root.name)
        for net, b in zip(nets, bundles, strict=True)
    ]
    source = made[0]
    if side:
        source = np.concatenate([made[0], made[2]], axis=1) / np.float32(np.sqrt(2))
    fitted = maps.fit(kind, source, made[1], options.seed)
    led = StoredMap(
        options.map,
        maps.settings_of(kind),
        old.space,
        new.space,
        fitted,
        side.space if side else None,
    )
    led.save(output)
    moved = led.apply(watched[0], watched[2] if side else None)
    before, mapped, after = (
        scores(pictures.watch.rank(q, g))
        for q, g in ((watched[0], watched[0]), (watched[1], moved), (watched[1], watched[1]))
    )
    return Mapped(led, len(source), before, mapped, after)
