"""Logit difference inhibition; with the mean of an ensemble as the old model it is ELODI.

An ensemble of the student's own architecture flips little against another ensemble, and a single
model held to its mean logits inherits that. Each release does so with its own ensemble, so a model
need not be trained against the one before it.

Paper: Zhao et al., "ELODI: Ensemble Logit Difference Inhibition for Positive-Congruent Training",
    2022, arXiv:2205.06265.
Differs: written as cross-entropy plus `weight` times the inhibition; the authors' mix of 0.8 is a
    weight of 4. The `top` classes are the reference's highest of each picture (the authors' code
    slices the batch there, read closely).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hetero.errors import ConfigError
from hetero.pct.methods import Step, at_least


@dataclass(frozen=True)
class Method:
    """Cross-entropy and the logits' differences beyond a margin.

    Attributes:
        weight: Of the inhibition.
        margin: Differences up to this are free, the paper's xi. Its code has 0.5 for a single
            reference, 0 to 0.2 for an ensemble.
        power: Of a difference, the paper's p.
        top: How many classes of each picture count, by the reference's logits; 0 for all.
    """

    weight: float = 4.0
    margin: float = 0.0
    power: float = 2.0
    top: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"old"})
    whole_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        at_least(0, weight=self.weight, margin=self.margin)
        at_least(1, power=self.power)
        if self.top < 0:
            raise ConfigError(f"top counts classes, 0 for all; got {self.top}")

    def loss(self, step: Step) -> Float[Tensor, ""]:
        """CE + weight · mean over pictures and classes of max(|new - reference| - margin, 0)^p."""
        apart = (step.shared - step.theirs).abs()
        if self.top:
            highest = step.theirs.topk(min(self.top, step.theirs.shape[1]), dim=1).indices
            apart = apart.gather(1, highest)
        return step.entropy().mean() + self.weight * (
            (apart - self.margin).clamp(min=0).pow(self.power).mean()
        )
