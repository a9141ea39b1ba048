"""Focal distillation on logits: close to the old model's where that was right.

Paper: Yan et al., "Positive-Congruent Training", CVPR 2021, arXiv:2011.09161 (FD-LM).
Differs: classes that the old model does not know take no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hetero.pct.methods import Step, at_least


@dataclass(frozen=True)
class Method:
    """Cross-entropy and focal squared distance of the logits.

    Attributes:
        weight: Of the distance, the paper's lambda.
        base: Weight of every picture in it, the paper's alpha.
        focus: What is added where the old model is right, the paper's beta.
    """

    weight: float = 1.0
    base: float = 1.0
    focus: float = 5.0
    needs: ClassVar[frozenset[str]] = frozenset({"old"})
    whole_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        at_least(0, weight=self.weight, base=self.base, focus=self.focus)

    def loss(self, step: Step) -> Float[Tensor, ""]:
        """CE + weight · mean((base + focus · [old right]) · ½ · |new - old|²)."""
        apart = (step.shared - step.theirs).square().sum(1) / 2
        focal = self.base + self.focus * step.old_right.to(apart.dtype)
        return step.entropy().mean() + self.weight * (focal * apart).mean()
