"""Colour channels in another order, or lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array
from hetero.preprocess import Preprocess

STAGE = "colour"
FIX = "hand the model RGB, in this order, from the decoder to the tensor"

_NAMES = "RGB"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """BGR, the other orders, one missing, and grey."""
    del spec
    for order in ((2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2)):
        name = "".join(_NAMES[i] for i in order)
        yield f"channels come as {name} instead of RGB", _ordered(order)
    for missing, name in enumerate(_NAMES):
        yield f"the {name} channel is missing: it is zero", _without(missing)
    yield "colour is lost: the picture is made grey", _grey


def _ordered(order: tuple[int, ...]) -> Callable[[Array], Array]:
    def colour(rgb: Array) -> Array:
        return rgb[..., list(order)]

    return colour


def _without(missing: int) -> Callable[[Array], Array]:
    def colour(rgb: Array) -> Array:
        out = rgb.copy()
        out[..., missing] = 0
        return out

    return colour


def _grey(rgb: Array) -> Array:
    luma = np.rint(rgb @ np.asarray((0.299, 0.587, 0.114)))
    return np.repeat(luma[..., None], 3, axis=2).astype(np.uint8)
