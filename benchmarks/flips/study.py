"""What is trained: sizes, jobs, and one job done and scored."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hetero.data import Images, Split

#: Of the old models' training pictures: "50 % to 100 % samples" of arXiv:2011.09161.
OLD_SHARE = 0.5

#: Strengths tried, by method; the one kept is chosen by validation pictures of all seeds.
#: "shipped" is an ensemble of the new models in which the old one is so many times a member.
SWEEP: Mapping[str, tuple[float, ...]] = {
    "naive": (2.0,),
    "focal_kl": (0.03, 0.05, 0.1, 0.3, 1.0),
    "focal_logit": (0.01, 0.03, 0.1),
    "ldi": (0.1, 0.3, 1.0),
    "bct": (1.0,),
    "shipped": (1.0, 3.0),
}

#: Validation pictures that strengths are chosen by: all there are. A training watches fewer.
JUDGED = 1_000_000

#: Splits whose logits are kept.
SCORED: tuple[Split, ...] = ("val", "test")

#: A strength is kept out if it costs more error than this on validation pictures, mean over seeds;
#: "shipped" may cost none: an ensemble's student has error to spare.
MOST_ERROR = {"shipped": 0.0}
USUAL_ERROR = 0.01


@dataclass(frozen=True)
class Size:
    """How large the study is.

    Attributes:
        name: "quick", "full" or "large".
        pictures: Training pictures of a new model; an old one sees half of them.
        backbone: Of old and new models alike.
        epochs, batch: Of every model.
        seeds: Of the study; members of the ensembles are the plain models of these seeds.
        test: Test pictures, evenly taken from all.
        views: Stored views. Few are learnt by heart: with 4 a model fits all of its views and
            three quarters of the pictures themselves.
    """

    name: str
    pictures: int
    backbone: str
    epochs: int
    batch: int
    seeds: tuple[int, ...]
    test: int
    views: int


SIZES = {
    "quick": Size("quick", 600, "mobilenet:width=0.25,depth=0.3", 2, 64, (0, 1), 600, 1),
    "full": Size("full", 1250, "resnet:width=8", 80, 32, (0, 1, 2), 10_000, 32),
    "large": Size("large", 27_000, "resnet:width=16", 30, 128, (0, 1, 2), 10_000, 8),
}


@dataclass(frozen=True)
class Job:
    """One classifier to train.

    Attributes:
        name: Folder name, unique within a seed.
        seed: Of weights, order and views.
        share: Of the size's training pictures.
        method: See `hetero.pct.methods`.
        settings: Of the method.
        old: Folders of the old model, or of the members of an ensemble, below the work folder.
    """

    name: str
    seed: int
    share: float = 1.0
    method: str = "none"
    settings: Mapping[str, float] = field(default_factory=dict)
    old: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Below the work folder."""
        return f"seed-{self.seed}/{self.name}"


def first(size: Size) -> list[Job]:
    """Old models, and new ones that know nothing of them."""
    return [job for s in size.seeds for job in (Job("old", s, share=OLD_SHARE), Job("none", s))]


def name_of(method: str, weight: float) -> str:
    """Of a job of the sweep."""
    return f"{method}-{weight:g}"


def held(method: str, seed: int, weight: float, size: Size) -> Job:
    """A new model held to the old one of its seed, and as "shipped" to all plain new ones too."""
    old = Job("old", seed).folder
    name = name_of(method, weight)
    if method == "shipped":
        return Job(name, seed, 1.0, "ldi", {}, (*members("none", size), *(old,) * int(weight)))
    return Job(name, seed, 1.0, method, {"weight": weight}, (old,))


def sweep(size: Size) -> list[Job]:
    """All strengths, at all seeds."""
    return [held(m, s, w, size) for s in size.seeds for m, ws in SWEEP.items() for w in ws]


def rest(size: Size, kept: Mapping[str, float]) -> list[Job]:
    """The ablations at the chosen strengths, and ELODI's students."""
    jobs = []
    for s in size.seeds:
        old = (Job("old", s).folder,)
        for name, method, changed in (
            ("kl-temperature-1", "focal_kl", {"temperature": 1.0}),
            ("logit-focus-20", "focal_logit", {"focus": 20.0}),
        ):
            jobs.append(Job(name, s, 1.0, method, {"weight": kept[method], **changed}, old))
        for name, member, share in (("elodi-old", "old", OLD_SHARE), ("elodi", "none", 1.0)):
            jobs.append(Job(name, s, share, "ldi", {}, members(member, size)))
    return jobs


def members(name: str, size: Size) -> tuple[str, ...]:
    """Folders of an ensemble: the old or the plain new models of all seeds."""
    return tuple(Job(name, s).folder for s in size.seeds)


def last(size: Size) -> list[Job]:
    """ELODI's new students once more, with the old student as one more member."""
    return [
        Job(
            "elodi-and-old", s, 1.0, "ldi", {}, (*members("none", size), Job("elodi-old", s).folder)
        )
        for s in size.seeds
    ]


