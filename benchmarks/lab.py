"""What benchmarks share: models trained once and kept, two at a time, and the corners they score.

Every job is a bundle in its own folder; a finished one is taken over, so an interrupted benchmark
goes on where it was. Two processes of one thread each get more out of two cores than one of two.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from hetero.data import Images

#: Where trained models are kept between runs; not part of the results.
WORK = Path("runs/benchmarks")
RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Job:
    """One model to train.

    Attributes:
        name: Folder name, unique within a seed.
        role: "gallery", "query" or "widths" (several query models in one run).
        backbone: See `hetero.models`.
        epochs: Passes over the training pictures.
        gallery: Name of the gallery job, for query jobs.
        method: See `hetero.methods`.
        settings: Of the method.
        views: Stored views.
        dim: Of the embedding.
        head: Of a gallery model's classifier.
        keep: Share of the training classes that it sees, 0..1.
        widths: For role "widths".
        batch, lr, mix: See `hetero.fit.Settings` and `hetero.augment`.
        strength: Multiplies zoom, turn, shift and colour of the views.
    """

    name: str
    role: str
    backbone: str
    epochs: int
    gallery: str = ""
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    views: int = 0
    dim: int = 128
    head: str = "cosine"
    keep: float = 1.0
    widths: tuple[float, ...] = ()
    batch: int = 128
    lr: float = 3e-3
    mix: float = 0.0
    strength: float = 1.0


def fewer_classes(images: Images, share: float) -> Images:
    """The same collection with this share of its training classes; val and test stay whole."""
    if share >= 1:
        return images
    classes = images.classes("train")
    kept = set(classes[:: max(1, round(1 / share))])
    rows = [r for r, s in enumerate(images.splits) if s != "train" or images.labels[r] in kept]
    return replace(
        images,
        name=f"{images.name} ({share:g} of classes)",
        ids=tuple(images.ids[r] for r in rows),
        labels=tuple(images.labels[r] for r in rows),
        groups=tuple(images.groups[r] for r in rows),
        splits=tuple(images.splits[r] for r in rows),
        roles=tuple(images.roles[r] for r in rows),
        read=lambda row: images.read(rows[row]),
    )


def train(
    job: Job, data: str, size_px: int, seed: int, folder: Path, keep: float
) -> dict[str, Any]:
    """Train one job and say what it cost.

    Args:
        job: What to train.
        data: Collection, as `hetero.data.load` takes it.
        size_px: Input size.
        seed: Of weights, order and augmentation.
        folder: Of this data and seed; bundles are folder/NAME.
        keep: Share of the training classes that every job sees.
    """
    import torch

    from hetero import data as sources
    from hetero.augment import Augment
    from hetero.bundle import Bundle
    from hetero.fit import Settings
    from hetero.preprocess import Preprocess
    from hetero.progress import Reporter
    from hetero.train import GalleryRecipe, QueryRecipe, train_gallery, train_query, train_widths

    torch.set_num_threads(1)
    root, note = folder / job.name, folder / f"{job.name}.json"
    if note.exists() and json.loads(note.read_text())["job"] == json.loads(json.dumps(asdict(job))):
        kept: dict[str, Any] = json.loads(note.read_text())
        return kept
    images = fewer_classes(fewer_classes(sources.load(data), keep), job.keep)
    settings = Settings(
        epochs=job.epochs,
        batch=job.batch,
        lr=job.lr,
        seed=seed,
        augment=replace(
            Augment(),
            mix=job.mix,
            **{
                k: getattr(Augment(), k) * job.strength
                for k in ("scale", "rotate_deg", "stretch", "shift", "colour")
            },
        ),
        keep_going=True,
    )
    begun, wall = time.process_time(), time.monotonic()
    quiet = Reporter(quiet=True)
    if job.role == "gallery":
        recipe = GalleryRecipe(job.backbone, job.dim, job.head)  # type: ignore[arg-type]
        made = [train_gallery(images, recipe, Preprocess(size_px), settings, root, reporter=quiet)]
    else:
        gallery = Bundle.load(folder / job.gallery)
        query = QueryRecipe(job.backbone, job.method, job.settings, job.views)
        vectors = folder / f"vectors-{job.gallery}"
        if job.role == "query":
            made = [
                train_query(gallery, images, query, settings, root, vectors=vectors, reporter=quiet)
            ]
        else:
            made = list(
                train_widths(
                    gallery,
                    images,
                    query,
                    job.widths,
                    settings,
                    root,
                    vectors=vectors,
                    reporter=quiet,
                )
            )
    found = {
        "job": asdict(job),
        "seed": seed,
        "data": data.partition(":")[0],  # not where it lies on this machine
        "cpu_s": round(time.process_time() - begun, 1),
        "wall_s": round(time.monotonic() - wall, 1),
        "bundles": [str(b.root.relative_to(folder)) for b in made],
        "macs": [b.manifest.model.macs for b in made],
        "parameters": [b.manifest.model.parameters for b in made],
    }
    note.write_text(json.dumps(found, indent=1) + "\n")
    return found


def run(
    jobs: Sequence[Job],
    data: str,
    size_px: int,
    seeds: Iterable[int],
    work: Path,
    *,
    keep: float = 1.0,
    workers: int = 2,
    then: Callable[..., dict[str, Any]] | None = None,
    given: Sequence[Job] = (),
) -> dict[int, dict[str, dict[str, Any]]]:
    """Train all jobs for all seeds and return seed -> name -> what it cost (and scored).

    Args:
        jobs: Gallery jobs are trained before the query jobs that name them.
        data: See `train`.
        size_px: See `train`.
        seeds: See `train`.
        work: Gets seed-S/NAME.
        keep: See `train`.
        workers: Processes of one thread each.
        then: Called in the worker with (job's record, data, folder) after training; what it
            returns is added to the record.
        given: Gallery jobs trained first (or found on disk) that are neither scored nor returned.
    """
    seeds = list(seeds)
    out: dict[int, dict[str, dict[str, Any]]] = {seed: {} for seed in seeds}
    # Children read these as they start.
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "30000"}
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for role in ("gallery", "first", "rest"):
            seen: set[tuple[object, ...]] = set()
            pending = {}
            for seed in seeds:
                folder = work / f"seed-{seed}"
                folder.mkdir(parents=True, exist_ok=True)
                for job in [*given, *jobs]:
                    if job.name in out[seed] or (job.role == "gallery") != (role == "gallery"):
                        continue
                    # The first query job of each set of views embeds them for all others.
                    views = (seed, job.gallery, job.views, job.mix, job.strength)
                    if role == "first" and views in seen:
                        continue
                    seen.add(views)
                    task = pool.submit(train, job, data, size_px, seed, folder, keep)
                    pending[task] = (seed, job.name)
            for task in as_completed(pending):
                seed, name = pending[task]
                out[seed][name] = task.result()
                print(f"seed {seed} {name}: {out[seed][name]['cpu_s']} CPU s", flush=True)
        for seed in seeds:
            for job in given:
                out[seed].pop(job.name)
        if then is not None:
            # Only now is every model there that another one is scored against.
            folders = {seed: work / f"seed-{seed}" for seed in seeds}
            scoring = {
                pool.submit(_score, then, found, data, folders[seed]): (seed, name)
                for seed in seeds
                for name, found in out[seed].items()
                if "scores" not in found
            }
            for task in as_completed(scoring):
                seed, name = scoring[task]
                out[seed][name] = task.result()
    return out


def again(work: Path, seed: int) -> Path:
    """What `run` takes as `work` for query models of another seed and the same gallery model.

    The gallery model of seed 0 in `work`, which has to be there, is copied once.
    """
    folder = work / f"again-{seed}" / f"seed-{seed}"
    if not (folder / "gallery.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(work / "seed-0" / "gallery", folder / "gallery", dirs_exist_ok=True)
        shutil.copy(work / "seed-0" / "gallery.json", folder / "gallery.json")
    return folder.parent


def _score(
    then: Callable[..., dict[str, Any]], found: dict[str, Any], data: str, folder: Path
) -> dict[str, Any]:
    scored = found | then(found, data, folder)
    (folder / f"{found['job']['name']}.json").write_text(json.dumps(scored, indent=1) + "\n")
    return scored


def epoch_speed(objective: Any, pixels: Any, batch: int, folder: Path) -> float:
    """Pictures per second of one epoch of `hetero.fit.fit`, as it reports them itself."""
    from hetero.fit import Check, Settings, fit
    from hetero.progress import Reporter

    (epoch,) = fit(
        objective,
        pixels,
        Settings(epochs=1, batch=batch, lr=1e-5, keep_going=True),
        folder=folder,
        identity={},
        validate=lambda net: Check(1.0, 0.0, 1.0),
        resume=False,
        reporter=Reporter(quiet=True),
        what="benchmark",
    )
    return epoch.images_per_s


def embed_split(root: Path, data: str, split: Literal["train", "val", "test"] = "test") -> Any:
    """The task of a collection's split and a bundle's vectors of its pictures.

    The last ones are remembered: a process that scores many query models wants the gallery model's
    again for each.
    """
    from hetero.bundle import Bundle

    return _embed(root, Bundle.load(root).digest, data, split)


@functools.lru_cache(maxsize=4)
def _embed(root: Path, digest: str, data: str, split: Literal["train", "val", "test"]) -> Any:
    from hetero import data as sources
    from hetero import models
    from hetero.bundle import Bundle
    from hetero.evaluate import task

    images, bundle = sources.load(data), Bundle.load(root)
    job = task(images, split)
    pixels = images.pixels(job.rows, bundle.preprocess)
    return job, models.TorchEmbedder(bundle).embed(job.ids, pixels)


def corners(found: dict[str, Any], data: str, folder: Path) -> dict[str, Any]:
    """Recall@1 and mAP of a trained job: against its gallery, against itself.

    A gallery job is scored against itself; a job of role "gallery" other than the one named
    "gallery" also with its vectors thrown into that one's index, as an incompatible model.
    """
    job = found["job"]
    out: dict[str, Any] = {"scores": {}}
    theirs = None
    name = job["gallery"] or ("gallery" if job["name"] != "gallery" else "")
    if name and (folder / name).exists():
        _, theirs = embed_split(folder / name, data)
    for at, root in enumerate(found["bundles"]):
        task, mine = embed_split(folder / root, data)
        scored = {"own": pair(task, mine, mine)}
        if theirs is not None and theirs.space.dim == mine.space.dim:
            if theirs.space != mine.space:
                mine = mine.pretend_in(theirs.space)
            scored["heterogeneous"] = pair(task, mine, theirs)
        out["scores"][root] = {**scored, "macs": found["macs"][at]}
    return out


def whitened(root: Path, gallery: Path, data: str) -> dict[str, float]:
    """Recall@1 and mAP of a trained job in the gallery's index, brought there by the map once more.

    Kept beside the model, so that it is done once.
    """
    import torch

    from hetero import data as sources
    from hetero.bundle import Bundle
    from hetero.progress import Reporter
    from hetero.stages.aligning import AlignOptions, align

    note = root.with_name(f"{root.name}-whitened.json")
    if note.exists():
        kept: dict[str, float] = json.loads(note.read_text())
        return kept
    torch.set_num_threads(1)
    output = root.with_name(f"{root.name}-whitened")
    sides = [Bundle.load(x) for x in (root, gallery)]
    images, options = sources.load(data), AlignOptions("whiten")
    align(sides[0], sides[1], images, output, options, Reporter(quiet=True))
    task, theirs = embed_split(gallery, data)
    scores = pair(task, embed_split(output, data)[1], theirs)
    note.write_text(json.dumps(scores) + "\n")
    return scores


def pair(task: Any, queries: Any, gallery: Any) -> dict[str, float]:
    """Recall@1 and mAP of one pair, in 0..1."""
    from hetero.metrics import per_query

    ranks = task.rank(queries, gallery)
    return {
        "recall_at_1": float(per_query("recall", ranks, 1).mean()),
        "map": float(per_query("average_precision", ranks).mean()),
    }


def chance(data: str, dim: int = 128, seed: int = 0) -> dict[str, float]:
    """What random vectors score on the test task."""
    import numpy as np

    from hetero import data as sources
    from hetero.evaluate import task
    from hetero.space import Embeddings, Space

    job = task(sources.load(data), "test")
    rng = np.random.default_rng(seed)
    space = Space("random", "0" * 64, dim)
    sides = [
        Embeddings.normalised(space, job.ids, rng.normal(size=(len(job.ids), dim)), "random")
        for _ in range(2)
    ]
    return pair(job, *sides)


def parser(description: str | None, names: Iterable[str]) -> argparse.ArgumentParser:
    """What the commands that study a data set by name all take."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("name", choices=sorted(names))
    made.add_argument("--data", default="emoji")
    made.add_argument("--work", type=Path, default=WORK)
    made.add_argument("--results", type=Path, default=RESULTS)
    return made


def heterogeneous(record: dict[str, Any]) -> dict[str, float]:
    """The scores of a job's one model in the gallery's index, 0..1."""
    (scores,) = record["scores"].values()
    found: dict[str, float] = scores["heterogeneous"]
    return found


def in_percent(scores: Mapping[str, float]) -> str:
    """Recall@1 / mAP, as tables have them."""
    return f"{100 * scores['recall_at_1']:.1f} / {100 * scores['map']:.1f}"


@contextmanager
def plots(count: int) -> Iterator[tuple[Any, Any]]:
    """A figure of so many plots side by side, of which `svg` gives the same text every time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({"svg.hashsalt": "hetero", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(1, count, figsize=(4 * count, 3.2), layout="constrained")
        yield figure, axes
        plt.close(figure)


def svg(figure: Any) -> str:
    """The text of a figure of `plots`, inside of that."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    import platform

    import torch

    return {"cpus": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}


def save(path: Path, value: dict[str, Any]) -> None:
    """Write raw results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
