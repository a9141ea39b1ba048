"""Cosine regression to stored gallery vectors: the plainest way into a space, and label-free.

Paper: Budnik and Avrithis, "Asymmetric Metric Learning for Knowledge Transfer", CVPR 2021,
    arXiv:2006.16331, the regression loss.
Differs: on unit vectors the squared distance is 2 - 2·cosine; the mean of 1 - cosine is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from hetero.methods import Setup, Step


@dataclass(frozen=True)
class Method:
    """Pull each query vector to the gallery model's vector of the same picture.

    Attributes:
        weight: Multiplies the loss.
    """

    weight: float = 10.0
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = False

    def own(self, setup: Setup) -> nn.Module:
        """Nothing: the method keeps nothing beside the model."""
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """The mean of 1 - cos(query, gallery), times `weight`."""
        return self.weight * (1 - (step.query * step.gallery).sum(1)).mean()
