"""Training of a gallery model, which fixes a space, and of query models into it."""

from __future__ import annotations

import hashlib
import io
import math
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from hetero import _checkpoint, methods, models
from hetero._files import canonical_json, make_folder, write_atomically
from hetero._processes import processes
from hetero.augment import Augment, View, identity
from hetero.bundle import Bundle, Model, space_digest
from hetero.data import Images
from hetero.errors import BundleError, ConfigError, DataError
from hetero.evaluate import Task, task
from hetero.fit import Check, Objective, Settings, fit
from hetero.heads import CosineHead, Margin
from hetero.metrics import per_query
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.space import Embeddings, Space

PROBES = 32


@dataclass(frozen=True)
class GalleryRecipe:
    """What a gallery model is.

    Attributes:
        backbone: See `hetero.models.backbone`.
        dim: Length of the embedding.
        head: Where the classifier's margin goes: "cosine" or "arcface".
        scale: Of the classifier's cosines.
        margin: Of the classifier.
    """

    backbone: str = "resnet:width=16"
    dim: int = 128
    head: Margin = "cosine"
    scale: float = 16.0
    margin: float = 0.1


@dataclass(frozen=True)
class QueryRecipe:
    """What a query model is.

    Attributes:
        backbone: See `hetero.models.backbone`.
        method: A module of `hetero.methods` or a dotted path.
        settings: Its hyper-parameters, where they differ from the defaults.
        views: How many augmented views of each picture the gallery model embeds once, beforehand;
            the query model sees the same views. 0: it sees fresh views, and the gallery's vector
            of the plain picture.
    """

    backbone: str = "mobilenet:width=0.5"
    method: str = "regression"
    settings: Mapping[str, Any] | None = None
    views: int = 0


class _Gallery(Objective):
    """Classification of the training classes by cosine to a learnt row each."""

    def __init__(self, net: nn.Module, head: CosineHead, view: View, labels: Tensor) -> None:
        super().__init__()
        self.net, self.head, self.view = net, head, view
        self.register_buffer("labels", labels, persistent=False)

    def forward(
        self, pixels: Tensor, views: Tensor, rows: Tensor, epoch: int, progress: float
    ) -> Tensor:
        """Cross-entropy under the margin."""
        labels = self.labels[rows]  # type: ignore[index]
        logits = self.head(self.net(self.view(pixels, views)), labels)
        return nn.functional.cross_entropy(logits, labels)


class _Query(Objective):
    """A method's loss against stored gallery vectors."""

    def __init__(
        self,
        net: nn.Module,
        method: methods.Method,
        own: nn.Module,
        view: View,
        stored: Float32[np.ndarray, "v n d"],
        tables: list[Tensor],
        labels: Tensor,
        head: tuple[Tensor, Tensor] | None,
    ) -> None:
        super().__init__()
        self.net, self.method, self.own, self.view = net, method, own, view
        self.stored, self.tables = stored, tables
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("head_rows", head[0] if head else None, persistent=False)
        self.register_buffer("head_labels", head[1] if head else None, persistent=False)

    def draw(self, epoch: int, count: int, generator: torch.Generator, augment: Augment) -> Tensor:
        """The epoch's stored views in turn, or fresh ones."""
        if self.tables:
            return self.tables[epoch % len(self.tables)]
        return augment.draw(count, generator)

    def forward(
        self, pixels: Tensor, views: Tensor, rows: Tensor, epoch: int, progress: float
    ) -> Tensor:
        """The method's loss of one batch."""
        vectors = self.stored[epoch % len(self.stored), rows.cpu().numpy()]
        head_labels = None if self.head_labels is None else self.head_labels[rows]  # type: ignore[index]
        step = methods.Step(
            query=self.net(self.view(pixels, views)),
            gallery=torch.from_numpy(vectors).to(pixels.device),
            labels=self.labels[rows],  # type: ignore[index]
            head=self.head_rows,  # type: ignore[arg-type]
            head_labels=head_labels,
            progress=progress,
        )
        return self.method.loss(step, self.own)


