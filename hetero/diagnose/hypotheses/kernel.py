"""Another way of resizing: kernel, antialiasing, where pixels lie, how numbers are rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array
from hetero.preprocess import Preprocess

STAGE = "resize"
FIX = "resize as the bundle says: its kernel, antialiased when shrinking, half-pixel centres"

#: Where output pixel i looks, of n output and m input pixels.
_PLACES: dict[str, Callable[[Array, int, int], Array]] = {
    "half-pixel centres": lambda i, n, m: (i + 0.5) * m / n - 0.5,
    "corners aligned": lambda i, n, m: i * (m - 1) / max(1, n - 1),
    "pixel corners (half a pixel off)": lambda i, n, m: i * m / n,
}


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Kernels without antialiasing, Pillow's others, and roundings of the right one."""
    for place in _PLACES:
        yield f"nearest pixel, {place}", _plain(0, place)
        yield f"bilinear without antialiasing, {place}", _plain(1, place)
        yield f"bicubic without antialiasing, {place}", _plain(2, place)
    for other in ("bilinear", "bicubic", "box", "lanczos", "hamming"):
        if other != spec.resize:
            yield f"{other}, antialiased, instead of {spec.resize}", _pillow(other)
    yield "numbers are cut off, not rounded, after the resize", _rounded(np.floor)
    yield "resized in two steps, by halves first", _halves


def _pillow(kernel: str) -> Callable[[Array, Preprocess], Array]:
    def resize(rgb: Array, spec: Preprocess) -> Array:
        from PIL import Image

        side = (spec.size_px, spec.size_px)
        picture = Image.fromarray(np.ascontiguousarray(rgb))
        return np.asarray(picture.resize(side, Image.Resampling[kernel.upper()]))

    return resize


def _rounded(how: Callable[[Array], Array]) -> Callable[[Array, Preprocess], Array]:
    def resize(rgb: Array, spec: Preprocess) -> Array:
        from PIL import Image

        side = (spec.size_px, spec.size_px)
        kernel = Image.Resampling[spec.resize.upper()]
        planes = [
            Image.fromarray(rgb[..., c].astype(np.float32)).resize(side, kernel) for c in range(3)
        ]
        return np.clip(how(np.dstack([np.asarray(p) for p in planes])), 0, 255).astype(np.uint8)

    return resize


def _halves(rgb: Array, spec: Preprocess) -> Array:
    while min(rgb.shape[:2]) >= 2 * spec.size_px:
        h, w = rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2
        four = rgb[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).astype(np.float64)
        rgb = np.rint(four.mean(axis=(1, 3))).astype(np.uint8)
    return _pillow(spec.resize)(rgb, spec)


def _plain(order: int, place: str) -> Callable[[Array, Preprocess], Array]:
    """A resize that looks at the nearest 1, 2x2 or 4x4 input pixels and no others."""

    def resize(rgb: Array, spec: Preprocess) -> Array:
        if rgb.shape[:2] == (spec.size_px, spec.size_px):
            return rgb
        down = _matrix(order, place, spec.size_px, rgb.shape[0])
        over = _matrix(order, place, spec.size_px, rgb.shape[1])
        out = np.einsum("ih,hwc,jw->ijc", down, rgb.astype(np.float64), over, optimize=True)
        whole: Array = np.clip(np.rint(out), 0, 255).astype(np.uint8)
        return whole

    return resize


def _matrix(order: int, place: str, n: int, m: int) -> Array:
    """(n, m) weights of the input pixels for each output pixel."""
    where = _PLACES[place](np.arange(n), n, m)
    out = np.zeros((n, m))
    rows = np.arange(n)
    if order == 0:
        # "Nearest" between two pixels goes down with half-pixel centres, as runtimes do it.
        at = np.ceil(where - 0.5) if place != "pixel corners (half a pixel off)" else where // 1
        out[rows, np.clip(at, 0, m - 1).astype(int)] = 1
        return out
    low = np.floor(where).astype(int)
    for step in range(1 - order, order + 1):
        weight = _weight(order, np.abs(where - (low + step)))
        np.add.at(out, (rows, np.clip(low + step, 0, m - 1)), weight)
    return out


def _weight(order: int, x: Array) -> Array:
    if order == 1:
        tent: Array = np.maximum(0.0, 1 - x)
        return tent
    a = -0.75  # Keys' cubic as OpenCV, PyTorch and ONNX have it
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
