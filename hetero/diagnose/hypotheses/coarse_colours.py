"""Fewer bits a channel: RGB 565 and its kin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array, read_file
from hetero.preprocess import Preprocess

STAGE = "decode"
FIX = "decode to 8 bits a channel (on Android: Bitmap.Config.ARGB_8888)"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """565 and 444, low bits zero or repeated."""
    del spec
    for bits in ((5, 6, 5), (4, 4, 4), (5, 5, 5)):
        for spread in (True, False):
            how = "spread to 0..255" if spread else "low bits zero"
            yield f"colours have {'/'.join(map(str, bits))} bits, {how}", _coarse(bits, spread)


def _coarse(bits: tuple[int, ...], spread: bool) -> Callable[[bytes], tuple[Array, int]]:
    def decode(data: bytes) -> tuple[Array, int]:
        rgb, tag = read_file(data)
        drop = 8 - np.asarray(bits)
        kept = rgb.astype(np.int64) >> drop
        whole = np.rint(kept * 255 / ((1 << np.asarray(bits)) - 1)) if spread else kept << drop
        return whole.astype(np.uint8), tag

    return decode