def train_gallery(
    images: Images,
    recipe: GalleryRecipe,
    preprocess: Preprocess,
    settings: Settings,
    root: Path,
    *,
    resume: bool = False,
    reporter: Reporter,
) -> Bundle:
    """The bundle of a gallery model, whose weights define a new space.

    Args:
        images: Trained on its train classes, watched on its validation classes.
        recipe: Backbone, dimension and classifier.
        preprocess: Input size and normalisation.
        settings: Length, rate, seed, augmentation.
        root: Folder of the bundle; its sub-folder training/ holds checkpoint and history.
        resume: Go on from the checkpoint; a bundle already finished is returned as it is.
        reporter: Shows progress.

    Raises:
        DataError: Fewer than two classes to train on.
        TrainingError, Interrupted: See `hetero.fit.fit`.
    """
    run = {
        "role": "gallery",
        "recipe": asdict(recipe),
        "preprocess": preprocess.to_json(),
        "data": images.digest,
    }
    if resume and (done := _finished(root, run, settings)):
        reporter.line(f"gallery model: {root} is finished")
        return done
    reporter = _spoken_by_one(reporter)
    rows, classes, labels = _classes(images)
    torch.manual_seed(settings.seed)
    net = models.build(recipe.backbone, recipe.dim, preprocess.size_px)
    head = CosineHead(recipe.dim, len(classes), recipe.scale, recipe.margin, recipe.head)
    pixels = _pixels(images, rows, preprocess, reporter)
    watch, watched = _watched(images, preprocess, reporter)

    def validate(net: nn.Module) -> Check:
        vectors = models.embed_pixels(net, preprocess, watched)
        return _score(watch, vectors, vectors)

    fit(
        _Gallery(net, head, View(preprocess), labels),
        pixels,
        settings,
        folder=make_folder(root / "training"),
        identity=run,
        validate=validate,
        resume=resume,
        reporter=reporter,
        what="train gallery",
    )
    weights = models.arrays(net)
    digest = space_digest(_bytes_digest(weights), preprocess, recipe.dim)
    name = recipe.backbone.replace(":", "-").replace("=", "").replace(",", "-").replace("/", "-")
    return _write(
        root,
        run,
        settings,
        net=net,
        role="gallery",
        space=Space(name, digest, recipe.dim),
        backbone=recipe.backbone,
        preprocess=preprocess,
        recipe={**asdict(recipe), "method": "classification"},
        parent="",
        images=images,
        tensors={
            "weights": weights,
            "head": {
                "rows": head.rows().detach().cpu().numpy(),
                "classes": np.frombuffer("\n".join(classes).encode(), np.uint8),
            },
        },
        probes=watched[_spread(len(watched))],
        probe_ids=tuple(watch.ids[i] for i in _spread(len(watched))),
    )


def train_query(
    gallery: Bundle,
    images: Images,
    recipe: QueryRecipe,
    settings: Settings,
    root: Path,
    *,
    resume: bool = False,
    reporter: Reporter,
) -> Bundle:
    """The bundle of a query model trained into the gallery bundle's space.

    The gallery model embeds the training pictures once, before training; the vectors are stored in
    training/ and memory-mapped.

    Args:
        gallery: Fixes space, dimension and preprocessing.
        images: As for `train_gallery`.
        recipe: Backbone, method and views.
        settings: As for `train_gallery`.
        root: As for `train_gallery`.
        resume: As for `train_gallery`.
        reporter: As for `train_gallery`.

    Raises:
        ConfigError: The method needs labels or a head that are not there.
        TrainingError, Interrupted: See `hetero.fit.fit`.
    """
    method = methods.make(recipe.method, dict(recipe.settings or {}))
    chosen = methods.settings_of(method)
    run = {
        "role": "query",
        "recipe": {**asdict(recipe), "settings": chosen},
        "parent": gallery.digest,
        "data": images.digest,
    }
    if resume and (done := _finished(root, run, settings)):
        reporter.line(f"query model: {root} is finished")
        return done
    reporter = _spoken_by_one(reporter)
    preprocess = gallery.preprocess
    rows, classes, labels = _classes(images)
    torch.manual_seed(settings.seed)
    net = models.build(recipe.backbone, gallery.space.dim, preprocess.size_px)
    gallery_net = models.load(gallery).to(processes().device)
    pixels = _pixels(images, rows, preprocess, reporter)
    folder = make_folder(root / "training")
    generator = torch.Generator().manual_seed(settings.seed + 77)
    tables = [settings.augment.draw(len(rows), generator) for _ in range(recipe.views)]
    stored = _stored_vectors(folder, gallery, gallery_net, pixels, tables, run, settings, reporter)
    watch, watched = _watched(images, preprocess, reporter)
    gallery_side = models.embed_pixels(gallery_net, preprocess, watched)

    def validate(net: nn.Module) -> Check:
        return _score(watch, models.embed_pixels(net, preprocess, watched), gallery_side)

    fit(
        _Query(
            net,
            method,
            method.own(gallery.space.dim, len(classes)),
            View(preprocess),
            stored,
            tables,
            labels,
            _head(gallery, classes, labels) if "head" in method.needs else None,
        ),
        pixels,
        settings,
        folder=folder,
        identity=run,
        validate=validate,
        resume=resume,
        reporter=reporter,
        what=f"train query ({recipe.method})",
    )
    spread = _spread(len(watched))
    return _write(
        root,
        run,
        settings,
        net=net,
        role="query",
        space=gallery.space,
        backbone=recipe.backbone,
        preprocess=preprocess,
        recipe={
            "backbone": recipe.backbone,
            "method": recipe.method,
            "views": recipe.views,
            **{f"method.{k}": v for k, v in chosen.items()},
        },
        parent=gallery.digest,
        images=images,
        tensors={"weights": models.arrays(net)},
        probes=watched[spread],
        probe_ids=tuple(watch.ids[i] for i in spread),
    )


