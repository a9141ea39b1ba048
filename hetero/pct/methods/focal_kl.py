"""Focal distillation on softened distributions: close to the old model where that was right.

Paper: Yan et al., "Positive-Congruent Training", CVPR 2021, arXiv:2011.09161 (FD-KL).
Differs: each picture's divergence has its own focal weight, as in the paper's equation; read
    closely, the authors' code averages divergences and weights apart from each other, so that the
    focus only scales the loss. Classes that the old model does not know take no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from hetero.pct.methods import Step, at_least


@dataclass(frozen=True)
class Method:
    """Cross-entropy and focal Kullback-Leibler divergence.

    Attributes:
        weight: Of the divergence, the paper's lambda.
        base: Weight of every picture in it, the paper's alpha.
        focus: What is added where the old model is right, the paper's beta.
        temperature: Softens both distributions. It has to be large: then the divergence comes close
            to the squared distance of the centred logits.
    """

    weight: float = 1.0
    base: float = 1.0
    focus: float = 5.0
    temperature: float = 100.0
    needs: ClassVar[frozenset[str]] = frozenset({"old"})
    whole_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        at_least(0, weight=self.weight, base=self.base, focus=self.focus)
        at_least(1e-3, temperature=self.temperature)

    def loss(self, step: Step) -> Float[Tensor, ""]:
        """CE + weight · mean((base + focus · [old right]) · T² · KL(old || new))."""
        heat = self.temperature
        old = (step.theirs.double() / heat).log_softmax(1)
        # In double: at a high temperature the divergence is the small rest of large sums.
        new = (step.shared.double() / heat).log_softmax(1)
        apart = nn.functional.kl_div(new, old, reduction="none", log_target=True).sum(1)
        focal = self.base + self.focus * step.old_right.to(apart.dtype)
        held = (focal * apart).mean() * heat**2
        return step.entropy().mean() + self.weight * held.to(step.logits.dtype)
