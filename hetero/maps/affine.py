"""A low-rank affine map by ridge regression: any matrix and an offset, in closed form.

Paper: "Drift-Adapter", EMNLP 2025, arXiv:2509.23471, the low-rank affine adapter; Izenman,
    "Reduced-rank regression for the multivariate linear model", J. Multivariate Analysis 1975.
Differs: Drift-Adapter trains the two factors by gradient steps; here the best matrix of the rank is
    computed. The ridge is counted in as extra pairs, and does not shrink the offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from hetero.errors import ConfigError


@dataclass(frozen=True)
class Map:
    """Least squares from query vectors to gallery vectors.

    Attributes:
        rank: Of the matrix; 0 for full rank.
        ridge: Penalty on the squared size of the matrix, against the mean squared error of a pair.
        offset: Whether to add a vector. Without it the map folds into the model at no cost; with it
            a layer stays behind the embedding.
    """

    rank: int = 0
    ridge: float = 1e-4
    offset: bool = True

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.rank < 0 or not self.ridge >= 0:
            raise ConfigError(
                f"map affine: rank and ridge must be at least 0, got {self.rank} and {self.ridge}"
            )

    def net(self, query_dim: int, gallery_dim: int) -> nn.Module:
        """A linear layer, or two where the rank makes that cheaper to run."""
        if not 0 < self.rank < min(query_dim, gallery_dim):
            return nn.Linear(query_dim, gallery_dim, bias=self.offset)
        return nn.Sequential(
            nn.Linear(query_dim, self.rank, bias=False),
            nn.Linear(self.rank, gallery_dim, bias=self.offset),
        )

    def fit(
        self, source: Float32[np.ndarray, "n q"], target: Float32[np.ndarray, "n g"], seed: int
    ) -> nn.Module:
        """The layers whose rows have the least squared distance to the target rows, plus ridge.

        Nothing is drawn: `seed` changes nothing.
        """
        from scipy.linalg import lstsq, svd

        x, y = source.astype(np.float64), target.astype(np.float64)
        middle_x, middle_y = x.mean(0) * self.offset, y.mean(0) * self.offset
        # Ridge is least squares with one more pair per dimension: a short axis, and zero.
        x = np.concatenate([x - middle_x, np.sqrt(self.ridge * len(x)) * np.eye(x.shape[1])])
        y = np.concatenate([y - middle_y, np.zeros((source.shape[1], y.shape[1]))])
        whole = lstsq(x, y)[0]
        net = self.net(source.shape[1], target.shape[1])
        layers = list(net) if isinstance(net, nn.Sequential) else [net]
        factors = [whole]
        if len(layers) == 2:
            # The best matrix of a rank: the whole one, seen along the main directions of its fit.
            main = svd(x @ whole, full_matrices=False)[2][: self.rank].T
            factors = [whole @ main, main.T]
        for layer, factor in zip(layers, factors, strict=True):
            layer.weight = nn.Parameter(torch.from_numpy(factor.T.copy()).float())
        if self.offset:
            matrix = factors[0] if len(factors) == 1 else factors[0] @ factors[1]
            layers[-1].bias = nn.Parameter(torch.from_numpy(middle_y - middle_x @ matrix).float())
        return net
