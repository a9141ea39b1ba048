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
        for off in (1, 2, -1, -2):
            yield _late(off), _shifted(off)
    else:
        yield "the centred square is cut, where the whole is wanted", _square
    for value in (0, 128, 255):
        yield _bars(value), _barred(value)
    for share in (0.875, 0.95, 0.9, 0.8):
        yield _used(share), _middle(share)


def families(spec: Preprocess) -> Iterator[tuple[Any, Any, tuple[float, ...]]]:
    """Any offset, any place, bars of any grey, any part, any margin."""
    half = spec.size_px // 2
    if spec.fit == "centre":
        yield _late, lambda n: _shifted(int(n)), tuple(range(-half, half + 1, max(1, half // 8)))
        yield (
            lambda at: f"the square is cut at {at:.0%} of the way instead of the middle",
            _at,
            (0.0, 0.12, 0.25, 0.38, 0.62, 0.75, 0.88, 1.0),
        )
    yield _bars, lambda v: _barred(int(v)), tuple(range(0, 256, 32))
    yield _used, _middle, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
    yield (
        lambda n: f"a margin of {n} px is cut from each side",
        lambda n: _without_margin(int(n)),
        tuple(range(1, half, max(1, half // 8))),
    )


def _late(off: float) -> str:
    return f"the crop is {abs(off)} px too {'late' if off > 0 else 'early'}"


def _bars(value: float) -> str:
    return f"the picture is fitted with bars of {value} instead of cropped"


def _used(share: float) -> str:
    return f"only the middle {share:.0%} of the sides is used"


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


def _at(share: float) -> Callable[[Array, Preprocess], Array]:
    def crop(rgb: Array, spec: Preprocess) -> Array:
        del spec
        side = min(rgb.shape[:2])
        top, left = (round((n - side) * share) for n in rgb.shape[:2])
        return rgb[top : top + side, left : left + side]

    return crop


def _without_margin(px: int) -> Callable[[Array, Preprocess], Array]:
    def crop(rgb: Array, spec: Preprocess) -> Array:
        whole = centre(rgb, spec)
        down, over = (min(px, (n - 1) // 2) for n in whole.shape[:2])
        return whole[down : whole.shape[0] - down, over : whole.shape[1] - over]

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
