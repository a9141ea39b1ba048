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


def rank_biased_overlap(
    reference: Embeddings,
    candidate: Embeddings,
    gallery: Embeddings,
    truth: Truth,
    k: int = 50,
    p: float = 0.9,
) -> Float64[np.ndarray, " q"]:
    """How alike two rankings of the gallery are, per query, the top counting most; 0..1.

    Webber, Moffat and Zobel, "A similarity measure for indefinite rankings", ACM TOIS 2010: the
    extrapolated form of two lists of equal depth, RBO_ext = X_k/k·p^k + (1-p)/p·Σ X_d/d·p^d with
    X_d the overlap of the first d. With p = 0.9 the first ten places carry 86 % of the weight.

    Args:
        reference: Vectors to hold against.
        candidate: Vectors of the same ids.
        gallery: What both search.
        truth: Says which gallery rows are hidden; rows as in `reference`.
        k: Depth of the lists.
        p: Persistence, between 0 and 1.

    Raises:
        SpaceMismatchError: They are not all in one space.
        DataError: An id is missing, or p is not between 0 and 1.
    """
    if not 0 < p < 1:
        raise DataError(f"rank-biased overlap: p lies between 0 and 1, got {p}")
    ours, _ = search(reference, gallery, k, truth=truth)
    theirs, _ = search(candidate.take(reference.ids), gallery, k, truth=truth)
    out = np.empty(len(ours))
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        depth = int(np.count_nonzero(a >= 0))
        # Place (1 ..) of each common row in the longer of the two prefixes that hold it.
        common, at, to = np.intersect1d(a[:depth], b[:depth], return_indices=True)
        entered = np.bincount(np.maximum(at, to), minlength=depth)[:depth] if len(common) else 0
        overlap = np.cumsum(np.broadcast_to(entered, depth))
        places = np.arange(1, depth + 1)
        tail = overlap[-1] / depth * p**depth if depth else 0.0
        out[row] = tail + (1 - p) / p * float((overlap / places * p**places).sum())
    return out


@dataclass(frozen=True)
class Hubness:
    """How unevenly a search hands out its places.

    Attributes:
        skewness: Third standardised moment of how often a gallery row is among the first k; 0 for a
            symmetric spread, large where a few rows are everybody's neighbours.
        never: Share of gallery rows that no query finds.
        busiest_id: The row found most often.
        busiest: How often it is found, as a share of queries.
    """

    skewness: float
    never: float
    busiest_id: str
    busiest: float


def hubness(queries: Embeddings, gallery: Embeddings, truth: Truth, k: int = 10) -> Hubness:
    """Skewness of k-occurrence, and its extremes.

    Radovanovic, Nanopoulos and Ivanovic, "Hubs in Space", JMLR 2010.

    Args:
        queries: Rows as in `truth`.
        gallery: Rows as in `truth`.
        truth: Says which gallery rows are hidden.
        k: Places looked at.

    Raises:
        SpaceMismatchError: The two are not in one space.
    """
    from scipy.stats import skew

    found, _ = search(queries, gallery, k, truth=truth)
    times = np.bincount(found[found >= 0], minlength=len(gallery))
    most = int(times.argmax())
    even = float(np.ptp(times)) == 0
    return Hubness(
        0.0 if even else float(skew(times)),
        float((times == 0).mean()),
        gallery.ids[most],
        float(times[most] / len(queries)),
    )


@dataclass(frozen=True)
class ScoreScale:
    """Whether query-gallery cosines mean what gallery-gallery cosines mean.

    Attributes:
        same, other: Mean cosine of same-class and of different-class pairs, query model against
            gallery model.
        gallery_same, gallery_other: The same with the gallery model on both sides.
        threshold: Cosine at which the gallery model's own pairs have the FPR asked for.
        tpr, fpr: What the query model's pairs do at that threshold.
        gallery_tpr: What the gallery model's own pairs do there.
    """

    same: float
    other: float
    gallery_same: float
    gallery_other: float
    threshold: float
    tpr: float
    fpr: float
    gallery_tpr: float


def score_scale(
    query: Embeddings, anchor: Embeddings, gallery: Embeddings, truth: Truth, fpr: float = 0.01
) -> ScoreScale:
    """Same-class and different-class cosines of the two systems, and one threshold for both.

    Args:
        query: The query model's vectors of the query pictures; rows as in `truth`.
        anchor: The gallery model's vectors of the same pictures.
        gallery: The gallery model's vectors of the gallery pictures.
        truth: Classes, and groups that hide pairs.
        fpr: Where the gallery model's own threshold is put.

    Raises:
        SpaceMismatchError: They are not all in one space.
        DataError: There are no pairs of one kind.
    """
    from hetero.verification import at_threshold, mean_cosines, tpr_at_fpr

    own = tpr_at_fpr(anchor, gallery, truth, fpr)
    found = at_threshold(query, gallery, truth, own.threshold)
    return ScoreScale(
        *mean_cosines(query, gallery, truth),
        *mean_cosines(anchor, gallery, truth),
        own.threshold,
        found.tpr.value,
        found.fpr,
        own.tpr.value,
    )
