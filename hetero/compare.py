"""Two embedders, the same pictures: how far apart, and does it matter?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from hetero.errors import DataError
from hetero.retrieval import Ranks, Truth, pairwise_cosine, search
from hetero.space import Embeddings


@dataclass(frozen=True)
class Agreement:
    """How well two sets of vectors for the same pictures agree.

    Attributes:
        cosine: One per id, in the order of the reference.
        worst_id: The id of the smallest cosine.
        overlap: Per query, the share of its first k neighbours that both find.
    """

    cosine: Float64[np.ndarray, " n"]
    worst_id: str
    overlap: Float64[np.ndarray, " n"]


def agreement(
    reference: Embeddings, candidate: Embeddings, gallery: Embeddings, truth: Truth, k: int = 10
) -> Agreement:
    """Cosine per picture, and neighbours kept when searching `gallery`.

    Args:
        reference: Vectors to hold against, for example PyTorch's.
        candidate: Vectors of the same ids, for example a device's.
        gallery: What both search.
        truth: Says which gallery rows are hidden from a query; rows as in `reference`.
        k: Neighbours looked at.

    Raises:
        SpaceMismatchError: They are not all in one space.
        DataError: An id is missing.
    """
    cosine = pairwise_cosine(reference, candidate)
    ours, _ = search(reference, gallery, k, truth=truth)
    theirs, _ = search(candidate.take(reference.ids), gallery, k, truth=truth)
    overlap = np.asarray(
        [
            len(np.intersect1d(a[a >= 0], b[b >= 0])) / max(1, int(np.count_nonzero(a >= 0)))
            for a, b in zip(ours, theirs, strict=True)
        ]
    )
    return Agreement(cosine, reference.ids[int(cosine.argmin())], overlap)


@dataclass(frozen=True)
class Flips:
    """Queries whose first answer changed sides.

    Attributes:
        negative: Right before, wrong after, per query.
        positive: Wrong before, right after, per query.
    """

    negative: Bool[np.ndarray, " q"]
    positive: Bool[np.ndarray, " q"]


def flips(before: Ranks, after: Ranks) -> Flips:
    """Negative and positive flips of the first answer, per query.

    After positive-congruent training (Yan et al., CVPR 2021, arXiv:2011.09161), carried over from
    classification to retrieval: a query counts as right if its first answer is.

    Raises:
        DataError: The two are not about the same queries.
    """
    if not np.array_equal(before.queries, after.queries):
        raise DataError("flips: the two rankings are not about the same queries")
    was, now = before.best == 0, after.best == 0
    return Flips(was & ~now, ~was & now)
