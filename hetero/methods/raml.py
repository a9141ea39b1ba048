"""Asymmetric metric learning with first and second order terms.

Paper: Suma and Tolias, "Large-to-small Image Resolution Asymmetry in Deep Metric Learning", WACV
    2023, arXiv:2210.05463.
Differs: relations are taken over all pairs of the batch, not over views of one picture; their
    weights are our study's, the paper's are 0.748 and 0.678.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from hetero.methods import Setup, Step


@dataclass(frozen=True)
class Method:
    """Squared cosine distance, and cross-model and within-model similarity matrices.

    Attributes:
        point: Weight of the mean of (1 - cos(query, gallery))².
        across: λ1, weight of the query-gallery similarity matrix against the gallery's own.
        within: λ2, weight of the query-query similarity matrix against the gallery's own.
        weight: Multiplies the whole.
    """

    point: float = 1.0
    across: float = 4.0
    within: float = 4.0
    weight: float = 10.0
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = True

    def own(self, setup: Setup) -> nn.Module:
        """Nothing: the method keeps nothing beside the model."""
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """Weight · (point · (1 - q·g)² + across · MSE(qgᵀ, ggᵀ) + within · MSE(qqᵀ, ggᵀ))."""
        wanted = step.gallery @ step.gallery.T
        point = (1 - (step.query * step.gallery).sum(1)).square().mean()
        across = (step.query @ step.gallery.T - wanted).square().mean()
        within = (step.query @ step.query.T - wanted).square().mean()
        return self.weight * (self.point * point + self.across * across + self.within * within)
