"""Stage: every query version in every gallery version, on test classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetero import compatibility, versions
from hetero.bundle import Bundle
from hetero.data import Images, Split
from hetero.errors import ConfigError
from hetero.evaluate import Task, task
from hetero.metrics import Score
from hetero.progress import Reporter
from hetero.space import Embeddings
from hetero.stages.checking import unseen
from hetero.stages.embedding import embed
from hetero.versions import Matrix

if TYPE_CHECKING:
    from hetero.retrieval import Ranks


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
    metrics: Sequence[str] = versions.JUDGED,
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
