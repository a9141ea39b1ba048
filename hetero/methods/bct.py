"""Backward-compatible training, turned from time to size: own head and the gallery's frozen head.

Paper: Shen, Xiong, Xia and Soatto, "Towards Backward-Compatible Representation Learning", CVPR
    2020, arXiv:2003.11942, the influence loss; as used between sizes by Duggal et al.,
    "Compatibility-aware Heterogeneous Visual Search", CVPR 2021, arXiv:2105.06047.
Differs: the frozen classifier belongs to the gallery model, not to an older model, because here it
    is the query model that has to fit in. Both heads are cosine classifiers with one scale and
    margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hetero.heads import CosineHead
from hetero.methods import Step


@dataclass(frozen=True)
class Method:
    """Cross-entropy under the query model's own classifier and under the gallery model's.

    Attributes:
        influence: Weight λ of the frozen classifier's term.
        own_weight: Weight of the own classifier's term.
        scale: Multiplies cosines in both.
        margin: Taken off the right class's cosine in both.
    """

    influence: float = 1.0
    own_weight: float = 1.0
    scale: float = 16.0
    margin: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"labels", "head"})

    def own(self, dim: int, classes: int) -> nn.Module:
        """The query model's own classifier."""
        return CosineHead(dim, classes, self.scale, self.margin)

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """CE(own head) · own_weight + CE(frozen head) · influence, where that head has a row."""
        assert step.labels is not None
        assert step.head is not None
        assert step.head_labels is not None
        entropy = nn.functional.cross_entropy
        loss = self.own_weight * entropy(own(step.query, step.labels), step.labels)
        known = step.head_labels >= 0
        if bool(known.any()):
            right = step.head_labels[known]
            cosine = step.query[known] @ step.head.T
            margins = torch.zeros_like(cosine).scatter(1, right[:, None], self.margin)
            loss = loss + self.influence * entropy(self.scale * (cosine - margins), right)
        return loss
