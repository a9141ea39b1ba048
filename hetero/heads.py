"""Classifiers over unit embeddings: what fixes a space, and what a query model can be held to."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from hetero.errors import ConfigError

Margin = Literal["cosine", "arcface", "plain", "simplex"]


class CosineHead(nn.Module):
    """Scaled cosines to one unit row per class, with a margin on the right class in training.

    "cosine" takes the margin off the cosine: Wang et al., "CosFace", CVPR 2018, arXiv:1801.09414.
    "arcface" adds it to the angle: Deng et al., "ArcFace", CVPR 2019, arXiv:1801.07698; angles that
    the margin would push past 180 degrees get the paper's linear continuation. "plain" is no cosine
    classifier at all: rows keep the lengths they learn, without scale and margin. "simplex" is
    "cosine" with rows that are fixed, the vertices of `simplex`: Biondi et al., "CoReS", 2021,
    arXiv:2111.07632; there without scale and margin, which are kept here.

    Args:
        dim: Length of an embedding.
        classes: Number of classes, at least 2.
        scale: Multiplies the cosines (inverse temperature).
        margin: In cosine units, or in radians for "arcface".
        kind: Where the margin goes.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        scale: float = 16.0,
        margin: float = 0.1,
        kind: Margin = "cosine",
    ) -> None:
        """See the class."""
        super().__init__()
        if classes < 2 or scale <= 0 or margin < 0 or kind not in get_args(Margin):
            raise ConfigError(
                "a classifier needs at least 2 classes, scale above 0, margin of at least 0 and "
                f"kind {', '.join(get_args(Margin))}; got {classes}, {scale}, {margin}, {kind!r}"
            )
        self.scale, self.margin, self.kind = scale, margin, kind
        self.weight: Tensor
        if kind == "simplex":
            if classes > dim + 1:
                raise ConfigError(
                    f"a simplex in {dim} dimensions has {dim + 1} vertices, and there are "
                    f"{classes} classes; a dim of at least {classes - 1} is needed, and more where "
                    "later generations will bring new classes"
                )
            self.register_buffer("weight", torch.from_numpy(simplex(dim)[:classes].copy()))
            return
        self.weight = nn.Parameter(torch.empty(classes, dim))
        # A plain classifier starts with logits as large as the others'.
        nn.init.normal_(self.weight, std=dim**-0.5 * (scale if kind == "plain" else 1))

    def rows(self) -> Float[Tensor, "c d"]:
        """The row of each class, its place in the space: of unit length unless "plain"."""
        return self.weight if self.kind == "plain" else nn.functional.normalize(self.weight, dim=1)

    def forward(
        self, embeddings: Float[Tensor, "b d"], labels: Int64[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c"]:
        """Logits, shape (batch, classes); with labels, the margin is applied."""
        if self.kind == "plain":
            return embeddings @ self.weight.T
        cosine = embeddings @ self.rows().T
        if labels is None or self.margin == 0:
            return self.scale * cosine
        own = cosine.gather(1, labels[:, None])
        if self.kind != "arcface":
            lowered = own - self.margin
        else:
            safe = own.clamp(-1 + 1e-6, 1 - 1e-6)
            lowered = torch.where(
                safe > math.cos(math.pi - self.margin),
                torch.cos(torch.acos(safe) + self.margin),
                safe - math.sin(math.pi - self.margin) * self.margin,
            )
        return self.scale * cosine.scatter(1, labels[:, None], lowered)


def simplex(dim: int) -> Float32[np.ndarray, "v d"]:
    """The dim + 1 vertices of a regular simplex around the origin: unit rows, cosines -1/dim."""
    from scipy.linalg import helmert

    vertices = helmert(dim + 1).T * math.sqrt((dim + 1) / dim)
    return np.ascontiguousarray(vertices, dtype=np.float32)
