"""Cumulative match characteristic: is a right picture among the first k shown?

Definition: Moon and Phillips, "Computational and performance aspects of PCA-based face-recognition
    algorithms", Perception 2001; for re-identification Gray, Brennan and Tao, PETS 2007.
With one gallery picture of each identity this is Recall@k. With several, re-identification counts
as Market-1501's evaluation does (Zheng et al., ICCV 2015): the first right answer's rank among all
visible pictures, the query's own camera (here: group) hidden. That again is Recall@k, and it is
what is computed; the module exists under the field's name and for the curve.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from hetero.errors import ConfigError
from hetero.retrieval import Ranks


def per_query(ranks: Ranks, k: int = 1) -> Float64[np.ndarray, " q"]:
    """1.0 where the first right answer is among the first k visible gallery rows, else 0.0."""
    return (ranks.best < k).astype(np.float64)


def curve(ranks: Ranks, k_max: int) -> Float64[np.ndarray, " k"]:
    """The mean over queries for k = 1 to `k_max`; it never falls.

    Raises:
        ConfigError: `k_max` is below 1.
    """
    if k_max < 1:
        raise ConfigError(f"a match curve needs a k_max of at least 1, got {k_max}")
    found = np.bincount(np.minimum(ranks.best, k_max), minlength=k_max + 1)[:k_max]
    shares: Float64[np.ndarray, " k"] = np.cumsum(found) / len(ranks.best)
    return shares
