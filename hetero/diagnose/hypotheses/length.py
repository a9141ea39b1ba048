"""The L2 step done over the wrong numbers, or before another step that undoes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array
from hetero.preprocess import Preprocess

STAGE = "l2"
FIX = "divide each vector by its own L2 length, once, as the last step"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Over the batch instead of the vector, after taking off a mean, with a power before."""
    del spec
    yield "L2 runs over the batch, not over each vector", _over_batch
    yield "each number is scaled to its range over the batch", _ranged
    yield "square roots are taken before L2", _powered(0.5)
    yield "numbers are squared before L2", _powered(2.0)
    yield "the mean of the batch is taken off before L2", lambda x: x - x.mean(axis=0)
    yield "the mean of the vector is taken off", lambda x: x - x.mean(axis=1, keepdims=True)
    yield "a softmax runs instead of L2", _softmax


def families(spec: Preprocess) -> Iterator[tuple[Any, Any, tuple[float, ...]]]:
    """Any power before L2, signs kept."""
    del spec
    yield (
        lambda p: f"numbers are taken to the power of {p:.2f} before L2",
        _powered,
        (0.1, 0.25, 0.4, 0.6, 0.8, 1.25, 1.6, 2.0, 2.5, 3.0, 4.0),
    )


def _powered(power: float) -> Callable[[Array], Array]:
    def l2(rows: Array) -> Array:
        curved: Array = np.sign(rows) * np.abs(rows) ** power
        return curved

    return l2


def _over_batch(rows: Array) -> Array:
    scaled: Array = rows / np.maximum(np.linalg.norm(rows, axis=0, keepdims=True), 1e-12)
    return scaled


def _ranged(rows: Array) -> Array:
    low, high = rows.min(axis=0), rows.max(axis=0)
    scaled: Array = (rows - low) / np.maximum(high - low, 1e-12)
    return scaled


def _softmax(rows: Array) -> Array:
    high = np.exp(rows - rows.max(axis=1, keepdims=True))
    scaled: Array = high / high.sum(axis=1, keepdims=True)
    return scaled
