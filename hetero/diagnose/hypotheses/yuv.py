"""A camera's YUV frame made RGB in a wrong way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array
from hetero.preprocess import Preprocess

STAGE = "colour"
FIX = "convert YUV by the frame's own format (NV12 or NV21), matrix (BT.601 or BT.709) and range"

#: Weights of red and blue in the brightness.
_WEIGHTS = {"BT.601": (0.299, 0.114), "BT.709": (0.2126, 0.0722)}


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """U and V exchanged, the other matrix, brightness alone."""
    del spec
    first, second = (_matrix(*w) for w in _WEIGHTS.values())
    swapped = np.eye(3)[[0, 2, 1]]
    yield "U and V are exchanged (NV12 read as NV21)", _through(first, swapped, first)
    yield "YUV of BT.601 is read as BT.709", _through(first, np.eye(3), second)
    yield "YUV of BT.709 is read as BT.601", _through(second, np.eye(3), first)


def _matrix(red: float, blue: float) -> Array:
    """RGB to full-range Y, U, V, the last two about 0."""
    y = np.asarray((red, 1 - red - blue, blue))
    u = (np.asarray((0.0, 0.0, 1.0)) - y) / (2 * (1 - blue))
    v = (np.asarray((1.0, 0.0, 0.0)) - y) / (2 * (1 - red))
    return np.stack([y, u, v])


def _through(there: Array, between: Array, back: Array) -> Callable[[Array], Array]:
    whole = np.linalg.inv(back) @ between @ there

    def colour(rgb: Array) -> Array:
        made: Array = np.clip(np.rint(rgb @ whole.T), 0, 255).astype(np.uint8)
        return made

    return colour
