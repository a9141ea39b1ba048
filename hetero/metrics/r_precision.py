"""R-precision: the share of right answers among the first R, R being how many there are.

Definition: Manning, Raghavan and Schütze, "Introduction to Information Retrieval", 2008,
    section 8.4.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from hetero.retrieval import Ranks


def per_query(ranks: Ranks, k: int = 0) -> Float64[np.ndarray, " q"]:
    """Right answers among the first R, over R; `k` is not used."""
    lengths = np.diff(ranks.starts)
    within = (ranks.ranks < np.repeat(lengths, lengths)).astype(np.float64)
    return np.add.reduceat(within, ranks.starts[:-1]) / lengths
