"""The open-set retrieval task of a collection: which pictures are queries, which the gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from hetero.data import Images, Split
from hetero.errors import DataError
from hetero.metrics import Score, mean, per_query
from hetero.retrieval import Ranks, Truth, rank
from hetero.space import Embeddings, Space


@dataclass(frozen=True, eq=False)
class Task:
    """Queries and gallery of one split, and which answers are right.

    Attributes:
        rows: Row numbers in the collection of every picture the task needs, each once.
        ids: Their ids.
        query_ids, gallery_ids: Which of them are queries and gallery.
        truth: Labels and groups, in the order of `query_ids` and `gallery_ids`.
    """

    rows: tuple[int, ...]
    ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    gallery_ids: tuple[str, ...]
    truth: Truth

    def rank(self, queries: Embeddings, gallery: Embeddings) -> Ranks:
        """The ranks of right answers; both sides are taken by id from vectors of all pictures."""
        return rank(queries.take(self.query_ids), gallery.take(self.gallery_ids), self.truth)


def task(images: Images, split: Split) -> Task:
    """The retrieval task of a split.

    Without labels a query's one right answer is the very same picture, embedded by the gallery
    model; within one model that is no task, and every score is 1.

    Raises:
        DataError: The split has no query or no gallery picture, no query has a right answer, or
            training saw its classes.
    """
    if images.closed:
        raise DataError(
            f"{images.name}: its {split} classes are those of training, and search is measured on "
            "classes that training never saw; this collection is for classifiers (`hetero pct`)"
        )
    rows = images.rows(split)
    queries = [r for r in rows if images.roles[r] in ("query", "both")]
    gallery = [r for r in rows if images.roles[r] in ("gallery", "both")]
    if not queries or not gallery:
        raise DataError(
            f"{images.name}: the {split} split has {len(queries)} queries and {len(gallery)} "
            "gallery pictures; evaluation needs both, so give it more classes or more pictures "
            "per class"
        )
    # A picture is hidden from its own query by its group, unless it is the answer wanted.
    gallery_groups = tuple(images.groups[r] if images.labelled else "" for r in gallery)
    truth = Truth(
        tuple(images.labels[r] for r in queries),
        tuple(images.groups[r] for r in queries),
        tuple(images.labels[r] for r in gallery),
        gallery_groups,
    )
    groups: dict[str, set[str]] = {}
    for r, group in zip(gallery, gallery_groups, strict=True):
        groups.setdefault(images.labels[r], set()).add(group)
    if not any(groups.get(images.labels[r], set()) - {images.groups[r]} for r in queries):
        raise DataError(
            f"{images.name}: no query of the {split} split has a right answer in the gallery; "
            "every class needs two pictures of different groups, one a query and one in the gallery"
        )
    used = sorted({*queries, *gallery})
    return Task(
        tuple(used),
        tuple(images.ids[r] for r in used),
        tuple(images.ids[r] for r in queries),
        tuple(images.ids[r] for r in gallery),
        truth,
    )


@dataclass(frozen=True)
class Scores:
    """What one ranking is worth, each with its interval."""

    recall_at_1: Score
    recall_at_5: Score
    map: Score


def scores(ranks: Ranks) -> Scores:
    """Recall@1, Recall@5 and mAP over the answerable queries."""
    return Scores(
        mean(per_query("recall", ranks, 1), ranks.labels),
        mean(per_query("recall", ranks, 5), ranks.labels),
        mean(per_query("average_precision", ranks), ranks.labels),
    )


def raw_pixels(
    ids: Sequence[str], pixels: UInt8[np.ndarray, "n s s 3"], side: int = 16
) -> Embeddings:
    """Embeddings that are the centred pixels themselves at 16x16: the baseline without a model."""
    from PIL import Image

    reduced: Float32[np.ndarray, "n d"] = np.stack(
        [
            np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BOX), np.float32)
            for p in pixels
        ]
    ).reshape(len(pixels), -1)
    # A constant extra column keeps a picture of the mean colour from being a zero row.
    centred = reduced - reduced.mean(0)
    rows = np.concatenate([centred, np.ones((len(centred), 1), np.float32)], axis=1)
    space = Space("pixels", "0" * 64, rows.shape[1])
    return Embeddings.normalised(space, ids, rows, "raw pixels")
