"""Training of classifiers, after an old one or after nothing, by the one loop of `hetero.fit`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from hetero import models
from hetero._files import make_folder
from hetero._processes import processes
from hetero.augment import View
from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import ConfigError, DataError
from hetero.fit import Check, Objective, Settings, fit
from hetero.pct import methods
from hetero.pct._pictures import (
    Closed,
    class_space,
    each_fingerprint,
    fingerprints,
    gather,
    score,
    trained_on,
)
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.train._pictures import decoded
from hetero.train._stored import drawn_views, stored_rows, stored_vectors
from hetero.train._writing import finished, run_digest, spoken_by_one, write

__all__ = [
    "LR",
    "ClassifierObjective",
    "ClassifierRecipe",
    "class_space",
    "each_fingerprint",
    "fingerprints",
    "train_classifier",
    "train_ensemble",
    "trained_on",
]

#: Peak learning rate of classifiers.
LR = 3e-3


@dataclass(frozen=True)
class ClassifierRecipe:
    """What a classifier is.

    Attributes:
        backbone: See `hetero.models.backbone`.
        method: A module of `hetero.pct.methods` or a dotted path.
        settings: Its hyper-parameters, where they differ from the defaults.
        views: How many augmented views of each picture are drawn beforehand and seen in turn; the
            old model's logits of exactly these are stored. 0: fresh views each epoch, and the old
            model's logits of the plain picture.
    """

    backbone: str = "mobilenet:width=0.5"
    method: str = "none"
    settings: Mapping[str, Any] | None = None
    views: int = 8

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.views < 0:
            raise ConfigError(f"views counts views, 0 for fresh ones; got {self.views}")


class ClassifierObjective(Objective):
    """A method's loss of a classifier, with stored logits of the old model where it has one."""

    net: models.ClassifierNet

    def __init__(
        self,
        net: models.ClassifierNet,
        method: methods.Method,
        view: View,
        labels: Int64[Tensor, " n"],
        tables: list[Tensor],
        old: Sequence[Float32[np.ndarray, "v n k"]] = (),
        columns: Int64[Tensor, " k"] | None = None,
        head: methods.OldHead | None = None,
    ) -> None:
        """The net, the method, how pictures are seen, and what is known of them.

        Args:
            net: What is trained.
            method: Its loss.
            view: Makes views.
            labels: Class number of each training picture.
            tables: Views drawn beforehand; none for fresh ones.
            old: For each old model its stored logits of all views; their mean is what a method
                sees.
            columns: For each class of the old models, its number here.
            head: The last layer of a single old model.
        """
        super().__init__()
        self.net, self.method, self.view = net, method, view
        self.tables, self.old = tables, tuple(old)
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        # Buffers, so that they go where the net goes.
        self.register_buffer("head_weight", head.weight if head else None, persistent=False)
        self.register_buffer("head_bias", head.bias if head else None, persistent=False)

    def forward(
        self, pixels: Tensor, views: Tensor, rows: Tensor, epoch: int, progress: float
    ) -> Tensor:
        """The method's loss of one batch."""
        features = self.net.backbone(self.view(pixels, views))
        head = None
        if self.head_weight is not None:
            head = methods.OldHead(self.head_weight, self.head_bias)  # type: ignore[arg-type]
        old = None
        if self.old:
            found = np.mean([stored_rows(s, epoch, rows) for s in self.old], axis=0)
            old = torch.from_numpy(found.astype(np.float32)).to(pixels.device)
        step = methods.Step(
            self.net.head(features),
            features,
            self.labels[rows],  # type: ignore[index]
            old,
            self.columns,  # type: ignore[arg-type]
            head,
            progress,
        )
        return methods.loss_of(self.method, step)


