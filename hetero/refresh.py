"""An index that is re-embedded bit by bit: mixed galleries, refresh curves, scales that agree.

While a gallery is refreshed, rows of the older and of the newer model stand in one index and are
ranked together. The refresh curve is a metric over the share that is re-embedded; its area is the
metric's mean over the time a refresh at constant speed takes. Which pictures come first is a
choice, and good orders have a larger area.

Papers: Jaeckle, Faghri, Farhadi, Tuzel and Pouransari, "FastFill: Efficient Compatible Model
    Update", ICLR 2023, arXiv:2303.04766, the curve, its area, and re-embedding the most uncertain
    first; Platt, "Probabilistic Outputs for Support Vector Machines", 1999, the odds of a score.
Differs: uncertainty is not learnt beside a transformation: it is how far old and new vectors of the
    nearest training pictures lie apart. That scores of the two kinds of rows are brought to one
    scale by their odds has no paper that we know of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from hetero.errors import DataError
from hetero.evaluate import Task
from hetero.metrics import per_query
from hetero.retrieval import Ranks, rank, search
from hetero.space import Embeddings, Space


class NoCorrectionError(DataError):
    """No rising correction makes the scores of old and new rows agree."""


#: Shares at which a curve is taken unless others are asked for.
SHARES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)

#: Training pictures that say how uncertain an old vector is.
NEIGHBOURS = 16


@dataclass(frozen=True)
class Curve:
    """A metric over the re-embedded share.

    Attributes:
        shares: Ascending, in 0..1, at least two.
        scores: One for each share.
    """

    shares: tuple[float, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is no curve."""
        rising = all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False))
        inside = len(self.shares) >= 2 and self.shares[0] >= 0 and self.shares[-1] <= 1
        if len(self.shares) != len(self.scores) or not (rising and inside):
            raise DataError(
                f"refresh curve: shares ascend in 0..1, two or more, with a score each; got "
                f"{self.shares} and {len(self.scores)} scores"
            )

    @property
    def area(self) -> float:
        """The mean score over the shares, by trapezoids: E[M(share)] for shares from 0 to 1."""
        width = self.shares[-1] - self.shares[0]
        return float(np.trapezoid(self.scores, self.shares)) / width

    @property
    def dip(self) -> float:
        """How far the curve ever falls below its first score; 0 where it never does."""
        return max(0.0, self.scores[0] - min(self.scores))

    @property
    def sag(self) -> float:
        """How far the curve falls below the straight line between its ends, at most; at least 0."""
        ends = (self.shares[0], self.shares[-1]), (self.scores[0], self.scores[-1])
        line = np.interp(self.shares, *ends)
        return float(max(0.0, (line - np.asarray(self.scores)).max()))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves at the same shares."""
    if len({c.shares for c in curves}) != 1:
        raise DataError("refresh curves: their mean needs one or more, at the same shares")
    scores = np.asarray([c.scores for c in curves]).mean(0)
    return Curve(curves[0].shares, tuple(scores.tolist()))


@dataclass(frozen=True)
class Correction:
    """Brings cosines to older rows to the scale of cosines to newer ones: slope·cosine + offset.

    Attributes:
        slope: Above 0, so that the order among older rows stays.
        offset: Added.
    """

    slope: float
    offset: float

    def __post_init__(self) -> None:
        """Refuse what would turn an order round."""
        if not (0 < self.slope < np.inf and np.isfinite(self.offset)):
            raise NoCorrectionError(
                f"score correction: slope {self.slope:.3g}, offset {self.offset:.3g}: the older "
                "rows' cosines do not rise from wrong to right answers, so no rising correction "
                "makes them agree; re-embed instead"
            )


def mixed(before: Embeddings, after: Embeddings, refreshed: Collection[str]) -> Embeddings:
    """The gallery with some rows re-embedded, in the order of `before`.

    Args:
        before: By the older model.
        after: By the newer one, in the same space, at least the refreshed rows.
        refreshed: Ids of the rows to be taken from `after`.

    Raises:
        SpaceMismatchError: Two spaces.
        DataError: A refreshed id is not in both.
    """
    before.space.must_match(after.space, f"re-embedded rows by {after.made_by}")
    some = [i for i in before.ids if i in set(refreshed)]
    if len(some) < len(set(refreshed)):
        raise DataError(f"refresh: {len(set(refreshed)) - len(some)} ids are not in the gallery")
    vectors = before.vectors.copy()
    where = {i: row for row, i in enumerate(before.ids)}
    vectors[[where[i] for i in some]] = after.take(some).vectors
    who = f"{len(some)} of {len(before)} rows by {after.made_by}, the rest by {before.made_by}"
    return Embeddings(before.space, before.ids, vectors, who)


def at_random(ids: Sequence[str], seed: int) -> tuple[str, ...]:
    """The ids in a random order."""
    order = np.random.default_rng(seed).permutation(len(ids))
    return tuple(ids[i] for i in order)


def uncertainty(
    gallery: Embeddings, before: Embeddings, after: Embeddings, neighbours: int = NEIGHBOURS
) -> Float64[np.ndarray, " n"]:
    """How far each gallery row is expected to move when it is re-embedded, in 1 - cosine.

    The mean over the training pictures whose old vectors are nearest to it. The gallery's new
    vectors are not needed: they are what a refresh is to make.

    Args:
        gallery: The rows in the index, by the older model.
        before: Training pictures by the older model.
        after: The same pictures by the newer model, in the same space.
        neighbours: How many; at most all of them.
    """
    before.space.must_match(after.space, f"training vectors by {after.made_by}")
    theirs = after.take(before.ids).vectors.astype(np.float64)
    moved = 1 - np.einsum("nd,nd->n", before.vectors.astype(np.float64), theirs)
    rows, _ = search(gallery, before, min(neighbours, len(before)))
    expected: Float64[np.ndarray, " n"] = moved[rows].mean(1)
    return expected


def most_first(ids: Sequence[str], value: Float64[np.ndarray, " n"]) -> tuple[str, ...]:
    """The ids by falling value; equal ones as they are."""
    return tuple(ids[i] for i in np.argsort(-value, kind="stable"))


def fit_correction(
    task: Task, queries: Embeddings, before: Embeddings, after: Embeddings
) -> Correction:
    """The correction under which equal scores mean equal odds of a right answer on both sides.

    Bringing means together would be simpler, and worse: it makes the older rows' errors louder.

    Args:
        task: A labelled task other than the one to be scored: the validation split's.
        queries: Of all its pictures.
        before: Of all its pictures, by the older model.
        after: The same by the newer model.

    Raises:
        NoCorrectionError: No rising correction does it.
        SpaceMismatchError: Two spaces.
    """
    (old_slope, old_bias), (slope, bias) = (_odds(task, queries, rows) for rows in (before, after))
    if min(old_slope, slope) <= 0:
        return Correction(min(old_slope, slope), 0.0)  # refused, in its own words
    return Correction(old_slope / slope, (old_bias - bias) / slope)


def _odds(task: Task, queries: Embeddings, gallery: Embeddings) -> tuple[float, float]:
    """Slope and bias of the log-odds that a visible row is right, over its cosine."""
    from scipy.optimize import minimize
    from scipy.special import expit, log_expit

    gallery.space.must_match(queries.space, f"queries by {queries.made_by}")
    ours, theirs = queries.take(task.query_ids).vectors, gallery.take(task.gallery_ids).vectors
    visible = ~_equal(task.truth.query_groups, task.truth.gallery_groups)
    cosine = (ours @ theirs.T)[visible].astype(np.float64)
    right = _equal(task.truth.query_labels, task.truth.gallery_labels)[visible]
    # Platt's targets: short of certain, so that rows that never err have a finite slope.
    yes, no = int(right.sum()), int((~right).sum())
    target = np.where(right, (yes + 1) / (yes + 2), 1 / (no + 2))

    def loss(x: Float64[np.ndarray, " 2"]) -> tuple[float, Float64[np.ndarray, " 2"]]:
        score = x[0] * cosine + x[1]
        value = -(target * log_expit(score) + (1 - target) * log_expit(-score)).mean()
        off = expit(score) - target
        return float(value), np.asarray([(off * cosine).mean(), off.mean()])

    start = np.asarray([1.0, np.log((yes + 1) / (no + 1))])
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return float(found[0]), float(found[1])


def _equal(one: Sequence[str], other: Sequence[str]) -> Bool[np.ndarray, "a b"]:
    found: Bool[np.ndarray, "a b"] = np.asarray(one)[:, None] == np.asarray(other)[None]
    return found


def corrected(
    queries: Embeddings, gallery: Embeddings, older: Collection[str], correction: Correction
) -> tuple[Embeddings, Embeddings]:
    """Both sides with two more numbers, so that plain cosine search ranks by corrected scores.

    A query q becomes (q, 1, 0), a newer row g (g, 0, a) and an older one (slope·g, offset, b), all
    over a common length that a and b fill up. So an index needs no change to be corrected, and the
    two numbers can be dropped when the last row is re-embedded.

    Args:
        queries: In the gallery's space.
        gallery: Rows by both models.
        older: Ids of the rows by the older one.
        correction: For those.
    """
    gallery.space.must_match(queries.space, f"queries by {queries.made_by}")
    old = np.isin(np.asarray(gallery.ids), list(older))
    slope = np.where(old, correction.slope, 1.0)
    offset = np.where(old, correction.offset, 0.0)
    most = max(1.0, float(np.hypot(correction.slope, correction.offset)))
    fill = np.sqrt(np.maximum(0.0, most**2 - slope**2 - offset**2))
    theirs = np.column_stack([slope[:, None] * gallery.vectors, offset, fill])
    ones = np.ones(len(queries))
    ours = np.column_stack([queries.vectors, ones, 0 * ones])
    text = f"hetero.corrected/1 {gallery.space.digest} {correction.slope} {correction.offset}"
    name = hashlib.sha256(text.encode()).hexdigest()
    space = Space(f"{gallery.space.name}-corrected", name, gallery.space.dim + 2)
    return (
        Embeddings.normalised(space, queries.ids, ours, queries.made_by),
        Embeddings.normalised(space, gallery.ids, theirs, f"{gallery.made_by}, corrected"),
    )


def ranks(
    task: Task,
    queries: Embeddings,
    before: Embeddings,
    after: Embeddings,
    refreshed: Collection[str],
    correction: Correction | None = None,
) -> Ranks:
    """What is found in the task's gallery when some of its rows are re-embedded.

    Args:
        task: What is asked, and of which gallery.
        queries: By the model that asks, of all its pictures.
        before: By the older gallery model, or rows of several.
        after: By the newer one, in the same space.
        refreshed: Ids of the rows that are taken from `after`.
        correction: Of cosines to the others.

    Raises:
        DataError: A refreshed id is not in the gallery.
        SpaceMismatchError: The vectors are of several spaces.
    """
    ours = queries.take(task.query_ids)
    theirs = mixed(before.take(task.gallery_ids), after, refreshed)
    if correction is not None:
        older = set(task.gallery_ids) - set(refreshed)
        ours, theirs = corrected(ours, theirs, older, correction)
    return rank(ours, theirs, task.truth)


def curve(
    task: Task,
    queries: Embeddings,
    before: Embeddings,
    after: Embeddings,
    order: Sequence[str],
    *,
    shares: Sequence[float] = SHARES,
    metric: str = "average_precision",
    k: int = 1,
    correction: Correction | None = None,
) -> Curve:
    """The refresh curve of a task's gallery.

    Args:
        task: What is asked, and of which gallery.
        queries: By the model that asks, of all its pictures.
        before: By the older gallery model.
        after: By the newer one, in the same space.
        order: The gallery's ids, the first to be re-embedded first.
        shares: At which to score.
        metric: A module of `hetero.metrics`.
        k: Its cut-off.
        correction: Of cosines to older rows.

    Raises:
        DataError: `order` is not the gallery's ids, or the shares are no curve.
        SpaceMismatchError: The vectors are of several spaces.
    """
    if sorted(order) != sorted(task.gallery_ids):
        raise DataError(f"refresh: an order of {len(order)} ids that are not the gallery's")
    scores = []
    for share in shares:
        done = order[: round(share * len(order))]
        found = ranks(task, queries, before, after, done, correction)
        scores.append(float(per_query(metric, found, k).mean()))
    return Curve(tuple(float(s) for s in shares), tuple(scores))
