"""The EXIF orientation not followed, or not as it is meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hetero.diagnose._pipeline import Array, turn
from hetero.preprocess import Preprocess

STAGE = "orientation"
FIX = "turn the decoded picture as its EXIF orientation says, once, before cropping"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Ignored, done twice, the wrong way round, mirrored ones forgotten."""
    del spec
    yield "the EXIF orientation is ignored", lambda rgb, tag: rgb
    yield "the EXIF orientation is applied twice", lambda rgb, tag: turn(turn(rgb, tag), tag)
    yield (
        "pictures are turned the wrong way (EXIF 6 and 8 exchanged)",
        _exchanged,
    )
    yield (
        "EXIF orientations with a mirror (2, 4, 5, 7) are ignored",
        lambda rgb, tag: turn(rgb, tag if tag in (3, 6, 8) else 1),
    )
    yield (
        "only quarter turns (EXIF 6 and 8) are followed",
        lambda rgb, tag: turn(rgb, tag if tag in (6, 8) else 1),
    )


def _exchanged(rgb: Array, tag: int) -> Array:
    return turn(rgb, {6: 8, 8: 6}.get(tag, tag))
