"""Is a pair of models compatible, and what does it cost? Differences between corners, by metric.

A corner is a query model searching a gallery model's index: its `Ranks`. All corners compared are
about the same queries, so differences are paired, and intervals are resampled by class. A claim is
reported per metric: on small data Recall@1 and mAP disagree.

Terms after Shen et al., "Towards Backward-Compatible Representation Learning", CVPR 2020,
arXiv:2003.11942 (criterion, update gain) and Biondi et al., "CoReS", 2021, arXiv:2111.07632
(average compatibility and accuracy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from hetero.errors import DataError
from hetero.metrics import Score, mean, per_query
from hetero.retrieval import Ranks


@dataclass(frozen=True)
class Criterion:
    """Whether one corner beats another.

    Attributes:
        difference: Mean of the paired difference, in -1..1, with its interval.
        met: True or False where the interval lies on one side of 0 (or of a margin below it), None
            where it does not tell.
    """

    difference: Score
    met: bool | None


def difference(one: Ranks, other: Ranks, metric: str = "recall", k: int = 1) -> Score:
    """Mean of one corner's metric less the other's, paired by query.

    Args:
        one: A corner.
        other: Another one, about the same queries.
        metric: A module of `hetero.metrics`.
        k: Its cut-off.

    Raises:
        DataError: They are about different queries.
    """
    return mean(_difference(one, other, metric, k), one.labels)


def criterion(
    one: Ranks, other: Ranks, metric: str = "recall", k: int = 1, margin: float = 0.0
) -> Criterion:
    """Whether `one` scores above `other`: the empirical compatibility criterion.

    For an upgrade: after searching before's index, against before searching its own. For sizes:
    query searching the gallery's index, against the same architecture trained alone, searching its
    own.

    Args:
        one: See `difference`.
        other: See `difference`.
        metric: See `difference`.
        k: See `difference`.
        margin: What `one` may lose, in 0..1: then the claim is that it is not worse by more.
    """
    return held(difference(one, other, metric, k), margin)


def held(found: Score, margin: float = 0.0) -> Criterion:
    """Whether a difference lies above 0, or above what may be lost.

    Args:
        found: A mean difference, in -1..1.
        margin: What may be lost, in 0..1.
    """
    low, high = found.ci or (-1.0, 1.0)
    return Criterion(found, True if low > -margin else False if high < -margin else None)


def update_gain(
    crossed: Ranks, before: Ranks, unconstrained: Ranks, metric: str = "recall", k: int = 1
) -> float | None:
    """The share of an upgrade's benefit that is there without re-embedding the gallery.

    [M(after, before) - M(before, before)] / [M(free, free) - M(before, before)], where free is a
    model trained without the constraint. None unless the denominator's interval lies above 0: a
    share of nothing means nothing, and a share of a loss would read as a gain. Below 0 the
    compatible model is worse than no upgrade; above 1 better than a re-embedded gallery.

    Args:
        crossed: The upgraded model searching the index of before.
        before: The model of before searching its own index.
        unconstrained: The free model searching its own index.
        metric: See `difference`.
        k: See `difference`.
    """
    whole = difference(unconstrained, before, metric, k)
    if whole.ci is None or whole.ci[0] <= 0:
        return None
    return difference(crossed, before, metric, k).value / whole.value


def tax(unconstrained: Ranks, compatible: Ranks, metric: str = "recall", k: int = 1) -> Score:
    """What compatibility costs: M(free, free) - M(after, after); negative where it helps."""
    return difference(unconstrained, compatible, metric, k)


def paragon_gap(paragon: Ranks, crossed: Ranks, metric: str = "recall", k: int = 1) -> Score:
    """What the small query model costs: M(gallery, gallery) - M(query, gallery)."""
    return difference(paragon, crossed, metric, k)


def average_compatibility(scores: Float64[np.ndarray, "t u"]) -> float:
    """AC: the share of version pairs i > j with M(i, j) > M(j, j).

    Args:
        scores: Entry (i, j) is version i's queries in version j's index; versions ascend.

    Raises:
        DataError: Fewer than two versions, or not square.
    """
    _check(scores)
    rows, columns = np.tril_indices(len(scores), -1)
    return float((scores[rows, columns] > scores[columns, columns]).mean())


def average_accuracy(scores: Float64[np.ndarray, "t u"]) -> float:
    """AA: the mean over all version pairs i >= j.

    Args:
        scores: See `average_compatibility`.

    Raises:
        DataError: See `average_compatibility`.
    """
    _check(scores)
    return float(scores[np.tril_indices(len(scores))].mean())


def failing(scores: Float64[np.ndarray, "t u"], names: Sequence[str]) -> tuple[str, ...]:
    """The version pairs that break average compatibility, in words.

    Args:
        scores: See `average_compatibility`.
        names: Of the versions.
    """
    _check(scores)
    pairs = zip(*(x.tolist() for x in np.tril_indices(len(scores), -1)), strict=True)
    return tuple(
        f"{names[i]} in the index of {names[j]}: {scores[i, j]:.3f}, not above {scores[j, j]:.3f}"
        for i, j in pairs
        if not scores[i, j] > scores[j, j]
    )


def _difference(one: Ranks, other: Ranks, metric: str, k: int) -> Float64[np.ndarray, " q"]:
    if not np.array_equal(one.queries, other.queries):
        raise DataError("compatibility: the two corners are not about the same queries")
    apart: Float64[np.ndarray, " q"] = per_query(metric, one, k) - per_query(metric, other, k)
    return apart


def _check(scores: Float64[np.ndarray, "t u"]) -> None:
    if len(scores) < 2 or scores.shape != (len(scores), len(scores)):
        raise DataError(
            f"compatibility: a square matrix of two versions or more, got {scores.shape}"
        )
