"""What every training looks at: its pictures, their classes, the validation task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from hetero.data import Images
from hetero.errors import ConfigError, DataError
from hetero.evaluate import Task, task
from hetero.fit import Check, Settings
from hetero.metrics import per_query
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.space import Embeddings, Space

#: Validation pictures kept in a bundle to recognise the model by.
PROBES = 32


@dataclass(frozen=True, eq=False)
class Pictures:
    """Training pictures and the validation task; test classes are never looked at.

    Attributes:
        classes: Sorted names; of unlabelled pictures none.
        labels: Class number of each training picture, or None.
        pixels: Training pictures at input size.
        watch: The validation task.
        watched: Its pictures.
    """

    classes: tuple[str, ...]
    labels: Int64[Tensor, " n"] | None
    pixels: UInt8[np.ndarray, "n s s 3"]
    watch: Task
    watched: UInt8[np.ndarray, "m s s 3"]

    @property
    def probes(self) -> tuple[list[str], UInt8[np.ndarray, "p s s 3"]]:
        """Ids and pixels, evenly over the validation pictures."""
        rows = spread(len(self.watched))
        return [self.watch.ids[i] for i in rows], self.watched[rows]


def must_have_classes(images: Images, settings: Settings) -> None:
    """Nothing, if a gallery model can be trained on these pictures.

    Raises:
        ConfigError: Blended pictures are asked for.
        DataError: The pictures have no labels.
    """
    if settings.augment.mix:
        raise ConfigError("a gallery model is trained by class, and blended pictures have none")
    if not images.labelled:
        raise DataError(
            f"{images.name}: no labels; a gallery model is trained by class. Train it on labelled "
            "pictures, or take a pretrained one: a query model needs no labels after that"
        )


def spread(count: int) -> list[int]:
    """At most PROBES rows of so many, evenly."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(PROBES, count))})


def gather(images: Images, preprocess: Preprocess, reporter: Reporter) -> Pictures:
    """The pictures of a training, decoded.

    Raises:
        DataError: Fewer than two classes (or, unlabelled, pictures) to train on, or no validation.
    """
    rows, classes = images.rows("train"), images.classes("train")
    if len(classes) < 2:
        raise DataError(
            f"{images.name}: {len(classes)} training classes of {len(set(images.labels))} in all; "
            "training needs at least two, and testing two others that training never sees"
        )
    labels = None
    if images.labelled:
        number = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([number[images.labels[r]] for r in rows])
    pixels = decoded(images, rows, preprocess, reporter)
    watch = task(images, "val")
    watched = decoded(images, watch.rows, preprocess, reporter)
    return Pictures(classes if images.labelled else (), labels, pixels, watch, watched)


def decoded(
    images: Images, rows: tuple[int, ...], preprocess: Preprocess, reporter: Reporter
) -> UInt8[np.ndarray, "n s s 3"]:
    """The pictures of these rows at input size, with progress."""
    with reporter.bar(f"read {images.name}", len(rows)) as bar:
        return images.pixels(rows, preprocess, on_row=lambda: bar.advance(1))


def score(
    watch: Task, query: Float32[np.ndarray, "n d"], gallery: Float32[np.ndarray, "n d"]
) -> Check:
    """Recall@1 of the validation task, with what it takes to notice a run that cannot end well."""
    if not np.isfinite(query).all():
        return Check(0.0, 0.0, math.nan)
    space = Space("validation", "0" * 64, query.shape[1])
    mean = query.mean(0)
    spread = float(1 - mean @ mean)
    ranks = watch.rank(
        Embeddings.normalised(space, watch.ids, query, "query model in training"),
        Embeddings.normalised(space, watch.ids, gallery, "gallery model"),
    )
    chance = float(per_query("chance", ranks).mean())
    return Check(float(per_query("recall", ranks).mean()), chance, spread)
