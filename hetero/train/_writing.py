"""A finished run as a bundle, and whether a bundle is the run asked for."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from hetero import _checkpoint, models
from hetero._files import canonical_json
from hetero._processes import processes
from hetero.bundle import Bundle, Model, Role
from hetero.data import Images
from hetero.errors import BundleError, ConfigError
from hetero.fit import Settings
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.space import Space


@runtime_checkable
class Shown(Protocol):
    """What a bundle keeps of the pictures that a model was trained and watched with."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted names of what was trained on; of unlabelled pictures none."""
        ...

    @property
    def probes(self) -> tuple[list[str], UInt8[np.ndarray, "n s s 3"]]:
        """Ids and pixels of the pictures to recognise the model by."""
        ...


def spoken_by_one(reporter: Reporter) -> Reporter:
    """The reporter in the main process, a silent one in the others."""
    return reporter if processes().is_main_process else Reporter(quiet=True)


def bytes_digest(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """SHA-256 of the weights file these arrays will make."""
    from safetensors.numpy import save

    whole = save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    return hashlib.sha256(whole).hexdigest()


def run_digest(run: Mapping[str, Any], settings: Settings | None) -> str:
    """SHA-256 of all that a run's result depends on."""
    text = canonical_json({**run, "settings": settings.identity() if settings else None})
    return hashlib.sha256(text.encode()).hexdigest()


def finished(root: Path, run: Mapping[str, Any], settings: Settings) -> Bundle | None:
    """The bundle in `root` if this very run made it."""
    with suppress(BundleError):
        bundle = Bundle.load(root)
        if bundle.manifest.recipe.get("run") == run_digest(run, settings):
            return bundle
    return None


def space_name(backbone: str) -> str:
    """A backbone's name as the name of a space."""
    return backbone.replace(":", "-").replace("=", "").replace(",", "-").replace("/", "-")


def head_arrays(rows: np.ndarray[Any, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A gallery model's class rows, and the classes, as `head_of` reads them."""
    return {"rows": rows, "classes": np.frombuffer("\n".join(classes).encode(), np.uint8)}


def head_of(gallery: Bundle) -> tuple[Tensor, tuple[str, ...]]:
    """The gallery model's class rows, and the classes.

    Raises:
        ConfigError: The bundle has no classifier.
    """
    try:
        tensors = gallery.tensors("head")
    except BundleError as error:
        raise ConfigError(
            f"{gallery.root}: this method needs the gallery model's classifier, but the bundle has "
            "none; use a label-free method such as regression"
        ) from error
    names = tuple(tensors["classes"].tobytes().decode().split("\n"))
    return torch.from_numpy(tensors["rows"].copy()), names


def versions() -> dict[str, str]:
    """Of what has a say in the weights."""
    found = {"python": platform.python_version()}
    for name in ("hetero", "torch", "numpy", "accelerate"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def write(
    root: Path,
    *,
    run: str,
    net: models.EmbeddingNet | models.ClassifierNet,
    role: Role,
    space: Space,
    backbone: str,
    preprocess: Preprocess,
    recipe: Mapping[str, Any],
    settings: Settings | None,
    parent: str,
    images: Images,
    pictures: Shown,
    tensors: Mapping[str, Mapping[str, np.ndarray[Any, Any]]],
    nested: Sequence[Space] = (),
) -> Bundle:
    """The finished bundle, written by the main process alone.

    Args:
        root: Its folder.
        run: See `run_digest`.
        net: The model.
        role: What it is for.
        space: Whose space it embeds into.
        backbone: Its backbone's name.
        preprocess: Of its pictures.
        recipe: How it came about.
        settings: How it was trained, for the recipe.
        parent: Digest of the gallery bundle whose space it is, or "".
        images: What it was trained on.
        pictures: Their classes, and the probe.
        tensors: File name to arrays, weights among them.
        nested: Spaces that the first numbers of its vectors are in.
    """
    if not processes().is_main_process:
        processes().wait_for_everyone()
        return Bundle.load(root)
    net.eval()
    parameters, macs = models.count(net, preprocess.size_px)
    flat: dict[str, Any] = {}
    if settings is not None:
        flat = {f"train.{k}": v for k, v in asdict(settings).items() if k != "augment"}
        flat |= {f"augment.{k}": v for k, v in asdict(settings.augment).items()}
    ids, probes = pictures.probes
    bundle = Bundle.create(
        root,
        role=role,
        space=space,
        nested=nested,
        model=Model(
            backbone=backbone,
            dim=space.dim,
            inner=net.inner,
            parameters=parameters,
            macs=macs,
            map=net.fitted,
        ),
        preprocess=preprocess,
        recipe={**recipe, **flat, "run": run},
        parent=parent,
        data={
            "source": images.name,
            "digest": images.digest,
            "train_pictures": len(images.rows("train")),
            "train_classes": len(pictures.classes),
        },
        made_with=versions(),
        tensors={
            **tensors,
            "probe": {
                "ids": _text(ids),
                "train_classes": _text(pictures.classes),
                "pixels": probes,
                "vectors": models.embed_pixels(net, preprocess, probes),
            },
        },
    )
    tidy(root)
    processes().wait_for_everyone()
    return bundle


def tidy(root: Path) -> None:
    """Remove what was only needed to get to a result that is whole now."""
    folder = root / "training"
    for path in (*folder.rglob(_checkpoint.NAME), *folder.glob("gallery-vectors-*")):
        path.unlink(missing_ok=True)


def _text(lines: tuple[str, ...] | list[str]) -> np.ndarray[Any, Any]:
    return np.frombuffer("\n".join(lines).encode(), np.uint8)
