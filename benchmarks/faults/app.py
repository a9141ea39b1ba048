"""An app that embeds the canary files: its own code, with Pillow and NumPy only.

Nothing of `hetero.diagnose` or `hetero.preprocess` is used, so that the diagnosis cannot recognise
its own handwriting.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class App:
    """What an app does, step by step; every function may be exchanged."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    open: Callable[[bytes], Image.Image]
    upright: Callable[[Image.Image], Image.Image]
    colour: Callable[[Image.Image], Image.Image]
    crop: Callable[[Image.Image], Image.Image]
    resize: Callable[[Image.Image, int], Array]
    tensor: Callable[[Array, Array, Array], Array]
    chw: Callable[[Array], Array]

    def decoded(self, data: bytes) -> Image.Image:
        return self.colour(self.upright(self.open(data)).convert("RGB"))

    def pixels(self, data: bytes) -> Array:
        return self.resize(self.crop(self.decoded(data)), self.size)

    def input(self, pixels: Array) -> Array:
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        planes = [self.chw(self.tensor(p, mean, std)) for p in pixels]
        return np.ascontiguousarray(np.stack(planes), dtype=np.float32)


def over(colour: tuple[int, int, int]) -> Callable[[bytes], Image.Image]:
    def load(data: bytes) -> Image.Image:
        picture = Image.open(io.BytesIO(data))
        if picture.mode.startswith("I"):
            high = (np.asarray(picture).astype(np.float64) / 257 + 0.5).astype(np.uint8)
            return Image.fromarray(high)
        if picture.mode == "P" or "A" in picture.mode:
            tagged = picture.getexif()
            front = picture.convert("RGBA")
            back = Image.new("RGBA", front.size, (*colour, 255))
            back.alpha_composite(front)
            back.getexif().update(tagged)
            return back.convert("RGB")
        return picture

    return load


def middle(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def antialiased(picture: Image.Image, size: int) -> Array:
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def right(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> App:
    """The app without a fault, for bundles with a bilinear resize of the centred square."""
    return App(
        size,
        mean,
        std,
        over((255, 255, 255)),
        lambda p: ImageOps.exif_transpose(p),
        lambda p: p,
        middle,
        antialiased,
        lambda p, m, s: (p / 255.0 - m) / s,
        lambda x: x.transpose(2, 0, 1),
    )
