"""What a candidate is worth on validation classes.

Paper: Duggal et al., "Compatibility-aware Heterogeneous Visual Search", CVPR 2021,
    arXiv:2105.06047: R1 homogeneous, R2 heterogeneous, R3 both.
Differs: R3 is the product of the two, on mAP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

from hetero.evaluate import Task
from hetero.metrics import per_query
from hetero.space import Embeddings, Space

Which = Literal["r1", "r2", "r3"]


@dataclass(frozen=True)
class Rewards:
    """Mean average precision on validation classes, 0..1.

    Attributes:
        r1: The query model in its own index.
        r2: The query model in the gallery's index.
    """

    r1: float
    r2: float

    @property
    def r3(self) -> float:
        """Both at once."""
        return self.r1 * self.r2


def rewards(
    watch: Task, query: Float32[np.ndarray, "n d"], gallery: Float32[np.ndarray, "n d"]
) -> Rewards:
    """The rewards of a query model's vectors of the validation pictures.

    Args:
        watch: The validation task.
        query: Rows by the query model, in the order of `watch.ids`; not normalised by need.
        gallery: Rows by the gallery model.
    """
    space = Space("validation", "0" * 64, query.shape[1])
    ours = Embeddings.normalised(space, watch.ids, query, "candidate")
    theirs = Embeddings.normalised(space, watch.ids, gallery, "gallery model")

    def score(index: Embeddings) -> float:
        return float(per_query("average_precision", watch.rank(ours, index)).mean())

    return Rewards(score(ours), score(theirs))