def train_classifier(
    images: Images,
    recipe: ClassifierRecipe,
    preprocess: Preprocess,
    settings: Settings,
    root: Path,
    *,
    old: Sequence[Bundle] = (),
    vectors: Path | None = None,
    resume: bool = False,
    reporter: Reporter,
) -> Bundle:
    """The bundle of a classifier.

    Args:
        images: A closed set; trained on its training pictures, watched on its validation pictures.
        recipe: Backbone, method and views.
        preprocess: Input size and normalisation; the old model may have another.
        settings: Length, rate, seed, augmentation.
        root: Folder of the bundle; its sub-folder training/ holds checkpoint and history.
        old: The classifier to be congruent with; several are an ensemble, taken by its mean logits.
            They may know fewer classes than there are now.
        vectors: Folder where old logits are kept for other runs; without it they are in training/
            and deleted at the end.
        resume: Go on from the checkpoint; a bundle already finished is returned as it is.
        reporter: Shows progress.

    Raises:
        DataError: No closed set, or no validation picture.
        ConfigError: The method needs an old model that is not there, or one that does not fit.
        TrainingError, Interrupted: See `hetero.fit.fit`.
    """
    method = methods.make(recipe.method, dict(recipe.settings or {}))
    chosen = methods.settings_of(method)
    run: dict[str, Any] = {
        "role": "classifier",
        "recipe": {**asdict(recipe), "settings": chosen},
        "preprocess": preprocess.to_json(),
        "old": [b.digest for b in old],
        "data": images.digest,
    }
    _check(images, recipe, method, settings, old)
    if resume and (done := finished(root, run, settings)):
        reporter.line(f"classifier: {root} is finished")
        return done
    reporter = spoken_by_one(reporter)
    pictures = gather(images, preprocess, reporter)
    folder = make_folder(root / "training")
    tables = drawn_views(settings, len(pictures.pixels), recipe.views)
    columns = head = None
    stored: list[Float32[np.ndarray, "v n k"]] = []
    if method.needs:
        columns = _columns(old, pictures.classes)
    if "old" in method.needs:
        kept = make_folder(vectors) if vectors else folder
        stored = [
            _stored(kept, b, images, pictures, preprocess, tables, settings, reporter) for b in old
        ]
    if "head" in method.needs:
        arrays = old[0].tensors("weights")
        head = methods.OldHead(
            torch.from_numpy(arrays["head.weight"].copy()),
            torch.from_numpy(arrays["head.bias"].copy()),
        )
    torch.manual_seed(settings.seed)
    net = models.classifier(recipe.backbone, len(pictures.classes), preprocess.size_px)

    def validate(net: nn.Module) -> Check:
        logits = models.embed_pixels(net, preprocess, pictures.watched)
        return score(logits, pictures.watched_labels)

    fit(
        ClassifierObjective(
            net, method, View(preprocess), pictures.labels, tables, stored, columns, head
        ),
        pictures.pixels,
        settings,
        folder=folder,
        identity=run,
        validate=validate,
        resume=resume,
        reporter=reporter,
        what=f"train classifier ({recipe.method})",
        measure="accuracy",
    )
    return write(
        root,
        run=run_digest(run, settings),
        net=net,
        role="classifier",
        space=class_space(pictures.classes),
        backbone=recipe.backbone,
        preprocess=preprocess,
        recipe={
            "backbone": recipe.backbone,
            "method": recipe.method,
            "views": recipe.views,
            "old": ", ".join(b.digest[:12] for b in old),
            **{f"method.{k}": v for k, v in chosen.items()},
        },
        settings=settings,
        parent=_parent(old),
        images=images,
        pictures=pictures,
        tensors={
            "weights": models.arrays(net),
            "trained": {"pictures": fingerprints(pictures.pixels)},
        },
    )


