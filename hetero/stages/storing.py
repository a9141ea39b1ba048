"""Stage: what keeping vectors smaller costs search, asked of pictures with labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from hetero import compare, evaluate
from hetero.bundle import Artifact, Bundle
from hetero.data import Images
from hetero.errors import DataError
from hetero.metrics import Score, mean, per_query
from hetero.progress import Reporter
from hetero.space import Embeddings
from hetero.stages.sharding import embedder_of
from hetero.storage import Storage, stored
from hetero.verdict import bound, paired

#: Pictures that are embedded once more to find out; whole classes of the test split.
MOST = 4000


@dataclass(frozen=True)
class StorageCost:
    """Search among vectors as they were, and as they are kept, by the same queries.

    Attributes:
        storage: How they are kept.
        queries, gallery: How many pictures were asked, and among how many.
        recall_at_1: With float32 vectors on both sides.
        kept_recall_at_1: With kept vectors on both sides.
        lost: Their difference, paired by query; resampled by class.
        lost_at_most: Upper bound of that difference, one-sided, at 95 %; see `hetero.verdict`.
        negative_flips: Share of queries that were right and are no longer.
        cosine_worst: The worst picture's cosine between the two.
    """

    storage: Storage
    queries: int
    gallery: int
    recall_at_1: Score
    kept_recall_at_1: Score
    lost: Score
    lost_at_most: float
    negative_flips: float
    cosine_worst: float

    def __str__(self) -> str:
        """One line for people."""
        ends = self.lost.ci or (self.lost.value, self.lost.value)
        was, now, lost, low, high, most, flips = (
            f"{100 * x:.2f}"
            for x in (
                *(self.recall_at_1.value, self.kept_recall_at_1.value, self.lost.value),
                *(*ends, self.lost_at_most, self.negative_flips),
            )
        )
        return (
            f"{self.storage}: Recall@1 {now} instead of {was} %: {lost} points lost ({low} to "
            f"{high}; at most {most} at 95 %), {flips} % negative flips, {self.queries} queries "
            f"among {self.gallery}"
        )


def storage_cost(
    bundle: Bundle,
    item: Artifact | None,
    images: Images,
    storage: Storage,
    reporter: Reporter,
    most: int = MOST,
) -> StorageCost:
    """What a storage costs, on pictures of the test split, embedded once more in float32.

    Args:
        bundle: Whose model.
        item: Its file, or None for PyTorch.
        images: With labels; files that cannot be decoded are passed over.
        storage: What the vectors are kept as.
        reporter: Where to say how far it is.
        most: Pictures taken; whole classes, by hash of their names.

    Raises:
        DataError: Nothing can be said: there are no labels, or no test split to search in.
    """
    if not images.labelled:
        raise DataError(f"{images.name}: no labels")
    some, pixels = _sample(images, bundle, most, reporter)
    task = evaluate.task(some, "test")
    at = {i: n for n, i in enumerate(some.ids)}
    parts = []
    with embedder_of(bundle, item) as embedder, reporter.bar("storage", len(task.ids)) as bar:
        for begin in range(0, len(task.ids), 256):
            ids = task.ids[begin : begin + 256]
            parts.append(embedder.embed(ids, np.stack([pixels[at[i]] for i in ids])))
            bar.advance(len(ids))
    rows = np.concatenate([p.vectors for p in parts])
    whole = Embeddings(bundle.space, task.ids, rows, parts[0].made_by)
    kept = stored(whole, storage)
    before, after = task.rank(whole, whole), task.rank(kept, kept)
    losses = per_query("recall", before) - per_query("recall", after)
    alike = np.einsum("nd,nd->n", whole.vectors, kept.vectors, dtype=np.float64)
    return StorageCost(
        storage=storage,
        queries=len(before.labels),
        gallery=len(task.gallery_ids),
        recall_at_1=evaluate.scores(before).recall_at_1,
        kept_recall_at_1=evaluate.scores(after).recall_at_1,
        lost=mean(losses, before.labels),
        lost_at_most=bound(paired(losses, before.labels).rows, 0.05, "high"),
        negative_flips=float(compare.flips(before, after).negative.mean()),
        cosine_worst=float(alike.min()),
    )


def _sample(
    images: Images, bundle: Bundle, most: int, reporter: Reporter
) -> tuple[Images, list[np.ndarray]]:
    """Whole classes of the test split, as a collection of those that can be decoded, and pixels."""
    order = sorted(
        images.classes("test"), key=lambda label: hashlib.sha256(label.encode()).digest()
    )
    members: dict[str, list[int]] = {}
    for row in images.rows("test"):
        members.setdefault(images.labels[row], []).append(row)
    rows: list[int] = []
    for label in order:
        if rows and len(rows) + len(members[label]) > most:
            break
        rows += members[label]
    good, pixels = list[int](), list[np.ndarray]()
    with reporter.bar("decode for the storage's cost", len(rows)) as bar:
        for row in rows[:most]:
            try:
                pixels.append(bundle.preprocess.pixels(images.read(row)))
                good.append(row)
            except DataError:
                pass
            bar.advance()

    def of(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(values[row] for row in good)

    some = replace(
        images,
        ids=of(images.ids),
        labels=of(images.labels),
        groups=of(images.groups),
        splits=of(images.splits),
        roles=of(images.roles),
        read=lambda n: images.read(good[n]),
    )
    return some, pixels
