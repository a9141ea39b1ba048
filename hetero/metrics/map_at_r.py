"""MAP@R: average precision cut off at R, the number of right answers there are.

Definition: Musgrave, Belongie and Lim, "A Metric Learning Reality Check", ECCV 2020,
    arXiv:2003.08505.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from hetero.retrieval import Ranks


def per_query(ranks: Ranks, k: int = 0) -> Float64[np.ndarray, " q"]:
    """Sum of the precisions at right answers among the first R, over R; `k` is not used."""
    starts, lengths = ranks.starts[:-1], np.diff(ranks.starts)
    position = np.arange(len(ranks.ranks)) - np.repeat(starts, lengths)
    within = ranks.ranks < np.repeat(lengths, lengths)
    precision = np.where(within, (position + 1) / (ranks.ranks + 1), 0.0)
    return np.add.reduceat(precision, starts) / lengths
