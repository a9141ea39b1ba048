"""D3still with neighbours from the batch, as its paper and AIR-Distiller have it.

Paper: Xie et al., "D3still: Decoupled Differential Distillation for Asymmetric Image Retrieval",
    CVPR 2024, doi:10.1109/CVPR52733.2024.01626.
Differs: the differential term is a mean over pairs; its weight is the one of ours.
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
    """A point-wise term, and relative residuals of similarity differences among the nearest ten.

    Attributes:
        point: Weight of the mean of |1 - cos(query, gallery)|.
        weight: Weight of the differential term.
        neighbours: Of the batch, by the gallery model.
        floor: Added to the gallery's own difference before dividing by it.
        hard: How much a pair counts whose order the query model has the wrong way round.
    """

    point: float = 50.0
    weight: float = 1.0
    neighbours: int = 10
    floor: float = 0.1
    hard: float = 2.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def own(self, setup: Setup) -> nn.Module:
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        theirs = step.gallery @ step.gallery.T
        near = theirs.topk(min(self.neighbours, len(theirs)), 1).indices
        theirs = theirs.gather(1, near)
        ours = (step.query @ step.gallery.T).gather(1, near)
        first, second = torch.triu_indices(near.shape[1], near.shape[1], 1, device=near.device)
        wanted = theirs[:, first] - theirs[:, second]
        have = ours[:, first] - ours[:, second]
        weights = torch.where((have.detach() * wanted) < 0, self.hard, 1.0)
        residual = (have - wanted).abs() / (self.floor + wanted.abs())
        point = (1 - (step.query * step.gallery).sum(1)).abs().mean()
        return self.point * point + self.weight * (weights * residual).mean()
