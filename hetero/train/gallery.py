"""Training of a gallery model, whose weights define a space."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hetero import models
from hetero._files import make_folder
from hetero.augment import View
from hetero.bundle import Bundle, space_digest
from hetero.data import Images
from hetero.fit import Check, Objective, Settings, fit
from hetero.heads import CosineHead, Margin
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.space import Space
from hetero.train._pictures import gather, must_have_classes, score
from hetero.train._writing import (
    bytes_digest,
    finished,
    head_arrays,
    run_digest,
    space_name,
    spoken_by_one,
    write,
)


@dataclass(frozen=True)
class GalleryRecipe:
    """What a gallery model is.

    Attributes:
        backbone: See `hetero.models.backbone`.
        dim: Length of the embedding.
        head: Where the classifier's margin goes, "cosine" or "arcface"; or "plain", rows of any
            length and no margin.
        scale: Of the classifier's cosines.
        margin: Of the classifier.
    """

    backbone: str = "resnet:width=16"
    dim: int = 128
    head: Margin = "cosine"
    scale: float = 16.0
    margin: float = 0.1


class GalleryObjective(Objective):
    """Classification of the training classes by cosine to a learnt row each."""

    def __init__(self, net: nn.Module, head: CosineHead, view: View, labels: Tensor) -> None:
        """Net and classifier, how pictures are seen, and the class number of each picture."""
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
        DataError: No labels, or fewer than two classes to train on.
        ConfigError: Blended pictures are asked for: they have no class.
        TrainingError, Interrupted: See `hetero.fit.fit`.
    """
    run = {
        "role": "gallery",
        "recipe": asdict(recipe),
        "preprocess": preprocess.to_json(),
        "data": images.digest,
    }
    if resume and (done := finished(root, run, settings)):
        reporter.line(f"gallery model: {root} is finished")
        return done
    must_have_classes(images, settings)
    reporter = spoken_by_one(reporter)
    pictures = gather(images, preprocess, reporter)
    assert pictures.labels is not None
    torch.manual_seed(settings.seed)
    net = models.build(recipe.backbone, recipe.dim, preprocess.size_px)
    classes = pictures.classes
    head = CosineHead(recipe.dim, len(classes), recipe.scale, recipe.margin, recipe.head)

    def validate(net: nn.Module) -> Check:
        vectors = models.embed_pixels(net, preprocess, pictures.watched)
        return score(pictures.watch, vectors, vectors)

    fit(
        GalleryObjective(net, head, View(preprocess), pictures.labels),
        pictures.pixels,
        settings,
        folder=make_folder(root / "training"),
        identity=run,
        validate=validate,
        resume=resume,
        reporter=reporter,
        what="train gallery",
    )
    weights = models.arrays(net)
    digest = space_digest(bytes_digest(weights), preprocess, recipe.dim)
    return write(
        root,
        run=run_digest(run, settings),
        net=net,
        role="gallery",
        space=Space(space_name(recipe.backbone), digest, recipe.dim),
        backbone=recipe.backbone,
        preprocess=preprocess,
        recipe={**asdict(recipe), "method": "classification"},
        settings=settings,
        parent="",
        images=images,
        pictures=pictures,
        tensors={
            "weights": weights,
            "head": head_arrays(head.rows().detach().cpu().numpy(), classes),
        },
    )
