"""Verification: is this pair of pictures of one class? Asked of every visible query-gallery pair.

TPR@FPR is the share of same-class pairs above the threshold that lets a given share of
different-class pairs through. Biometrics calls the same numbers match rates: FMR is the FPR, FNMR
is 1 - TPR (ISO/IEC 19795-1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from hetero.errors import DataError
from hetero.metrics import Score, ratio
from hetero.retrieval import Truth, blocks
from hetero.space import Embeddings

#: Bins of cosine in the first pass, which only has to bracket the threshold.
_BINS = 1 << 16


@dataclass(frozen=True)
class Operating:
    """A threshold and what it lets through.

    Attributes:
        fpr: Share of different-class pairs at or above the threshold, at most what was asked for.
        threshold: The smallest cosine that keeps to it.
        tpr: Share of same-class pairs at or above the threshold, with an interval over classes.
        same, other: How many pairs of each kind there are.
    """

    fpr: float
    threshold: float
    tpr: Score
    same: int
    other: int

    @property
    def fnmr(self) -> float:
        """1 - TPR."""
        return 1.0 - self.tpr.value


def tpr_at_fpr(
    queries: Embeddings, gallery: Embeddings, truth: Truth, fpr: float = 0.01
) -> Operating:
    """The true positive rate where at most a share `fpr` of different-class pairs gets through.

    Exact, and bounded in memory: a first pass over blocks of similarities counts them in fine bins,
    a second one keeps only the different-class cosines of the bin that holds the threshold.

    Args:
        queries: Rows as in `truth`.
        gallery: Rows as in `truth`, in the queries' space.
        truth: Classes, and groups that hide pairs.
        fpr: Share of different-class pairs, 0..1 (the FMR).

    Raises:
        DataError: `fpr` is out of range, or there are no pairs of one kind.
    """
    if not 0 <= fpr <= 1:
        raise DataError(f"verification: fpr is a share from 0 to 1, got {fpr}")
    counts = np.zeros(_BINS, dtype=np.int64)
    same = 0
    for cosine, right, seen in _pairs(queries, gallery, truth):
        counts += np.bincount(_bin(cosine[seen & ~right]), minlength=_BINS)
        same += int(np.count_nonzero(seen & right))
    other = int(counts.sum())
    if not same or not other:
        raise DataError(f"verification: {same} same-class and {other} different-class pairs")
    # A share such as 0.07 is not a float; what it was meant to be must not be missed by that.
    allowed = int(np.floor(fpr * other * (1 + 1e-12)))
    if allowed >= other:
        threshold = -np.inf
    else:
        # The threshold lies just above the (allowed + 1)-th largest different-class cosine.
        above = other - np.cumsum(counts)
        at = int(np.flatnonzero(above <= allowed)[0])
        inside = np.concatenate(
            [
                some[_bin(some) == at]
                for cosine, right, seen in _pairs(queries, gallery, truth)
                for some in (cosine[seen & ~right],)
            ]
        )
        # Two products of the same numbers may differ in the last bit and fall into the next bin.
        rank = min(allowed - int(above[at]), len(inside) - 1)
        limit = np.sort(inside)[::-1][rank]
        threshold = float(np.nextafter(limit, np.float32(2), dtype=np.float32))
    return at_threshold(queries, gallery, truth, threshold)


def at_threshold(
    queries: Embeddings, gallery: Embeddings, truth: Truth, threshold: float
) -> Operating:
    """What a given cosine threshold lets through, of same-class and of different-class pairs.

    Args:
        queries: As for `tpr_at_fpr`.
        gallery: As for `tpr_at_fpr`.
        truth: As for `tpr_at_fpr`.
        threshold: Cosine.

    Raises:
        DataError: There are no pairs of one kind.
    """
    hits, same, false, other = [], [], 0, 0
    limit = np.float32(threshold)
    for cosine, right, seen in _pairs(queries, gallery, truth):
        passed = cosine >= limit
        hits.append(np.count_nonzero(passed & right & seen, axis=1))
        same.append(np.count_nonzero(right & seen, axis=1))
        false += int(np.count_nonzero(passed & ~right & seen))
        other += int(np.count_nonzero(~right & seen))
    hit, pairs = np.concatenate(hits), np.concatenate(same)
    total = int(pairs.sum())
    if not total or not other:
        raise DataError(f"verification: {total} same-class and {other} different-class pairs")
    # Each pair is one outcome of its query's class; classes are resampled.
    _, code = np.unique(np.asarray(truth.query_labels), return_inverse=True)
    sums, counts = (np.bincount(code, weights=x).astype(np.float64) for x in (hit, pairs))
    score = ratio(sums, counts)
    return Operating(false / other, float(threshold), score, total, other)


def mean_cosines(queries: Embeddings, gallery: Embeddings, truth: Truth) -> tuple[float, float]:
    """Mean cosine of the visible same-class pairs, and of the different-class pairs.

    Raises:
        DataError: There are no pairs of one kind.
    """
    sums, counts = np.zeros(2), np.zeros(2)
    for cosine, right, seen in _pairs(queries, gallery, truth):
        for side, chosen in enumerate((right & seen, ~right & seen)):
            sums[side] += cosine[chosen].sum(dtype=np.float64)
            counts[side] += np.count_nonzero(chosen)
    if not counts.all():
        raise DataError(
            f"verification: {counts[0]:.0f} same-class and {counts[1]:.0f} different-class pairs"
        )
    return float(sums[0] / counts[0]), float(sums[1] / counts[1])


def _bin(cosine: Float32[np.ndarray, " n"]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.clip((cosine.astype(np.float64) + 1) / 2 * _BINS, 0, _BINS - 1).astype(np.int64)


def _pairs(
    queries: Embeddings, gallery: Embeddings, truth: Truth
) -> Iterator[tuple[Float32[np.ndarray, "b g"], Bool[np.ndarray, "b g"], Bool[np.ndarray, "b g"]]]:
    """Cosines of a block of queries, which pairs are of one class, which are visible."""
    labels, groups = (
        np.unique(np.asarray([*truth.query_labels, *truth.gallery_labels]), return_inverse=True)[1],
        np.unique(np.asarray([*truth.query_groups, *truth.gallery_groups]), return_inverse=True)[1],
    )
    split = len(truth.query_labels)
    for begin, cosine in blocks(queries, gallery, truth):
        rows = slice(begin, begin + len(cosine))
        right = labels[:split][rows, None] == labels[None, split:]
        seen = groups[:split][rows, None] != groups[None, split:]
        yield cosine, right, seen
