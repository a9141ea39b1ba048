"""What each stage lost, between two points along the way that are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hetero.diagnose._diagnosis import Loss
from hetero.diagnose._evidence import departure
from hetero.diagnose._pipeline import Array, unit


def fit_shape(rows: Array, like: Array) -> Array:
    """Rows of the space's dimension: cut, or filled with zeros; numbers that are none are zero."""
    out = np.zeros_like(like)
    k = min(rows.shape[1], like.shape[1])
    out[:, :k] = np.nan_to_num(rows[:, :k], nan=0.0, posinf=0.0, neginf=0.0)
    return unit(out)


def losses(
    marks: Sequence[tuple[str, Array, str]], first: Array, recall: Callable[[Array], float]
) -> tuple[Loss, ...]:
    """Differences between each mark and the one before; they add up to the whole."""
    out = []
    gap, found = 0.0, recall(first)
    for stage, rows, how in marks[1:]:
        now, still = float(departure(rows, first).mean()), recall(rows)
        out.append(Loss(stage, now - gap, found - still, how))
        gap, found = now, still
    return tuple(out)
