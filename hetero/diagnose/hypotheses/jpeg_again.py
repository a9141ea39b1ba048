"""The picture was saved as a JPEG once more on its way."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array, read_file
from hetero.preprocess import Preprocess

STAGE = "decode"
FIX = "give the model the original picture, not a compressed copy or thumbnail of it"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Qualities that apps use."""
    del spec
    for quality in (30, 50, 60, 75, 80, 90):
        yield f"the picture is compressed again as a JPEG of quality {quality}", _again(quality)


def _again(quality: int) -> Callable[[bytes], tuple[Array, int]]:
    def decode(data: bytes) -> tuple[Array, int]:
        from PIL import Image

        rgb, tag = read_file(data)
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as opened:
            return np.asarray(opened.convert("RGB")), tag

    return decode
