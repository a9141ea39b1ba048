"""Scores of the acceptance experiments, taken in the worker that trained the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lab import corners, embed_split, pair


def score(found: dict[str, Any], data: str, folder: Path) -> dict[str, Any]:
    """The corners of a job, and what else its experiments need."""
    out = corners(found, data, folder)
    name = found["job"]["name"]
    if name == "csd+regression-w0.5":
        out["score_scale"] = score_scale(folder / name, folder / "gallery", data)
    return out


def procrustes(folder: Path, data: str, keep: float) -> dict[str, float]:
    """The independent model rotated onto the gallery's vectors of the training pictures."""
    from benchmarks.lab import fewer_classes
    from hetero import data as sources
    from hetero import maps, models
    from hetero.bundle import Bundle
    from hetero.space import Embeddings

    images = fewer_classes(sources.load(data), keep)
    rows = images.rows("train")
    sides = [Bundle.load(folder / name) for name in ("independent", "gallery")]
    pixels = images.pixels(rows, sides[0].preprocess)
    source, target = (models.embed_pixels(models.load(b), b.preprocess, pixels) for b in sides)
    import torch

    fitted = maps.fit(maps.make("procrustes"), source, target)
    task, query = embed_split(folder / "independent", data)
    _, gallery = embed_split(folder / "gallery", data)
    with torch.no_grad():
        moved = fitted(torch.from_numpy(query.vectors.copy())).numpy()
    return pair(
        task, Embeddings.normalised(gallery.space, query.ids, moved, "rotated query"), gallery
    )


def score_scale(query: Path, gallery: Path, data: str) -> dict[str, float]:
    """Do query-gallery and gallery-gallery cosines live on one scale? And mixed galleries.

    Half of the gallery's rows, a random half, are embedded by the query model instead: a gallery in
    the middle of a refresh. "corrected" shifts and scales the cosines to rows of the query model so
    that their same-class and different-class means, on validation pictures, are those of the rows
    of the gallery model: a monotone correction.
    """
    from hetero import data as sources
    from hetero import models
    from hetero.bundle import Bundle
    from hetero.evaluate import task as make_task

    images = sources.load(data)
    bundles = [Bundle.load(query), Bundle.load(gallery)]

    def both(split: Any) -> tuple[Any, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        job = make_task(images, split)
        pixels = images.pixels(job.rows, bundles[0].preprocess)
        q, g = (models.TorchEmbedder(b).embed(job.ids, pixels) for b in bundles)
        sides = q.take(job.query_ids).vectors, q.take(job.gallery_ids).vectors
        theirs = g.take(job.query_ids).vectors, g.take(job.gallery_ids).vectors
        return (
            job,
            np.stack([sides[0] @ sides[1].T, sides[0] @ theirs[1].T]),
            theirs[0] @ theirs[1].T,
        )

    def means(job: Any, cosine: np.ndarray[Any, Any]) -> tuple[float, float]:
        label = lambda side: np.asarray(getattr(job.truth, f"{side}_labels"))  # noqa: E731
        group = lambda side: np.asarray(getattr(job.truth, f"{side}_groups"))  # noqa: E731
        visible = group("query")[:, None] != group("gallery")[None]
        same = label("query")[:, None] == label("gallery")[None]
        return float(cosine[same & visible].mean()), float(cosine[~same & visible].mean())

    job, ours, _ = both("val")
    (a1, a0), (b1, b0) = means(job, ours[0]), means(job, ours[1])
    job, ours, theirs = both("test")
    swap = np.random.default_rng(0).random(len(job.gallery_ids)) < 0.5
    mixed = np.where(swap, ours[0], ours[1])
    moved = (ours[0] - a0) / (a1 - a0) * (b1 - b0) + b0
    corrected = np.where(swap, moved, ours[1])
    same_qg, other_qg = means(job, ours[1])
    same_gg, other_gg = means(job, theirs)
    return {
        "same_class_query_gallery": same_qg,
        "same_class_gallery_gallery": same_gg,
        "other_class_query_gallery": other_qg,
        "other_class_gallery_gallery": other_gg,
        "map_gallery_rows": average_precision(job, ours[1]),
        "map_query_rows": average_precision(job, ours[0]),
        "map_mixed": average_precision(job, mixed),
        "map_mixed_corrected": average_precision(job, corrected),
    }


def average_precision(job: Any, cosine: np.ndarray[Any, Any]) -> float:
    """mAP of a similarity matrix under the task's truth, by scikit-learn."""
    from sklearn.metrics import average_precision_score

    labels, groups = np.asarray(job.truth.gallery_labels), np.asarray(job.truth.gallery_groups)
    found = []
    for row, (label, group) in enumerate(
        zip(job.truth.query_labels, job.truth.query_groups, strict=True)
    ):
        seen = groups != group
        right = labels[seen] == label
        if right.any():
            found.append(average_precision_score(right, cosine[row, seen]))
    return float(np.mean(found))
