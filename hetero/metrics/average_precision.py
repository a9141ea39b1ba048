"""Average precision over the whole ranking; its mean over queries is mAP.

Definition: Manning, Raghavan and Schütze, "Introduction to Information Retrieval", 2008,
    section 8.4.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from hetero.retrieval import Ranks


def per_query(ranks: Ranks, k: int = 0) -> Float64[np.ndarray, " q"]:
    """Mean, over a query's relevant rows, of the precision at that row's rank; `k` is not used."""
    starts = ranks.starts[:-1]
    lengths = np.diff(ranks.starts)
    position = np.arange(len(ranks.ranks)) - np.repeat(starts, lengths)
    precision = (position + 1) / (ranks.ranks + 1)
    return np.add.reduceat(precision, starts) / lengths
