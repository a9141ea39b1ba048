"""Colours stronger or paler, or their contrast stretched: what cameras do to please."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array
from hetero.preprocess import Preprocess

STAGE = "colour"
FIX = "turn off what the camera or gallery does to make pictures look better, or do it in training"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Contrast stretched to the full range, and histograms made flat."""
    from PIL import ImageOps

    del spec
    yield "the contrast of each channel is stretched to 0..255", _by(ImageOps.autocontrast)
    yield (
        "the contrast is stretched to 0..255",
        _by(lambda p: ImageOps.autocontrast(p, preserve_tone=True)),
    )
    yield "the histogram of each channel is made flat", _by(ImageOps.equalize)


def families(spec: Preprocess) -> Iterator[tuple[Any, Any, tuple[float, ...]]]:
    """Saturation and contrast by any factor."""
    from PIL import ImageEnhance

    del spec
    factors = (0.2, 0.4, 0.6, 0.8, 1.2, 1.5, 1.8, 2.5)
    for name in ("Color", "Contrast"):
        enhance = getattr(ImageEnhance, name)
        what = "saturation" if name == "Color" else "contrast"
        yield (
            lambda f, what=what: f"the {what} is {f:.2f} times what it should be",
            lambda f, enhance=enhance: _by(lambda p: enhance(p).enhance(f)),
            factors,
        )


def _by(change: Callable[[Any], Any]) -> Callable[[Array], Array]:
    def colour(rgb: Array) -> Array:
        from PIL import Image

        return np.asarray(change(Image.fromarray(np.ascontiguousarray(rgb))))

    return colour
