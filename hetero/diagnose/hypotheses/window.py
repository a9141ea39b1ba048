"""Another part of the picture cut out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array, centre
from hetero.preprocess import Preprocess

STAGE = "crop"
FIX = "follow the bundle's `fit`: the largest centred square, offset (long - short) // 2, or none"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """No crop, a corner, a few pixels off, a margin off, bars instead."""
    if spec.fit == "centre":
        yield "the picture is squashed, not cropped to its centre", lambda rgb, _: rgb
        yield "the first square is cut, not the centred one", _shifted(-(10**6))
        yield "the last square is cut, not the centred one", _shifted(10**6)
        for off in (1, 2, 3, 4, -1, -2, -3, -4):
            yield f"the crop is {abs(off)} px too {'late' if off > 0 else 'early'}", _shifted(off)
    else:
        yield "the centred square is cut, where the whole is wanted", _square
    for value in (0, 128, 255):
        yield f"the picture is fitted with bars of {value} instead of cropped", _barred(value)
    for share in (0.875, 0.95, 0.9, 0.8):
        yield f"only the middle {share:.0%} of the sides is used", _middle(share)


def _square(rgb: Array, spec: Preprocess) -> Array:
    from dataclasses import replace

    return centre(rgb, replace(spec, fit="centre"))


def _shifted(off: int) -> Callable[[Array, Preprocess], Array]:
    def crop(rgb: Array, spec: Preprocess) -> Array:
        del spec
        height, width = rgb.shape[:2]
        side = min(height, width)
        top = int(np.clip((height - side) // 2 + off, 0, height - side))
        left = int(np.clip((width - side) // 2 + off, 0, width - side))
        return rgb[top : top + side, left : left + side]

    return crop


def _barred(value: int) -> Callable[[Array, Preprocess], Array]:
    def crop(rgb: Array, spec: Preprocess) -> Array:
        del spec
        height, width = rgb.shape[:2]
        side = max(height, width)
        out = np.full((side, side, 3), value, dtype=np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        out[top : top + height, left : left + width] = rgb
        return out

    return crop


def _middle(share: float) -> Callable[[Array, Preprocess], Array]:
    def crop(rgb: Array, spec: Preprocess) -> Array:
        whole = centre(rgb, spec)
        height, width = whole.shape[:2]
        down, over = max(1, round(height * share)), max(1, round(width * share))
        top, left = (height - down) // 2, (width - over) // 2
        return whole[top : top + down, left : left + over]

    return crop
