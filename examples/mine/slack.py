"""Each query vector to within `slack` of the gallery's; nothing is asked of closer ones.

Paper: none, this is ours.
Differs: in everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hetero.methods import Setup, Step


@dataclass(frozen=True)
class Method:
    slack: float = 0.05
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = False

    def own(self, setup: Setup) -> nn.Module:
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Tensor:
        apart = 1 - (step.query * step.gallery).sum(1)
        return (apart - self.slack).clamp(min=0).mean()
