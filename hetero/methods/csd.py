"""Contextual similarity distillation: agree on how alike a picture is to its gallery neighbours.

Paper: Wu et al., "Contextual Similarity Distillation for Asymmetric Image Retrieval", CVPR 2022,
    doi:10.1109/CVPR52688.2022.00927.
Differs: the bank holds the training pictures' own stored vectors; temperatures are our study's.
    The loss knows differences of similarity only, so it is best used with regression.
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
    """KL divergence between the two models' similarity distributions over a neighbour bank.

    Attributes:
        weight: Multiplies the loss.
        neighbours: Nearest gallery vectors looked at for each picture.
        gallery_temperature: Of the gallery model's distribution.
        query_temperature: Of the query model's.
        bank: Training pictures in the bank at most.
        bank_views: Stored views of each.
    """

    weight: float = 4.0
    neighbours: int = 256
    gallery_temperature: float = 0.1
    query_temperature: float = 0.15
    bank: int = 65536
    bank_views: int = 1
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = False

    def own(self, setup: Setup) -> nn.Module:
        """The bank."""
        return Bank(setup, self.neighbours, self.bank, self.bank_views)

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """KL(softmax(gallery·bank / τ_g) || softmax(query·bank / τ_q)), mean over the batch."""
        assert isinstance(own, Bank)
        near = own.of(step.rows)
        theirs = torch.einsum("bd,bkd->bk", step.gallery, near) / self.gallery_temperature
        ours = torch.einsum("bd,bkd->bk", step.query, near) / self.query_temperature
        return self.weight * nn.functional.kl_div(
            ours.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True
        )
