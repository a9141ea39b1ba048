"""16-bit pictures cut to 8 bits in a wrong way."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array, read_file
from hetero.preprocess import Preprocess

STAGE = "decode"
FIX = "scale 16-bit pictures by 1/257 before they become 8-bit"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Clipped at 255, and the low byte instead of the high one."""
    del spec
    yield "16-bit pictures are clipped at 255", _deep(lambda x: np.minimum(x, 255))
    yield "of 16-bit pictures the low byte is read", _deep(lambda x: x % 256)


def _deep(cut: Callable[[Array], Array]) -> Callable[[bytes], tuple[Array, int]]:
    def decode(data: bytes) -> tuple[Array, int]:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as opened:
            if not opened.mode.startswith("I"):
                return read_file(data)
            grey = cut(np.asarray(opened).astype(np.int64)).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2), 1

    return decode
