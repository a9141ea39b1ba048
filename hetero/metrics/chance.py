"""The expected Recall@k of a random ranking: what a model that knows nothing would score.

A query with r relevant among v visible rows misses k random draws with probability
C(v - r, k) / C(v, k).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from hetero.retrieval import Ranks


def per_query(ranks: Ranks, k: int = 1) -> Float64[np.ndarray, " q"]:
    """The chance, between 0 and 1, that k random visible rows hold a right one."""
    relevant, visible = np.diff(ranks.starts), ranks.visible
    miss = np.ones(len(relevant))
    for draw in range(k):
        miss *= np.clip(visible - relevant - draw, 0, None) / np.clip(visible - draw, 1, None)
    return 1.0 - miss
