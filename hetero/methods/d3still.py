"""D3still: agree on the differences between similarities to a picture's nearest neighbours.

Paper: Xie et al., "D3still: Decoupled Differential Distillation for Asymmetric Image Retrieval",
    CVPR 2024, doi:10.1109/CVPR52733.2024.01626.
Differs: neighbours come from a bank of stored vectors, not from the batch; the residual enters
    squared, and a mean over pairs makes it independent of their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hetero.methods import Setup, Step
from hetero.methods._bank import Bank


@dataclass(frozen=True)
class Method:
    """A point-wise term, and relative residuals of pairwise similarity differences.

    Attributes:
        point: Weight of the mean of 1 - cos(query, gallery).
        weight: Weight of the differential term.
        neighbours: Nearest gallery vectors whose pairs are looked at.
        floor: Added to the gallery's own difference before dividing by it.
        hard: How much more a pair counts whose order the query model has the wrong way round.
        bank: Training pictures in the bank at most.
    """

    point: float = 10.0
    weight: float = 1.0
    neighbours: int = 32
    floor: float = 0.1
    hard: float = 2.0
    bank: int = 65536
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = False

    def own(self, setup: Setup) -> nn.Module:
        """The bank."""
        return Bank(setup, self.neighbours, self.bank)

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """Point · (1 - cosine) + weight · Σ w·(residual / (floor + |gallery's difference|))²."""
        assert isinstance(own, Bank)
        near = own.of(step.rows)
        theirs = torch.einsum("bd,bkd->bk", step.gallery, near)
        ours = torch.einsum("bd,bkd->bk", step.query, near)
        # Every pair once; the diagonal holds nothing.
        first, second = torch.triu_indices(self.neighbours, self.neighbours, 1, device=near.device)
        wanted = theirs[:, first] - theirs[:, second]
        have = ours[:, first] - ours[:, second]
        residual = (have - wanted) / (self.floor + wanted.abs())
        reversed_ = (have.detach() * wanted) < 0
        weights = torch.where(reversed_, self.hard, 1.0)
        differential = (weights * residual.square()).mean() if len(first) else ours.sum() * 0
        point = (1 - (step.query * step.gallery).sum(1)).mean()
        return self.point * point + self.weight * differential