# -- the pieces ---------------------------------------------------------------------------------


def _spoken_by_one(reporter: Reporter) -> Reporter:
    """The reporter in the main process, a silent one in the others."""
    return reporter if processes().is_main_process else Reporter(quiet=True)


def _classes(images: Images) -> tuple[tuple[int, ...], tuple[str, ...], Tensor]:
    """Training rows, their classes, and each row's class number."""
    rows, classes = images.rows("train"), images.classes("train")
    if len(classes) < 2:
        raise DataError(
            f"{images.name}: {len(classes)} training classes of {len(set(images.labels))} in all; "
            "training needs at least two, and testing two others that training never sees"
        )
    number = {name: i for i, name in enumerate(classes)}
    return rows, classes, torch.tensor([number[images.labels[r]] for r in rows])


def _pixels(
    images: Images, rows: tuple[int, ...], preprocess: Preprocess, reporter: Reporter
) -> UInt8[np.ndarray, "n s s 3"]:
    with reporter.bar(f"read {images.name}", len(rows)) as bar:
        return images.pixels(rows, preprocess, on_row=lambda: bar.advance(1))


def _watched(
    images: Images, preprocess: Preprocess, reporter: Reporter
) -> tuple[Task, UInt8[np.ndarray, "n s s 3"]]:
    """The validation task; test classes are never looked at while training."""
    watch = task(images, "val")
    return watch, _pixels(images, watch.rows, preprocess, reporter)


def _score(
    watch: Task, query: Float32[np.ndarray, "n d"], gallery: Float32[np.ndarray, "n d"]
) -> Check:
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


def _spread(count: int) -> list[int]:
    """Row numbers of the probe pictures: evenly over the validation pictures."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(PROBES, count))})


def _bytes_digest(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """SHA-256 of the weights file these arrays will make."""
    from safetensors.numpy import save

    whole = save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    return hashlib.sha256(whole).hexdigest()


def _head(gallery: Bundle, classes: tuple[str, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gallery model's class rows, and for each training row its row there or -1."""
    try:
        tensors = gallery.tensors("head")
    except BundleError as error:
        raise ConfigError(
            f"{gallery.root}: this method needs the gallery model's classifier, but the bundle has "
            "none; use a label-free method such as regression"
        ) from error
    theirs = {c: i for i, c in enumerate(tensors["classes"].tobytes().decode().split("\n"))}
    where = torch.tensor([theirs.get(name, -1) for name in classes])
    if int(where.max()) < 0:
        raise ConfigError(
            f"{gallery.root}: the gallery model's classifier knows none of the {len(classes)} "
            "training classes; use a label-free method such as regression"
        )
    return torch.from_numpy(tensors["rows"].copy()), where[labels]


