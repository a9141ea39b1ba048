"""Retrieval metrics: one module each, a pure function of `Ranks`, one value per query.

A metric is a module of this folder with ``per_query(ranks, k) -> float64 (queries,)``, values in
0..1, better is higher; `k` is ignored by metrics that look at the whole ranking. Means and
intervals are taken here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from hetero import _plugins
from hetero.errors import DataError
from hetero.retrieval import Ranks


@dataclass(frozen=True)
class Score:
    """A mean over queries with its interval, of 95 % unless asked otherwise.

    Attributes:
        value: The mean.
        ci: Bootstrap percentile interval, resampled by class; None with fewer than two classes.
        n: Number of queries.
    """

    value: float
    ci: tuple[float, float] | None
    n: int


def per_query(metric: str, ranks: Ranks, k: int = 1) -> Float64[np.ndarray, " q"]:
    """The metric's value for each answerable query.

    Args:
        metric: A module of this folder, or a dotted path to one's own.
        ranks: From `hetero.retrieval.rank`.
        k: Cut-off, for metrics that have one.
    """
    values: Float64[np.ndarray, " q"] = _plugins.load(__name__, metric).per_query(ranks, k)
    return values


def mean(
    values: Float64[np.ndarray, " q"],
    clusters: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Score:
    """The mean and an interval that respects that queries of one class resemble each other.

    Classes, not queries, are resampled: queries of one class are not independent, and an interval
    over queries would be too narrow.

    Args:
        values: One per query.
        clusters: The class of each query.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap; equal input gives equal intervals.
        confidence: Of the interval.
    """
    if len(values) == 0 or len(values) != len(clusters):
        raise DataError(f"a mean of {len(values)} values in {len(clusters)} clusters is undefined")
    _, code = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(code, weights=values), np.bincount(code).astype(np.float64)
    if np.ptp(values) == 0 and len(sums) > 1:
        value = float(values.mean())
        return Score(value, (value, value), len(values))
    return ratio(sums, counts, resamples, seed, confidence)


def ratio(
    sums: Float64[np.ndarray, " c"],
    counts: Float64[np.ndarray, " c"],
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Score:
    """The mean of outcomes that are known by class only, as `mean` gives it.

    Args:
        sums: Of each class's outcomes.
        counts: How many they are; not all 0.
        resamples: See `mean`.
        seed: See `mean`.
        confidence: See `mean`.
    """
    total = int(counts.sum())
    value = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Score(value, None, total)
    from scipy.stats import bootstrap

    # Classes without an outcome say nothing, and a resample of them alone would be undefined.
    sums, counts = sums[counts > 0], counts[counts > 0]
    found = bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=max(1, 2**22 // len(sums)),
    ).confidence_interval
    return Score(value, (float(found.low), float(found.high)), total)
