"""Plain training, which knows nothing of an old model: what all others are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hetero.pct.methods import Step


@dataclass(frozen=True)
class Method:
    """Cross-entropy alone."""

    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = False

    def loss(self, step: Step) -> Float[Tensor, ""]:
        """The mean cross-entropy."""
        return step.entropy().mean()