def fewer(images: Images, count: int, share: float, test: int, val: int = 0) -> Images:
    """The collection with `share` of `count` training pictures, and at most `test` test pictures.

    Pictures are taken in the order of their ids' hashes, so that fewer are a part of more.

    Args:
        images: All of them.
        count: Training pictures, of which `share` are taken.
        share: 0..1.
        test: Test pictures.
        val: Validation pictures; 0 for the few that a training watches.
    """

    def place(row: int) -> bytes:
        return hashlib.sha256(images.ids[row].encode()).digest()

    train = sorted(images.rows("train"), key=place)[: round(count * share)]
    tested = sorted(images.rows("test"), key=place)[:test]
    val = sorted(images.rows("val"), key=place)[: val or max(200, count // 9)]
    rows = sorted([*train, *val, *tested])
    return replace(
        images,
        **{
            k: tuple(getattr(images, k)[r] for r in rows)
            for k in ("ids", "labels", "groups", "splits", "roles")
        },
        read=lambda row: images.read(rows[row]),
    )


def done(job: Job, data: str, size: Size, work: Path) -> dict[str, Any]:
    """Train one job, keep its answers, and say what it cost; a finished one is taken over."""
    import numpy as np
    import torch

    from hetero import data as sources
    from hetero import models
    from hetero.augment import Augment
    from hetero.bundle import Bundle
    from hetero.fit import Settings
    from hetero.pct.train import ClassifierRecipe, train_classifier
    from hetero.preprocess import Preprocess
    from hetero.progress import Reporter

    torch.set_num_threads(1)
    root = work / job.folder
    note = root.with_name(f"{root.name}.json")  # a name may have a point in it
    asked = json.loads(json.dumps({"job": asdict(job), "size": asdict(size)}))
    whole = sources.load(data)
    judged = fewer(whole, size.pictures, job.share, size.test, JUDGED)
    if note.exists():
        kept: dict[str, Any] = json.loads(note.read_text())
        if {k: kept[k] for k in asked} == asked:
            _answer(Bundle.load(root), root, judged)
            return kept
        # Of other settings: nothing of it is of use.
        note.unlink()
        shutil.rmtree(root, ignore_errors=True)
    images = fewer(whole, size.pictures, job.share, size.test)
    # Light views: small pictures of things that a mirror leaves what they are.
    views = Augment(0, 0, 0, 0.1, 0.5, 0.1, 0, 0)
    begun = time.process_time()
    bundle = train_classifier(
        images,
        ClassifierRecipe(size.backbone, job.method, job.settings, size.views),
        Preprocess(32),
        Settings(
            epochs=size.epochs, batch=size.batch, seed=job.seed, augment=views, keep_going=True
        ),
        root,
        old=[Bundle.load(work / folder) for folder in job.old],
        vectors=work / f"seed-{job.seed}" / "logits",
        resume=True,
        reporter=Reporter(quiet=True),
    )
    _answer(bundle, root, judged)
    net = models.load_any(bundle)
    # Only to know whether the model was trained long enough to be judged; no result.
    rows = images.rows("train")[:2000]
    logits = models.embed_pixels(net, bundle.preprocess, images.pixels(rows, bundle.preprocess))
    names = np.asarray(bundle.train_classes())[logits.argmax(1)]
    fitted = float(np.mean(names == [images.labels[r] for r in rows]))
    found = {
        **asked,
        "cpu_s": round(time.process_time() - begun, 1),
        "macs": bundle.manifest.model.macs,
        "fitted": fitted,
    }
    note.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _answer(bundle: Any, root: Path, images: Images) -> None:
    """Store the logits of all pictures that are scored, where they are not there."""
    import numpy as np

    from hetero import models

    net = models.load_any(bundle)
    for split in SCORED:
        rows, path = images.rows(split), root / f"{split}.npy"
        if path.exists() and len(np.load(path, mmap_mode="r", allow_pickle=False)) == len(rows):
            continue
        pixels = images.pixels(rows, bundle.preprocess)
        np.save(path, models.embed_pixels(net, bundle.preprocess, pixels))


def score(
    old: tuple[Path, ...], new: tuple[Path, ...], images: Images, split: str
) -> dict[str, Any]:
    """Flips between two models, or ensembles by their mean logits.

    Args:
        old: Folders of one model or of the members.
        new: The same of the new side.
        images: As the new models were trained with.
        split: "val" or "test".
    """
    import numpy as np

    from hetero.pct.metrics import compare

    rows = images.rows(split)  # type: ignore[arg-type]
    labels = [images.labels[r] for r in rows]
    number = {c: i for i, c in enumerate(images.classes("train"))}
    right = [number[x] for x in labels]
    sides = [
        np.mean([np.load(f / f"{split}.npy", allow_pickle=False) for f in s], axis=0).argmax(1)
        == right
        for s in (old, new)
    ]
    return compare(*sides, labels, [images.ids[r] for r in rows]).overall.to_json()


def best(
    scores: Mapping[float, Sequence[dict[str, Any]]], plain: Sequence[dict[str, Any]], most: float
) -> float:
    """The strength with the least relative NFR at no more than `most` more error than plain.

    If none keeps to that, the one with the least error.

    Args:
        scores: Strength to scores on validation pictures, one of each seed.
        plain: Those of plain training.
        most: In 0..1, of the means over seeds.
    """
    errors = {w: mean_error(s) for w, s in scores.items()}
    fair = [w for w, error in errors.items() if error <= mean_error(plain) + most]
    if not fair:
        return min(errors, key=lambda w: errors[w])
    return min(fair, key=lambda w: sum(rate(s, "relative_nfr") for s in scores[w]))


def mean_error(scores: Sequence[dict[str, Any]]) -> float:
    """Of the new models, over seeds, in 0..1."""
    return sum(rate(s, "er_new") for s in scores) / len(scores)


def rate(scores: dict[str, Any], name: str) -> float:
    """In 0..1; relative flips where none were expected count as 0."""
    found = scores[name]
    return 0.0 if found is None else float(found["value"])
