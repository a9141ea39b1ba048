"""Faults put into real vectors: what a cosine or tolerance gate says, what hetero says, the truth.

The vectors are the query model's and the gallery model's of the emoji test split. A fault changes
the query vectors only, as a device would. Some faults are what devices do (stale output, dead
channels, coarse numbers); some are built to show how far a gate can be from the truth, and say so.
The truth is the loss over all queries of all classes; hetero judges on half of the classes, drawn
by lot, so that it has something to infer, and again while queries come in, in random order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hetero import data
from hetero.bundle import Bundle
from hetero.check import Reference, losses
from hetero.errors import DataError
from hetero.evaluate import task
from hetero.fit import Settings
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.report import Limit
from hetero.space import Embeddings
from hetero.stages.embedding import embed
from hetero.stages.stopping import until_certain
from hetero.train import GalleryRecipe, QueryRecipe, train_gallery, train_query
from hetero.verdict import decide, paired

MARGIN, ALPHA, BETA = 0.02, 0.05, 0.05

#: The gates that are in use, each as (name, whether these vectors pass it).
GATES: tuple[tuple[str, Callable[[np.ndarray, np.ndarray], bool]], ...] = (
    ("median cosine >= 0.99", lambda cosine, _: bool(np.median(cosine) >= 0.99)),
    ("worst cosine >= 0.99", lambda cosine, _: bool(cosine.min() >= 0.99)),
    ("largest difference <= 0.01", lambda _, difference: bool(difference.max() <= 0.01)),
)


def train(folder: Path) -> tuple[Path, Path]:
    """A small pair of models, trained in some minutes; what is there is taken over."""
    images, preprocess = data.load("emoji"), Preprocess(32)
    say = Reporter()
    gallery = train_gallery(
        images,
        GalleryRecipe(backbone="resnet:width=16", dim=128),
        preprocess,
        Settings(epochs=12),
        folder / "gallery",
        resume=True,
        reporter=say,
    )
    train_query(
        gallery,
        images,
        QueryRecipe(backbone="mobilenet:width=0.5", method="regression", views=0),
        Settings(epochs=12),
        folder / "query",
        resume=True,
        reporter=say,
    )
    return folder / "query", folder / "gallery"


def _noise(rng: np.random.Generator, rows: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Noise of length 1 for each row, within these axes."""
    raw = rng.normal(size=(len(rows), len(axes))) @ axes
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def faults(reference: Reference, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """A sentence and the query vectors with the fault in them, not yet of unit length."""
    job = reference.task
    rng = np.random.default_rng(seed)
    query = reference.query.take(job.query_ids).vectors.astype(np.float64)
    gallery = reference.gallery.take(job.gallery_ids).vectors.astype(np.float64)
    axes = np.linalg.svd(gallery - gallery.mean(0), full_matrices=False)[2]
    count = len(query)
    wrong = query @ gallery.T
    labels, groups = np.asarray(job.truth.gallery_labels), np.asarray(job.truth.gallery_groups)
    for row in range(count):
        hidden = groups == job.truth.query_groups[row]
        wrong[row, hidden | (labels == job.truth.query_labels[row])] = -np.inf
    nearest = gallery[wrong.argmax(1)]

    yield "nothing", query
    yield (
        "near ties broken wrongly: moved 0.03 towards the nearest wrong picture (worst case)",
        (query + 0.03 * nearest),
    )
    yield "the same, moved 0.05", query + 0.05 * nearest
    offset = _worst_offset(reference, query, axes[:6], rng)
    for length in (0.14, 0.2):
        yield (
            f"one wrong bias: a vector of length {length:g} added to all, the worst of 60 drawn "
            "by lot in the gallery's 6 main axes",
            query + length * offset,
        )
    for share in (0.04, 0.08):
        moved = np.arange(count)
        some = rng.choice(count, round(share * count), replace=False)
        moved[some] = np.roll(some, 1)
        yield f"vectors of {100 * share:g} % of the queries exchanged", query[moved]
    # Queries come in any order, not class by class as in the collection.
    order = rng.permutation(count)
    stale = rng.random(count) < 0.1
    stale[0] = False
    kept = query.copy()
    kept[order] = query[order[np.maximum.accumulate(np.where(stale, 0, np.arange(count)))]]
    yield "10 % of the answers stale: the vector of the query before", kept
    for gain in (0.3, 1.0):
        stretched = query + gain * (query @ axes[:3].T) @ axes[:3]
        yield f"the gallery's 3 main axes stretched by {100 * gain:g} %", stretched
    mean = query.mean(0)
    yield "collapse: 70 % of the way to the mean vector", 0.3 * query + 0.7 * mean
    for bits in (3, 4):
        step = np.abs(query).max() / (2 ** (bits - 1) - 1)
        yield f"numbers of {bits} bits", np.round(query / step) * step
    dead = query.copy()
    dead[:, rng.permutation(query.shape[1])[:4]] = 0
    yield "4 channels dead", dead
    yield "numbers cut at 0.15", np.clip(query, -0.15, 0.15)
    yield "noise of length 0.33 in all directions", query + 0.33 * _noise(rng, query, axes)
    tail = axes[-len(axes) // 4 :]
    for length in (0.33, 0.5):
        yield (
            f"noise of length {length:g} in the quarter of the axes that the gallery uses least",
            query + length * _noise(rng, query, tail),
        )


def _lost(reference: Reference, vectors: Embeddings) -> np.ndarray:
    return losses(reference.ranks, reference.task.rank(vectors, reference.gallery))[
        "recall_at_1_lost"
    ]


def _unit(reference: Reference, rows: np.ndarray) -> Embeddings:
    ids = reference.task.query_ids
    return Embeddings.normalised(reference.query.space, ids, rows.astype(np.float32), "faulty")


def _worst_offset(
    reference: Reference, query: np.ndarray, axes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    found = []
    for _ in range(60):
        raw = rng.normal(size=len(axes)) @ axes
        raw /= np.linalg.norm(raw)
        found.append((_lost(reference, _unit(reference, query + 0.14 * raw)).mean(), raw))
    worst: np.ndarray = max(found, key=lambda x: float(x[0]))[1]
    return worst


def _half(reference: Reference, seed: int) -> np.ndarray:
    """Which answerable queries belong to the half of the classes that is judged."""
    names = np.asarray(reference.ranks.labels)
    classes = np.unique(names)
    some = np.random.default_rng(seed).permutation(classes)[: len(classes) // 2]
    chosen: np.ndarray = np.isin(names, some)
    return chosen


def judge(reference: Reference, name: str, rows: np.ndarray, folder: Path) -> dict[str, Any]:
    """One fault by every judge."""
    query = reference.query.take(reference.task.query_ids).vectors.astype(np.float64)
    vectors = _unit(reference, rows)
    cosine = (vectors.vectors * query).sum(1)
    difference = np.abs(vectors.vectors - query)
    lost = _lost(reference, vectors)
    seen = _half(reference, 1)
    labels = np.asarray(reference.ranks.labels)
    evidence = paired(lost[seen], labels[seen].tolist())
    fixed = decide(evidence, MARGIN, ALPHA, BETA)
    limit = Limit("recall_at_1_lost", at_most=MARGIN, by="noninferiority", alpha=ALPHA, beta=BETA)
    asked = until_certain(
        reference, (limit,), lambda ids, _: vectors.take(ids), folder, {}, resume=False
    )
    after = asked.evidence.get("recall_at_1_lost") or replace(
        paired(lost, labels.tolist()), design="after_sequence"
    )
    return {
        "fault": name,
        "cosine_worst": float(cosine.min()),
        "cosine_median": float(np.median(cosine)),
        "difference_largest": float(difference.max()),
        "gates": {gate: passed(cosine, difference) for gate, passed in GATES},
        "lost": float(lost.mean()),
        "flipped": float((lost > 0).mean()),
        "harmful": bool(lost.mean() >= MARGIN),
        "verdict": fixed.outcome,
        "verdict_low": fixed.low,
        "verdict_high": fixed.high,
        "verdict_queries": evidence.queries,
        "more_queries": fixed.more_queries,
        "sequential": decide(after, MARGIN, ALPHA, BETA).outcome,
        "sequential_queries": asked.queries,
    }


def run(query: Path, gallery: Path) -> dict[str, Any]:
    """Every fault by every judge, as plain numbers."""
    import tempfile

    images = data.load("emoji")
    theirs, ours = Bundle.load(gallery), Bundle.load(query)
    theirs.space.must_match(ours.space, f"query bundle {query}")
    job = task(images, "test")
    if set(ours.train_classes()) & set(images.classes("test")):
        raise DataError(f"{query}: it was trained on test classes")
    pixels = images.pixels(job.rows, theirs.preprocess)
    quiet = Reporter(quiet=True)
    reference = Reference.make(
        job, embed(theirs, job.ids, pixels, quiet), embed(ours, job.ids, pixels, quiet)
    )
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, rows) in enumerate(faults(reference)):
            out.append(judge(reference, name, rows, Path(folder) / str(number)))
            x = out[-1]
            print(f"{name}: cosine {x['cosine_worst']:.4f}, lost {x['lost']:.4f}, {x['verdict']}")
    return {
        "data": images.name,
        "query_model": f"{ours.manifest.model.backbone}, weights {ours.digest[:12]}",
        "gallery_model": f"{theirs.manifest.model.backbone}, weights {theirs.digest[:12]}",
        "recall_at_1": float((reference.ranks.best == 0).mean()),
        "classes": len(set(reference.ranks.labels)),
        "queries": len(reference.ranks.queries),
        "margin": MARGIN,
        "alpha": ALPHA,
        "beta": BETA,
        "seed": 0,
        "faults": out,
    }
