"""Correlation congruence with a point-wise term.

Paper: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019,
    arXiv:1904.01802.
Differs: correlations are cosines; the point-wise term is cosine regression, as asymmetric search
    needs one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from hetero.methods import Setup, Step


@dataclass(frozen=True)
class Method:
    """Cosine regression, and agreement of the two models' own similarity matrices.

    Attributes:
        point: Weight of the mean of 1 - cos(query, gallery).
        weight: Weight of the mean squared difference of similarity matrices.
    """

    point: float = 10.0
    weight: float = 10.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def own(self, setup: Setup) -> nn.Module:
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        point = (1 - (step.query * step.gallery).sum(1)).mean()
        apart = (step.query @ step.query.T - step.gallery @ step.gallery.T).square().mean()
        return self.point * point + self.weight * apart
