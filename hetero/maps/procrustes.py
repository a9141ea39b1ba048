"""Orthogonal Procrustes: turn one space onto the other, by one singular value decomposition.

Paper: Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika
    1966; as a map between embedding models, "Drift-Adapter", EMNLP 2025, arXiv:2509.23471.
Differs: between lengths that differ, the shorter side is filled up with zeros, which gives the
    matrix with orthonormal columns (into more dimensions: distances are kept) or rows (into fewer)
    that makes the sum of dot products of the pairs largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import nn


@dataclass(frozen=True)
class Map:
    """A matrix with orthonormal rows or columns; it folds into the model at no cost."""

    def net(self, query_dim: int, gallery_dim: int) -> nn.Module:
        """One linear layer without offset."""
        return nn.Linear(query_dim, gallery_dim, bias=False)

    def fit(
        self, source: Float32[np.ndarray, "n q"], target: Float32[np.ndarray, "n g"], seed: int
    ) -> nn.Module:
        """The layer whose matrix W is orthonormal and makes the sum of (W·source)·target largest.

        Nothing is drawn: `seed` changes nothing.
        """
        net = self.net(source.shape[1], target.shape[1])
        net.weight = nn.Parameter(torch.from_numpy(turn(source, target)).float())
        return net


def turn(
    source: Float32[np.ndarray, "n q"], target: Float32[np.ndarray, "n g"]
) -> Float64[np.ndarray, "g q"]:
    """The (semi-)orthogonal matrix W that brings W·source nearest to target."""
    from scipy.linalg import orthogonal_procrustes

    (n, query_dim), gallery_dim = source.shape, target.shape[1]
    dim = max(query_dim, gallery_dim)
    left, right = np.zeros((n, dim)), np.zeros((n, dim))
    left[:, :query_dim], right[:, :gallery_dim] = source, target
    both, _ = orthogonal_procrustes(left, right)
    return np.ascontiguousarray(both[:query_dim, :gallery_dim].T)
