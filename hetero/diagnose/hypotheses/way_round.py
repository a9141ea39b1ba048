"""The picture brought to another size before the model's: a thumbnail, a preview, a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array
from hetero.preprocess import Preprocess

STAGE = "resize"
FIX = "resize once, from the whole picture to the model's size"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Half and twice the model's size."""
    del spec
    for times in (0.5, 2.0):
        for kernel in ("nearest", "bilinear"):
            yield _what(kernel)(times), _by_way(kernel, times)


def families(spec: Preprocess) -> Iterator[tuple[Any, Any, tuple[float, ...]]]:
    """Any size, by three kernels; and a blur before pixels are picked."""
    del spec
    for kernel in ("nearest", "bilinear", "bicubic"):
        yield (
            _what(kernel),
            lambda times, kernel=kernel: _by_way(kernel, times),
            (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.4, 1.6, 1.8, 2.2),
        )
    yield (
        lambda radius: (
            f"the picture is blurred (radius {radius:.1f} px), then the nearest pixel taken"
        ),
        _blurred,
        (0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    )


def _what(kernel: str) -> Callable[[float], str]:
    return lambda times: f"resized to {times:.2f} times the model's size first, {kernel}"


def _by_way(kernel: str, times: float) -> Callable[[Array, Preprocess], Array]:
    def resize(rgb: Array, spec: Preprocess) -> Array:
        from PIL import Image

        if rgb.shape[:2] == (spec.size_px, spec.size_px):
            return rgb
        between = (max(1, round(spec.size_px * times)),) * 2
        picture = Image.fromarray(np.ascontiguousarray(rgb))
        small = picture.resize(between, Image.Resampling[kernel.upper()])
        last = Image.Resampling[spec.resize.upper()]
        return np.asarray(small.resize((spec.size_px,) * 2, last))

    return resize


def _blurred(radius: float) -> Callable[[Array, Preprocess], Array]:
    def resize(rgb: Array, spec: Preprocess) -> Array:
        from PIL import Image, ImageFilter

        if rgb.shape[:2] == (spec.size_px, spec.size_px):
            return rgb
        picture = Image.fromarray(np.ascontiguousarray(rgb))
        soft = picture.filter(ImageFilter.GaussianBlur(radius))
        return np.asarray(soft.resize((spec.size_px,) * 2, Image.Resampling.NEAREST))

    return resize
