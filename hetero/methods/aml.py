"""Asymmetric metric learning: query anchors, gallery positives and negatives.

Paper: Budnik and Avrithis, "Asymmetric Metric Learning for Knowledge Transfer", CVPR 2021,
    arXiv:2006.16331, the asymmetric contrastive and triplet losses.
Differs: losses are pytorch-metric-learning's with the gallery vectors as reference embeddings, all
    pairs of the batch; without labels a picture's only positive is itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hetero.errors import ConfigError, require
from hetero.methods import Setup, Step


@dataclass(frozen=True)
class Method:
    """Contrastive or triplet loss between query vectors and the batch's gallery vectors.

    Attributes:
        form: "contrastive" or "triplet".
        positive: Cosine above which a contrastive positive costs nothing.
        negative: Cosine below which a contrastive negative costs nothing.
        margin: Of the triplet form, in cosine.
        weight: Multiplies the loss.
        label: Take all pictures of a class as positives; if false, only the picture itself.
    """

    form: str = "triplet"
    positive: float = 1.0
    negative: float = 0.3
    margin: float = 0.4
    weight: float = 10.0
    label: bool = False
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.form not in ("contrastive", "triplet"):
            raise ConfigError(f"method aml: form is contrastive or triplet, got {self.form!r}")

    def own(self, setup: Setup) -> nn.Module:
        """The library's loss; nothing in it is learnt."""
        losses: Any = require("pytorch_metric_learning.losses", "methods")
        distances: Any = require("pytorch_metric_learning.distances", "methods")
        if self.form == "contrastive":
            made: nn.Module = losses.ContrastiveLoss(
                pos_margin=self.positive,
                neg_margin=self.negative,
                distance=distances.CosineSimilarity(),
            )
        else:
            made = losses.TripletMarginLoss(
                margin=self.margin, distance=distances.CosineSimilarity()
            )
        return made

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """The library's loss of query anchors against gallery vectors as references."""
        same = step.labels if self.label and step.labels is not None else step.rows
        # A reference set of its own: a picture's gallery vector is a positive of its query vector.
        # The library takes labels that are one object for one set, and drops those positives.
        found: Tensor = own(step.query, same, ref_emb=step.gallery, ref_labels=same.clone())
        return self.weight * found.reshape(()) + 0 * torch.sum(step.query)
