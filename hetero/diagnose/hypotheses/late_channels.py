"""Channels exchanged after the resize, while the tensor is filled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hetero.diagnose._pipeline import Array, standard
from hetero.preprocess import Preprocess

STAGE = "colour"
STEP = "normalise"
FIX = "fill the tensor's planes in the order red, green, blue"

_NAMES = "RGB"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """BGR and the other orders."""
    del spec
    for order in ((2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2)):
        name = "".join(_NAMES[i] for i in order)
        yield f"the tensor's planes are filled as {name} instead of RGB", _ordered(order)


def _ordered(order: tuple[int, ...]) -> Callable[[Array, Preprocess], Array]:
    def normalise(pixels: Array, spec: Preprocess) -> Array:
        return standard(pixels[..., list(order)], spec)

    return normalise
