"""RACT: pulled to the gallery's vector of the picture, away from both models' other classes.

Paper: Zhang et al., "Hot-Refresh Model Upgrades with Regression-Alleviating Compatible Training in
    Image Retrieval", ICLR 2022, arXiv:2201.09724, its loss with old and new negatives.
Differs: negatives are those of the batch, with no queue of earlier batches. Dynamic weights of the
    refresh order are left out.
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
    """Contrast over both spaces: in an index being refreshed, rows of either kind are in the way.

    Attributes:
        weight: Multiplies the loss.
        temperature: Divides the cosines.
    """

    weight: float = 1.0
    temperature: float = 0.05
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    whole_batch: ClassVar[bool] = True

    def own(self, setup: Setup) -> nn.Module:
        """Nothing: the method keeps nothing beside the model."""
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """-log p(the picture's gallery vector) among it and all rows of other classes."""
        assert step.labels is not None
        same = step.labels[:, None] == step.labels[None]
        right = (step.query * step.gallery).sum(1, keepdim=True)
        theirs, ours = (
            (step.query @ rows.T).masked_fill(same, -torch.inf)
            for rows in (step.gallery, step.query)
        )
        logits = torch.cat([right, theirs, ours], 1) / self.temperature
        return self.weight * -torch.log_softmax(logits, 1)[:, 0].mean()
