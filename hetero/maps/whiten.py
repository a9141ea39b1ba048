"""Query-side whitening: the best matrix into the gallery's space, then its loud directions lowered.

Papers: Jégou and Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of
    PCA and whitening", ECCV 2012, doi:10.1007/978-3-642-33709-3_55; Radenović et al., "Fine-tuning
    CNN Image Retrieval with No Human Annotation", TPAMI 2019, arXiv:1711.02512, which shrinks it.
Differs: they whiten both sides, which means every stored vector anew. A dot product of two whitened
    vectors is that of one stored vector and one that was whitened twice, so here the query side is
    turned alone and the index stays as it is (stored rows keep the length they have, 1). How far
    it goes is a power, since a query model's errors grow with every direction made louder.

A ranking's gain is paid for in scores: the cosine between a picture's two vectors falls, so a
threshold that was set on the gallery model's scores does not carry over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from hetero.errors import ConfigError
from hetero.maps import affine


@dataclass(frozen=True)
class Map:
    """Ridge regression, then a negative power of the covariance of the gallery vectors.

    It folds into the model at no cost.

    Attributes:
        power: 0 leaves the regression alone, 1 is whitening of both sides.
        floor: Added to every variance, against the mean variance of a direction.
        ridge: See `hetero.maps.affine`.
    """

    power: float = 0.35
    floor: float = 0.01
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if not 0 <= self.power <= 1 or not self.floor > 0 or not self.ridge >= 0:
            raise ConfigError(
                "map whiten: power must be in 0..1, floor above 0 and ridge at least 0, got "
                f"{self.power}, {self.floor} and {self.ridge}"
            )

    def net(self, query_dim: int, gallery_dim: int) -> nn.Module:
        """One linear layer without offset."""
        return nn.Linear(query_dim, gallery_dim, bias=False)

    def fit(
        self, source: Float32[np.ndarray, "n q"], target: Float32[np.ndarray, "n g"], seed: int
    ) -> nn.Module:
        """The layer C^-power·W: W by regression, C the covariance of the target rows.

        Nothing is drawn: `seed` changes nothing.
        """
        net = affine.Map(ridge=self.ridge, offset=False).fit(source, target, seed)
        assert isinstance(net, nn.Linear)
        variances, axes = np.linalg.eigh(np.cov(target.T.astype(np.float64)))
        variances = variances.clip(0) + self.floor * variances.mean()
        quiet = (axes * variances**-self.power) @ axes.T
        # Its size is free, since the outcome is made a unit vector; kept near that of a rotation.
        quiet *= variances.mean() ** self.power
        net.weight = nn.Parameter(
            torch.from_numpy(quiet @ net.weight.double().detach().numpy()).float()
        )
        return net
