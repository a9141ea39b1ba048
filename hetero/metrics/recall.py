"""Recall@k as visual search has it: the share of queries with a right answer among the first k.

Definition: Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011;
    as used for metric learning by Oh Song et al., CVPR 2016, arXiv:1511.06452.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from hetero.retrieval import Ranks


def per_query(ranks: Ranks, k: int = 1) -> Float64[np.ndarray, " q"]:
    """1.0 where one of the first k visible gallery rows is right, else 0.0."""
    return (ranks.best < k).astype(np.float64)
