"""Precision@k: the share of right answers among the first k.

Definition: Manning, Raghavan and Schütze, "Introduction to Information Retrieval", 2008,
    section 8.4. A query with fewer than k right answers cannot reach 1.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from hetero.errors import ConfigError
from hetero.retrieval import Ranks


def per_query(ranks: Ranks, k: int = 1) -> Float64[np.ndarray, " q"]:
    """Right answers among the first k visible gallery rows, over k.

    Raises:
        ConfigError: k is below 1.
    """
    if k < 1:
        raise ConfigError(f"precision@k needs a k of at least 1, got {k}")
    return np.add.reduceat((ranks.ranks < k).astype(np.float64), ranks.starts[:-1]) / k
