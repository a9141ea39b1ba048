"""The vector changed on its way out: coarser numbers, another order, another picture's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array
from hetero.preprocess import Preprocess

STAGE = "output"
FIX = "send the runtime's float vector as it is, copied before the next picture is run"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Quantised, unsigned, stale, reversed, clipped."""
    del spec
    yield "numbers are quantised to int8 with a scale of 1/127", _int8
    yield "numbers are quantised to int8 by each vector's own maximum", _int8_row
    yield "numbers are sent as uint8 and not turned back", _uint8
    yield "numbers are quantised to uint8 between the vector's ends", _uint8_row
    yield "only the signs are sent", np.sign
    yield "negative numbers are lost", lambda x: np.maximum(x, 0)
    yield "signs are lost", np.abs
    yield "all signs are turned", lambda x: -x
    yield "numbers are in reverse order", lambda x: x[:, ::-1]
    yield "each vector is that of the picture before", lambda x: np.roll(x, 1, axis=0)
    yield "each vector is that of the next picture", lambda x: np.roll(x, -1, axis=0)
    yield "the second half comes before the first", lambda x: np.roll(x, x.shape[1] // 2, axis=1)
    yield "numbers are one place off", lambda x: np.roll(x, 1, axis=1)
    yield "numbers have two decimals", lambda x: np.round(x, 2)
    yield "numbers have one decimal", lambda x: np.round(x, 1)
    yield "the second half is zero", _cut


def families(spec: Preprocess) -> Iterator[tuple[Any, Any, tuple[float, ...]]]:
    """The vector before mixed in, as a filter over frames does."""
    del spec
    yield (
        lambda part: f"{part:.2f} of the vector before is added to each vector",
        lambda part: lambda x: x + part * np.roll(x, 1, axis=0),
        (-1.0, -0.6, -0.3, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0),
    )


def _int8(rows: Array) -> Array:
    coarse: Array = np.clip(np.rint(rows * 127), -128, 127) / np.float32(127)
    return coarse


def _int8_row(rows: Array) -> Array:
    scale = np.abs(rows).max(axis=1, keepdims=True) / 127
    coarse: Array = np.rint(rows / scale) * scale
    return coarse


def _uint8(rows: Array) -> Array:
    coarse: Array = np.clip(np.rint(rows * 128 + 128), 0, 255)
    return coarse


def _uint8_row(rows: Array) -> Array:
    low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
    step = (high - low) / 255
    coarse: Array = np.rint((rows - low) / step) * step + low
    return coarse


def _cut(rows: Array) -> Array:
    out = rows.copy()
    out[:, rows.shape[1] // 2 :] = 0
    return out
