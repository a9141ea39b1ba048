"""What classifiers are trained on: a closed set's pictures, its classes, and marks of both."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8, UInt64
from torch import Tensor

from hetero._files import canonical_json
from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import BundleError, DataError
from hetero.fit import Check
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.space import Space
from hetero.train._pictures import decoded, spread


@dataclass(frozen=True, eq=False)
class Closed:
    """Training and validation pictures of a closed set; test pictures are never looked at.

    Attributes:
        classes: Sorted names; a class's place is its logit's.
        labels: Class number of each training picture.
        pixels: Training pictures at input size.
        watched_ids, watched_labels, watched: Validation pictures.
    """

    classes: tuple[str, ...]
    labels: Int64[Tensor, " n"]
    pixels: UInt8[np.ndarray, "n s s 3"]
    watched_ids: tuple[str, ...]
    watched_labels: Int64[np.ndarray, " m"]
    watched: UInt8[np.ndarray, "m s s 3"]

    @property
    def probes(self) -> tuple[list[str], UInt8[np.ndarray, "p s s 3"]]:
        """Ids and pixels, evenly over the validation pictures."""
        rows = spread(len(self.watched))
        return [self.watched_ids[i] for i in rows], self.watched[rows]


def gather(images: Images, preprocess: Preprocess, reporter: Reporter) -> Closed:
    """The pictures of a training, decoded.

    Raises:
        DataError: Fewer than two classes, or nothing to validate with.
    """
    rows, watch = images.rows("train"), images.rows("val")
    classes = images.classes("train")
    if len(classes) < 2 or not watch:
        raise DataError(
            f"{images.name}: {len(classes)} classes and {len(watch)} validation pictures; a "
            "classifier needs at least two classes, and pictures to be watched by"
        )
    number = {name: i for i, name in enumerate(classes)}
    return Closed(
        classes,
        torch.tensor([number[images.labels[r]] for r in rows]),
        decoded(images, rows, preprocess, reporter),
        tuple(images.ids[r] for r in watch),
        np.array([number[images.labels[r]] for r in watch]),
        decoded(images, watch, preprocess, reporter),
    )


def score(logits: Float32[np.ndarray, "n c"], labels: Int64[np.ndarray, " n"]) -> Check:
    """Accuracy on validation pictures, with what it takes to notice a run that cannot end well."""
    if not np.isfinite(logits).all():
        return Check(0.0, 0.0, math.nan)
    lengths = np.linalg.norm(logits, axis=1, keepdims=True)
    mean = (logits / np.maximum(lengths, 1e-12)).mean(0)
    # Always the most frequent class: what can be had without looking.
    chance = float(np.bincount(labels).max() / len(labels))
    return Check(float((logits.argmax(1) == labels).mean()), chance, float(1 - mean @ mean))


def class_space(classes: Sequence[str]) -> Space:
    """The space of logits of these classes in this order: what two classifiers have in common."""
    text = f"hetero.classes/1 {canonical_json(list(classes))}"
    return Space(f"{len(classes)}-classes", hashlib.sha256(text.encode()).hexdigest(), len(classes))


def fingerprints(pixels: UInt8[np.ndarray, "n s s 3"]) -> UInt64[np.ndarray, " m"]:
    """A number for each different picture at input size, ascending: equal pixels, equal number."""
    return np.unique(each_fingerprint(pixels))


def each_fingerprint(pixels: UInt8[np.ndarray, "n s s 3"]) -> UInt64[np.ndarray, " n"]:
    """The fingerprint of each picture, in order."""
    found = [hashlib.blake2b(p.tobytes(), digest_size=8).digest() for p in pixels]
    return np.frombuffer(b"".join(found), "<u8").astype(np.uint64)


def trained_on(bundle: Bundle, pixels: UInt8[np.ndarray, "n s s 3"]) -> Any:
    """Whether a classifier was trained on each of these pictures, at its own input size.

    Raises:
        BundleError: The bundle does not say what it was trained on.
    """
    try:
        known = bundle.tensors("trained")["pictures"]
    except KeyError as error:
        raise BundleError(f"{bundle.root}: trained.safetensors holds no pictures") from error
    return np.isin(each_fingerprint(pixels), known)
