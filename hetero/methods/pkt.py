"""Probabilistic knowledge transfer, neighbour probabilities within the batch: a negative control.

Paper: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
    ECCV 2018, arXiv:1803.10837.
Differs: the divergence is summed over candidates, not averaged, so weights differ by the batch
    size. Similarities within one model survive any rotation, so the query model
    may end anywhere in the gallery's space: that is what the control shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hetero.methods import Setup, Step


@dataclass(frozen=True)
class Method:
    """KL divergence between the conditional neighbour probabilities of the two models.

    Attributes:
        weight: Multiplies the loss.
    """

    weight: float = 100.0
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = True
    control: ClassVar[bool] = True

    def own(self, setup: Setup) -> nn.Module:
        """Nothing: the method keeps nothing beside the model."""
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """Mean over pictures of Σ p·log(p / q), p by the gallery model, q by the query model."""
        p, q = _conditional(step.gallery), _conditional(step.query)
        tiny = 1e-7
        return self.weight * (p * ((p + tiny) / (q + tiny)).log()).sum(1).mean()


def _conditional(rows: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Cosine kernel (c + 1)/2 without the picture itself, each row made a distribution."""
    kernel = (rows @ rows.T + 1) / 2
    kernel = kernel * (1 - torch.eye(len(rows), device=rows.device))
    return kernel / kernel.sum(1, keepdim=True).clamp(min=1e-6)
