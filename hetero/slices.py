"""A score by slice: which class, camera, brightness or size is served worst?

The worst of many slices looks bad by luck alone. So each slice's interval here is simultaneous
(Bonferroni: with m slices each is taken at 1 - 0.05/m), slices with few queries are left out, and
the worst slice is the one whose interval *ends* lowest, not the one whose mean is lowest. Classes
are resampled; a slice of one class has only its queries to resample. Where all outcomes are 0, or
all 1, the interval is Clopper and Pearson's with as many trials as there are classes or queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

from hetero.errors import DataError
from hetero.metrics import Score, mean


@dataclass(frozen=True)
class Slices:
    """Scores of the slices with enough queries.

    Attributes:
        scores: Slice to its mean, simultaneous interval and number of queries, by name.
        worst: The slice whose interval ends lowest.
        left_out: Slices with too few queries.
    """

    scores: dict[str, Score]
    worst: str
    left_out: tuple[str, ...]


def by_slice(
    values: Float64[np.ndarray, " q"],
    clusters: Sequence[str],
    slices: Sequence[str],
    min_n: int = 30,
    confidence: float = 0.95,
) -> Slices:
    """The mean of each slice, with intervals that hold for all of them at once.

    Args:
        values: One per query, from `hetero.metrics.per_query`.
        clusters: The class of each query.
        slices: The slice of each query.
        min_n: Queries below which a slice is left out.
        confidence: Of all intervals together.

    Raises:
        DataError: Lengths differ, or no slice has enough queries.
    """
    if not len(values) == len(clusters) == len(slices):
        raise DataError(
            f"slices: {len(values)} values, {len(clusters)} classes, {len(slices)} slice names"
        )
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(slices):
        rows.setdefault(name, []).append(row)
    kept = {name: r for name, r in sorted(rows.items()) if len(r) >= min_n}
    if not kept:
        raise DataError(f"slices: none of {len(rows)} slices has {min_n} queries; lower min_n")
    each = 1 - (1 - confidence) / len(kept)
    scores = {name: _score(values[r], [clusters[i] for i in r], each) for name, r in kept.items()}
    worst = min(scores, key=lambda name: ((scores[name].ci or (0.0, 1.0))[1], scores[name].value))
    return Slices(scores, worst, tuple(sorted(set(rows) - set(kept))))


def _score(values: Float64[np.ndarray, " q"], clusters: Sequence[str], confidence: float) -> Score:
    units = list(clusters) if len(set(clusters)) > 1 else [str(i) for i in range(len(values))]
    if np.ptp(values) == 0 and values[0] in (0.0, 1.0):
        from scipy.stats import binomtest

        trials = len(set(units))
        exact = binomtest(round(values[0] * trials), trials).proportion_ci(confidence)
        return Score(float(values[0]), (float(exact.low), float(exact.high)), len(values))
    # Twenty resamples in each tail at least.
    resamples = max(2000, math.ceil(40 / (1 - confidence)))
    return mean(values, units, resamples=resamples, confidence=confidence)


def by_brightness(pixels: UInt8[np.ndarray, "n h w 3"]) -> tuple[str, ...]:
    """Tercile of mean luminance of each picture: "dark", "medium", "bright" (ITU-R BT.601)."""
    luminance = pixels.reshape(len(pixels), -1, 3).mean(1) @ np.asarray([0.299, 0.587, 0.114])
    return terciles(luminance, ("dark", "medium", "bright"))


def by_size(sizes_px: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Tercile of each picture's area before resizing: "small", "medium", "large".

    Args:
        sizes_px: Height and width.
    """
    areas = np.asarray([height * width for height, width in sizes_px], dtype=np.float64)
    return terciles(areas, ("small", "medium", "large"))


def terciles(values: Float64[np.ndarray, " n"], names: tuple[str, str, str]) -> tuple[str, ...]:
    """The name of the third each value is in; equal values are always in one third."""
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    return tuple(names[0] if v <= low else names[1] if v <= high else names[2] for v in values)
