"""Relational knowledge distillation, distances and angles within the batch: a negative control.

Paper: Park, Kim, Lu and Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.
Differs: nothing in the losses. Distances and angles survive any rotation, so the query model may
    end anywhere in the gallery's space: that is what the control shows.
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
    """Huber losses on mean-normalised distances and on the angles of triplets.

    Attributes:
        distance: Weight of the distance-wise term.
        angle: Weight of the angle-wise term.
        weight: Multiplies the whole.
    """

    distance: float = 25.0
    angle: float = 50.0
    weight: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = True
    control: ClassVar[bool] = True

    def own(self, setup: Setup) -> nn.Module:
        """Nothing: the method keeps nothing beside the model."""
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """Weight · (distance · RKD-D + angle · RKD-A)."""
        huber = nn.functional.smooth_l1_loss
        far = huber(_distances(step.query), _distances(step.gallery))
        turn = huber(_angles(step.query), _angles(step.gallery))
        return self.weight * (self.distance * far + self.angle * turn)


def _distances(rows: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Distances of all pairs over their mean."""
    square = (rows[:, None] - rows[None]).square().sum(2)
    # The root has no slope at 0, where a row meets itself; there the distance is 0 by definition.
    positive = square > 1e-12
    distance = torch.where(positive, square.clamp(min=1e-12).sqrt(), torch.zeros_like(square))
    return distance / distance[positive].mean().clamp(min=1e-6) if positive.any() else distance


def _angles(rows: Float[Tensor, "b d"]) -> Float[Tensor, "b b b"]:
    """Cosines of the angles at each row between all pairs of others."""
    way = nn.functional.normalize(rows[None] - rows[:, None], dim=2)
    return torch.bmm(way, way.transpose(1, 2))
