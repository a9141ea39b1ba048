"""Structure similarity preservation: agree on how alike a picture is to global anchors.

Paper: Wu et al., "Structure Similarity Preservation Learning for Asymmetric Image Retrieval",
    IEEE TMM 2024, arXiv:2403.00648.
Differs: the product quantiser is trained by faiss on the stored vectors of the training pictures,
    with as many bits as there are vectors for; similarities in a sub-space are cosines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hetero.errors import ConfigError, require
from hetero.methods import Setup, Step

#: faiss's own advice for k-means: this many vectors for each centroid.
_PER_CENTROID = 39


class _Anchors(nn.Module):
    """Unit centroids of each sub-space: (parts, centroids, dim / parts)."""

    centroids: Tensor

    def __init__(self, centroids: Tensor) -> None:
        super().__init__()
        self.register_buffer("centroids", nn.functional.normalize(centroids, dim=2), False)


@dataclass(frozen=True)
class Method:
    """KL divergence between the two models' similarity distributions over quantiser centroids.

    Attributes:
        weight: Multiplies the loss.
        parts: Sub-spaces; has to divide the embedding's length.
        bits: Centroids of a sub-space are 2**bits at most.
        sharpness: Multiplies cosines in the softmax (inverse temperature).
    """

    weight: float = 0.6
    parts: int = 4
    bits: int = 8
    sharpness: float = 10.0
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = False

    def own(self, setup: Setup) -> nn.Module:
        """The anchors: a product quantiser's centroids."""
        if self.parts < 1 or setup.dim % self.parts or setup.dim == self.parts:
            raise ConfigError(
                f"method ssp: {self.parts} parts do not divide the embedding's length {setup.dim} "
                "into parts of two numbers or more"
            )
        faiss = require("faiss", "faiss")
        vectors = setup.gallery.reshape(-1, setup.dim)
        if len(vectors) > 2**18:
            chosen = np.random.default_rng(setup.seed).choice(len(vectors), 2**18, replace=False)
            vectors = vectors[np.sort(chosen)]
        bits = max(1, min(self.bits, int(np.log2(max(2, len(vectors) / _PER_CENTROID)))))
        quantiser = faiss.ProductQuantizer(setup.dim, self.parts, bits)
        quantiser.cp.seed = setup.seed + 1
        quantiser.cp.min_points_per_centroid = 1
        quantiser.train(np.ascontiguousarray(vectors, np.float32))
        centroids = faiss.vector_to_array(quantiser.centroids)
        shape = (self.parts, 2**bits, setup.dim // self.parts)
        return _Anchors(torch.from_numpy(centroids.reshape(shape).copy()))

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """KL over each sub-space's centroids, summed over sub-spaces, mean over the batch."""
        assert isinstance(own, _Anchors)

        def spread(vectors: Tensor) -> Tensor:
            parts = nn.functional.normalize(vectors.reshape(len(vectors), self.parts, -1), dim=2)
            cosine = torch.einsum("bpd,pcd->bpc", parts, own.centroids)
            return (self.sharpness * cosine).log_softmax(2)

        ours, theirs = spread(step.query), spread(step.gallery)
        return self.weight * nn.functional.kl_div(
            ours, theirs, reduction="batchmean", log_target=True
        )