def train_ensemble(
    images: Images,
    recipe: ClassifierRecipe,
    preprocess: Preprocess,
    settings: Settings,
    root: Path,
    members: int,
    *,
    resume: bool = False,
    reporter: Reporter,
) -> tuple[Bundle, ...]:
    """Classifiers that differ in their seed alone, in member-0/, member-1/ and so on.

    Args:
        images: See `train_classifier`.
        recipe: Of every member; its method is one that needs no old model.
        preprocess: See `train_classifier`.
        settings: The first member's; each other has a seed one higher.
        root: Folder of the folders.
        members: At least 2.
        resume: See `train_classifier`.
        reporter: See `train_classifier`.
    """
    if members < 2:
        raise ConfigError(f"an ensemble has at least 2 members, got {members}")
    return tuple(
        train_classifier(
            images,
            recipe,
            preprocess,
            replace(settings, seed=settings.seed + number),
            root / f"member-{number}",
            resume=resume,
            reporter=reporter,
        )
        for number in range(members)
    )


# -- the pieces ---------------------------------------------------------------------------------


def _check(
    images: Images,
    recipe: ClassifierRecipe,
    method: methods.Method,
    settings: Settings,
    old: Sequence[Bundle],
) -> None:
    if not (images.labelled and images.closed):
        raise DataError(
            f"{images.name}: a classifier needs a closed set, labelled and split by picture; this "
            "collection is split by class. `hetero.data.by_picture` splits it otherwise"
        )
    if settings.augment.mix:
        raise ConfigError("a classifier is trained by class, and blended pictures have none")
    if method.needs and not old:
        raise ConfigError(
            f"method {recipe.method} holds the new classifier to an old one; name its bundle with "
            "--old, or use the method none"
        )
    if old and not method.needs:
        raise ConfigError(
            f"method {recipe.method} looks at no old classifier, but {old[0].root} is given; use "
            "focal_logit, or leave it out"
        )
    if "head" in method.needs and len(old) > 1:
        raise ConfigError(f"method {recipe.method} needs one old classifier, got {len(old)}")
    for bundle in old:
        if bundle.role != "classifier":
            raise ConfigError(f"{bundle.root}: a {bundle.role} bundle, no classifier")


def _columns(old: Sequence[Bundle], classes: tuple[str, ...]) -> Int64[Tensor, " k"]:
    """For each class of the old models, its number among the new ones.

    Raises:
        ConfigError: The old models' classes differ, or one of them is gone.
    """
    theirs = old[0].train_classes()
    for bundle in old[1:]:
        old[0].space.must_match(bundle.space, f"{bundle.root}: not the same classes")
    number = {name: i for i, name in enumerate(classes)}
    if gone := [name for name in theirs if name not in number]:
        raise ConfigError(
            f"{old[0].root}: knows {len(gone)} classes, first {gone[0]!r}, that the new pictures "
            "lack; a new classifier has to know what the old one knows"
        )
    return torch.tensor([number[name] for name in theirs])


def _stored(
    folder: Path,
    old: Bundle,
    images: Images,
    pictures: Closed,
    preprocess: Preprocess,
    tables: list[Tensor],
    settings: Settings,
    reporter: Reporter,
) -> Float32[np.ndarray, "v n k"]:
    """An old model's logits of all training pictures and views, computed once.

    A view is drawn in shares of the side, so the old model sees it at an input size of its own.
    """
    pixels = pictures.pixels
    theirs = old.preprocess
    if _geometry(theirs) != _geometry(preprocess):
        pixels = decoded(images, images.rows("train"), theirs, reporter)
    net = models.load_any(old).to(processes().device)
    return stored_vectors(folder, old, net, pixels, tables, images.digest, settings, reporter)


def _geometry(preprocess: Preprocess) -> tuple[int, str, str]:
    """What pixels at input size depend on."""
    return preprocess.size_px, preprocess.resize, preprocess.fit


def _parent(old: Sequence[Bundle]) -> str:
    """The old model's digest, an ensemble's of its members', or "" without one."""
    digests = [b.digest for b in old]
    if len(digests) < 2:
        return "".join(digests)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