def _stored_vectors(
    folder: Path,
    gallery: Bundle,
    gallery_net: nn.Module,
    pixels: UInt8[np.ndarray, "n s s 3"],
    tables: list[Tensor],
    run: Mapping[str, Any],
    settings: Settings,
    reporter: Reporter,
) -> Float32[np.ndarray, "v n d"]:
    """The gallery model's vectors of all training pictures and views, memory-mapped from a file."""
    # Whatever the vectors and the views they are of depend on.
    key = canonical_json(
        [gallery.digest, run["data"], len(tables), settings.seed, asdict(settings.augment)]
    )
    path = folder / f"gallery-vectors-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if processes().is_main_process and not path.exists():
        views = tables or [identity(len(pixels))]
        buffer = io.BytesIO()
        np.save(buffer, _embed_views(gallery, gallery_net, pixels, views, reporter))
        write_atomically(path, buffer.getvalue())
    processes().wait_for_everyone()
    stored: Float32[np.ndarray, "v n d"] = np.load(path, mmap_mode="r", allow_pickle=False)
    return stored


@torch.no_grad()
def _embed_views(
    gallery: Bundle,
    gallery_net: nn.Module,
    pixels: UInt8[np.ndarray, "n s s 3"],
    views: list[Tensor],
    reporter: Reporter,
    batch: int = 256,
) -> Float32[np.ndarray, "v n d"]:
    out = np.empty((len(views), len(pixels), gallery.space.dim), np.float32)
    device = processes().device
    view = View(gallery.preprocess).to(device)
    with reporter.bar("embed training pictures", len(views) * len(pixels)) as bar:
        for number, table in enumerate(views):
            for at in range(0, len(pixels), batch):
                here = slice(at, at + batch)
                some = torch.from_numpy(pixels[here]).to(device)
                rows = gallery_net(view(some, table[here].to(device)))
                out[number, here] = rows.cpu().numpy()
                bar.advance(len(some))
    return out


def _run_digest(run: Mapping[str, Any], settings: Settings) -> str:
    text = canonical_json({**run, "settings": settings.identity()})
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(root: Path, run: Mapping[str, Any], settings: Settings) -> Bundle | None:
    """The bundle in `root` if this very run made it."""
    with suppress(BundleError):
        bundle = Bundle.load(root)
        if bundle.manifest.recipe.get("run") == _run_digest(run, settings):
            return bundle
    return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("hetero", "torch", "numpy", "accelerate"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _write(
    root: Path,
    run: Mapping[str, Any],
    settings: Settings,
    *,
    net: models.EmbeddingNet,
    role: Any,
    space: Space,
    backbone: str,
    preprocess: Preprocess,
    recipe: Mapping[str, Any],
    parent: str,
    images: Images,
    tensors: Mapping[str, Mapping[str, np.ndarray[Any, Any]]],
    probes: UInt8[np.ndarray, "n s s 3"],
    probe_ids: tuple[str, ...],
) -> Bundle:
    """The finished bundle, written by the main process alone."""
    if not processes().is_main_process:
        processes().wait_for_everyone()
        return Bundle.load(root)
    net.eval()
    parameters, macs = models.count(net, preprocess.size_px)
    flat = {f"train.{k}": v for k, v in asdict(settings).items() if k != "augment"}
    flat |= {f"augment.{k}": v for k, v in asdict(settings.augment).items()}
    bundle = Bundle.create(
        root,
        role=role,
        space=space,
        model=Model(backbone=backbone, dim=space.dim, parameters=parameters, macs=macs),
        preprocess=preprocess,
        recipe={**recipe, **flat, "run": _run_digest(run, settings)},
        parent=parent,
        data={
            "source": images.name,
            "digest": images.digest,
            "train_pictures": len(images.rows("train")),
            "train_classes": len(images.classes("train")),
        },
        made_with=_versions(),
        tensors={
            **tensors,
            "probe": {
                "ids": np.frombuffer("\n".join(probe_ids).encode(), np.uint8),
                "train_classes": np.frombuffer(
                    "\n".join(images.classes("train")).encode(), np.uint8
                ),
                "pixels": probes,
                "vectors": models.embed_pixels(net, preprocess, probes),
            },
        },
    )
    # The bundle is whole; what was only needed to get there can go.
    folder = root / "training"
    for path in (folder / _checkpoint.NAME, *folder.glob("gallery-vectors-*.npy")):
        path.unlink(missing_ok=True)
    processes().wait_for_everyone()
    return bundle
