"""Naive re-weighting: what the old model got right counts more.

Paper: Yan et al., "Positive-Congruent Training", CVPR 2021, arXiv:2011.09161, the "naive" baseline.
Differs: nothing known; the weight is 1 + `weight` where the old model is right, else 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hetero.pct.methods import Step, at_least


@dataclass(frozen=True)
class Method:
    """Weighted cross-entropy.

    Attributes:
        weight: What is added to the weight of a picture that the old model gets right.
    """

    weight: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"old"})
    whole_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        at_least(0, weight=self.weight)

    def loss(self, step: Step) -> Float[Tensor, ""]:
        """The mean over pictures of (1 + weight · [old model right]) · cross-entropy."""
        entropy = step.entropy()
        return (entropy * (1 + self.weight * step.old_right.to(entropy.dtype))).mean()
