"""Large pictures decoded at a fraction of their size, to save memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array, read_file
from hetero.preprocess import Preprocess

STAGE = "decode"
FIX = "decode the whole picture (no inSampleSize, no thumbnail) and leave shrinking to the resize"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every second pixel, or the mean of two by two, while the picture stays large enough."""
    for mean in (False, True):
        how = "the mean of 2x2 pixels" if mean else "every second pixel"
        yield f"large pictures are decoded at half size, {how}", _half(spec.size_px, mean)


def families(spec: Preprocess) -> Iterator[tuple[Any, Any, tuple[int, ...]]]:
    """A third, a quarter, ... of the size."""
    yield (
        lambda n: f"large pictures are decoded at 1/{n} of their size",
        lambda n: _part(spec.size_px, int(n)),
        (2, 3, 4, 6, 8),
    )


def _part(size: int, factor: int) -> Callable[[bytes], tuple[Array, int]]:
    def decode(data: bytes) -> tuple[Array, int]:
        from PIL import Image

        rgb, tag = read_file(data)
        if min(rgb.shape[:2]) < max(2, factor) * size:
            return rgb, tag
        return np.asarray(Image.fromarray(rgb).reduce(factor)), tag

    return decode


def _half(size: int, mean: bool) -> Callable[[bytes], tuple[Array, int]]:
    def decode(data: bytes) -> tuple[Array, int]:
        rgb, tag = read_file(data)
        while min(rgb.shape[:2]) >= 2 * size:
            h, w = rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2
            four = rgb[:h, :w].reshape(h // 2, 2, w // 2, 2, 3)
            rgb = np.rint(four.mean(axis=(1, 3))).astype(np.uint8) if mean else four[:, 0, :, 0]
        return rgb, tag

    return decode
