"""A pretrained backbone made a gallery model as it is: no training, no labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from hetero import models
from hetero.bundle import Bundle, space_digest
from hetero.data import Images
from hetero.errors import ConfigError
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.space import Space
from hetero.train._pictures import gather
from hetero.train._writing import bytes_digest, run_digest, write


def adopt_gallery(
    images: Images,
    backbone: str,
    dim: int,
    preprocess: Preprocess,
    root: Path,
    *,
    reporter: Reporter,
) -> Bundle:
    """The bundle of a gallery model whose backbone comes pretrained and stays as it is.

    The embedding is the backbone's features on their first principal axes over the training
    pictures, centred and of unit length: a linear layer, so the model exports like any other.

    Args:
        images: Their training pictures fix the axes; labels are not looked at.
        backbone: See `hetero.models.backbone`; it has to come with weights of its own.
        dim: Length of the embedding, at most the number of features.
        preprocess: What the weights were trained with.
        root: Folder of the bundle.
        reporter: Shows progress.

    Raises:
        ConfigError: `dim` is more than there are features, or than there are pictures less one.
    """
    net = models.build(backbone, dim, preprocess.size_px)  # refuses before pictures are read
    pictures = gather(images, preprocess, reporter)
    linear, norm = net.projection[0], net.projection[1]
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    most = min(linear.in_features, len(pictures.pixels) - 1)
    if dim > most:
        raise ConfigError(
            f"dim {dim}: backbone {backbone!r} gives {linear.in_features} features, and there are "
            f"{len(pictures.pixels)} pictures to find axes in; use at most {most}"
        )
    features = _features(net, preprocess, pictures.pixels, reporter)
    mean = features.mean(0)
    axes = np.linalg.svd(features - mean, full_matrices=False)[2][:dim]
    # An axis may point either way; its largest number is made positive, so that it repeats.
    axes *= np.sign(axes[np.arange(dim), np.abs(axes).argmax(1)])[:, None]
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(axes))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # The norm only takes the mean off: unit variance, less what it adds for safety.
        norm.running_mean.copy_(torch.from_numpy(axes @ mean))
        norm.running_var.fill_(1 - norm.eps)
    net.eval()
    weights = models.arrays(net)
    name = backbone.replace(":", "-").replace("=", "").replace(",", "-").replace("/", "-")
    run = {"role": "gallery", "adopted": backbone, "dim": dim, "data": images.digest}
    return write(
        root,
        run=run_digest(run, None),
        net=net,
        role="gallery",
        space=Space(name, space_digest(bytes_digest(weights), preprocess, dim), dim),
        backbone=backbone,
        preprocess=preprocess,
        recipe={"backbone": backbone, "dim": dim, "method": "adopted"},
        settings=None,
        parent="",
        images=images,
        pictures=pictures,
        tensors={"weights": weights},
    )


@torch.no_grad()
def _features(
    net: models.EmbeddingNet,
    preprocess: Preprocess,
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    reporter: Reporter,
    batch: int = 64,
) -> Float32[np.ndarray, "n f"]:
    whole = models.FromPixels(net.backbone.eval(), preprocess)
    parts = []
    with reporter.bar("embed training pictures", len(pixels)) as bar:
        for at in range(0, len(pixels), batch):
            some = torch.from_numpy(pixels[at : at + batch])
            parts.append(whole(some).numpy())
            bar.advance(len(some))
    return np.concatenate(parts)
