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
    """Powers, linear light, and 16..235 taken for, or made from, 0..255."""
    del spec
    for power in (2.2, 1.8, 1 / 1.8, 1 / 2.2):
        yield _what(power), _power(power)
    whole = np.arange(256)
    x = whole / 255
    dark = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    light = np.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055)
    yield (
        "sRGB is turned into linear light (as a GPU's sRGB texture is)",
        _mapped(np.rint(255 * dark)),
    )
    yield "sRGB is taken for linear light and made brighter", _mapped(np.rint(255 * light))
    yield "0..255 is squeezed to video's 16..235", _mapped(np.rint(16 + whole * 219 / 255))
    yield "16..235 is stretched to 0..255", _mapped(np.rint((whole - 16) * 255 / 219))
    yield "colours are inverted", _mapped(255 - whole)


def families(spec: Preprocess) -> Iterator[tuple[Any, Any, tuple[float, ...]]]:
    """Any power."""
    del spec
    yield _what, _power, (0.3, 0.45, 0.6, 0.75, 0.9, 1.1, 1.3, 1.6, 2.0, 2.5, 3.2)


def _what(power: float) -> str:
    return f"a gamma of {power:.2g} is applied"


def _power(power: float) -> Callable[[Array], Array]:
    return _mapped(np.rint(255 * (np.arange(256) / 255) ** power))


def _mapped(table: Array) -> Callable[[Array], Array]:
    small = np.clip(table, 0, 255).astype(np.uint8)

    def colour(rgb: Array) -> Array:
        mapped: Array = small[rgb]
        return mapped

    return colour
