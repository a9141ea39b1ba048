"""Rank order preservation: the query model's soft ranks are pulled to the gallery model's ranks.

Paper: "A General Rank Preserving Framework for Asymmetric Image Retrieval", ICLR 2023.
Differs: ranks within the batch; the position weight is 1 / (1 + rank); a point-wise term, as
    AIR-Distiller has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from hetero.methods import Setup, Step


@dataclass(frozen=True)
class Method:
    """Cosine regression, and squared differences of soft ranks, the first ones weighing most.

    Attributes:
        point: Weight of the mean of 1 - cos(query, gallery).
        weight: Weight of the rank term.
        temperature: Of the sigmoids that make ranks soft.
    """

    point: float = 10.0
    weight: float = 1.0
    temperature: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset()

    def own(self, setup: Setup) -> nn.Module:
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        ours, theirs = step.query @ step.gallery.T, step.gallery @ step.gallery.T
        # Differences of all pairs of candidates, for each row of the batch.
        ahead = ((ours[:, None] - ours[:, :, None]) / self.temperature).sigmoid()
        soft = ahead.sum(2) - 0.5
        hard = (theirs[:, None] > theirs[:, :, None]).float().sum(2)
        count = len(ours)
        apart = ((soft - hard) / count).square() / (1 + hard)
        point = (1 - (step.query * step.gallery).sum(1)).mean()
        return self.point * point + self.weight * count * apart.sum(1).mean() / 10
