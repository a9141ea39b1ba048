"""Pixels normalised by other numbers than the model was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array, standard
from hetero.preprocess import Preprocess

STAGE = "normalise"
FIX = "compute (x/255 - mean) / std with the bundle's mean and std, once"

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Forgotten, doubled, swapped, and those of other models."""
    mean, std = spec.mean, spec.std
    yield "pixels stay 0..255, they are not normalised", _affine(0.0, 1 / 255)
    yield "pixels are scaled to 0..1 and no more", _affine(0.0, 1.0)
    yield "pixels are scaled to -1..1", _affine(0.5, 0.5)
    yield "mean and std are applied to 0..255, without the division by 255", _unscaled
    yield "the mean is not taken off", _affine(0.0, std)
    yield "there is no division by std", _affine(mean, 1.0)
    yield "std is multiplied, not divided by", _affine(mean, tuple(1 / s for s in std))
    yield "mean and std are exchanged", _affine(std, mean)
    yield "mean and std are in BGR order", _affine(mean[::-1], std[::-1])
    yield "the division by 255 is done twice", _twice_scaled
    yield "pixels are normalised twice", _twice
    yield "the mean is added, not taken off", _affine(tuple(-m for m in mean), std)
    for name, (other_mean, other_std) in (("ImageNet", _IMAGENET), ("CLIP", _CLIP)):
        yield f"mean and std are those of {name}", _affine(other_mean, other_std)
    yield "pixels are Caffe's: 0..255 less ImageNet's mean", _affine(_IMAGENET[0], 1 / 255)
    yield "each picture is normalised by its own mean and std", _own


def _affine(mean: Any, std: Any) -> Callable[[Array, Preprocess], Array]:
    def normalise(pixels: Array, spec: Preprocess) -> Array:
        del spec
        low = np.zeros(3, dtype=np.float32) + np.asarray(mean, dtype=np.float32)
        width = np.zeros(3, dtype=np.float32) + np.asarray(std, dtype=np.float32)
        if not width.all():
            width = np.where(width == 0, np.float32(1e-6), width)
        rows: Array = (pixels.astype(np.float32) / np.float32(255) - low) / width
        return rows

    return normalise


def _unscaled(pixels: Array, spec: Preprocess) -> Array:
    return standard(pixels.astype(np.float32) * 255, spec)


def _twice_scaled(pixels: Array, spec: Preprocess) -> Array:
    return standard(pixels.astype(np.float32) / 255, spec)


def _twice(pixels: Array, spec: Preprocess) -> Array:
    return standard(standard(pixels, spec) * 255, spec)


def _own(pixels: Array, spec: Preprocess) -> Array:
    del spec
    rows = pixels.astype(np.float32) / 255
    mean, std = rows.mean(axis=(1, 2), keepdims=True), rows.std(axis=(1, 2), keepdims=True)
    normal: Array = (rows - mean) / (std + np.float32(1e-6))
    return normal
