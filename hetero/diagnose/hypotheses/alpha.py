"""Transparency put over something else than white."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array, read_file
from hetero.preprocess import Preprocess

STAGE = "decode"
FIX = "draw transparent pictures over white before anything else"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Over black, over grey, and the hidden colours as they are."""
    del spec
    for name, value in (("black", 0), ("grey", 128)):
        yield f"transparent parts are {name} instead of white", _over(value)
    yield "the alpha channel is dropped, so hidden colours show", _over(None)


def families(spec: Preprocess) -> Iterator[tuple[Any, Any, tuple[int, ...]]]:
    """Over any grey."""
    del spec
    yield (
        lambda v: f"transparent parts are grey {v} instead of white",
        lambda v: _over(int(v)),
        tuple(range(0, 256, 32)),
    )


def _over(value: int | None) -> Callable[[bytes], tuple[Array, int]]:
    def decode(data: bytes) -> tuple[Array, int]:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as opened:
            if not opened.has_transparency_data:
                return read_file(data)
            rgba = np.asarray(opened.convert("RGBA")).astype(np.float64)
        if value is None:
            return rgba[..., :3].astype(np.uint8), 1
        share = rgba[..., 3:] / 255
        mixed = rgba[..., :3] * share + value * (1 - share)
        return np.rint(mixed).astype(np.uint8), 1

    return decode
