"""Contextual similarity distillation with neighbours from the batch, as AIR-Distiller has it.

Paper: Wu et al., "Contextual Similarity Distillation for Asymmetric Image Retrieval", CVPR 2022,
    doi:10.1109/CVPR52688.2022.00927.
Differs: AIR-Distiller takes 96 of a batch of 256; here the same share of whatever batch comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from hetero.methods import Setup, Step


@dataclass(frozen=True)
class Method:
    """KL divergence between similarity distributions over a picture's neighbours in the batch.

    Attributes:
        weight: Multiplies the loss.
        share: Of the batch that are neighbours, 0..1.
        gallery_temperature, query_temperature: Of the distributions.
    """

    weight: float = 4.0
    share: float = 96 / 256
    gallery_temperature: float = 0.01
    query_temperature: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def own(self, setup: Setup) -> nn.Module:
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        theirs = step.gallery @ step.gallery.T
        near = theirs.topk(max(2, round(self.share * len(theirs))), 1).indices
        ours = (step.query @ step.gallery.T).gather(1, near) / self.query_temperature
        theirs = theirs.gather(1, near) / self.gallery_temperature
        return self.weight * nn.functional.kl_div(
            ours.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True
        )
