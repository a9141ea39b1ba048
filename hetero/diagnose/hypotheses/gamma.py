"""Brightness on another curve: gamma, or the range of video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array
from hetero.preprocess import Preprocess

STAGE = "colour"
FIX = "use the decoder's sRGB bytes as they are: no gamma, no linear light, full range 0..255"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Powers, and 16..235 taken for, or made from, 0..255."""
    del spec
    for power in (2.2, 1.8, 1.5, 1.2, 1 / 1.2, 1 / 1.5, 1 / 1.8, 1 / 2.2):
        table = np.rint(255 * (np.arange(256) / 255) ** power)
        yield f"a gamma of {power:.2g} is applied", _mapped(table)
    whole = np.arange(256)
    yield "0..255 is squeezed to video's 16..235", _mapped(np.rint(16 + whole * 219 / 255))
    yield "16..235 is stretched to 0..255", _mapped(np.rint((whole - 16) * 255 / 219))
    yield "colours are inverted", _mapped(255 - whole)


def _mapped(table: Array) -> Callable[[Array], Array]:
    small = np.clip(table, 0, 255).astype(np.uint8)

    def colour(rgb: Array) -> Array:
        mapped: Array = small[rgb]
        return mapped

    return colour
