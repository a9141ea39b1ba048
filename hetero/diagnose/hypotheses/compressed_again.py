"""The picture was compressed once more on its way."""

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
        yield _what("JPEG")(quality), _again("JPEG", quality)


def families(spec: Preprocess) -> Iterator[tuple[Any, Any, tuple[int, ...]]]:
    """Any quality of the two formats in which apps pass pictures on."""
    del spec
    for kind in ("JPEG", "WebP"):
        yield _what(kind), lambda q, kind=kind: _again(kind, int(q)), tuple(range(10, 100, 10))


def _what(kind: str) -> Callable[[float], str]:
    return lambda quality: f"the picture is compressed again as {kind} of quality {quality:g}"


def _again(kind: str, quality: int) -> Callable[[bytes], tuple[Array, int]]:
    def decode(data: bytes) -> tuple[Array, int]:
        from PIL import Image

        rgb, tag = read_file(data)
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, kind, quality=quality)
        with Image.open(buffer) as opened:
            return np.asarray(opened.convert("RGB")), tag

    return decode
