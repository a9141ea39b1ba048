"""Logit distillation with a classifier of the query model's own: a negative control.

Paper: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
    arXiv:1503.02531.
Differs: nothing in the loss. It is here because it leaves the query model outside the gallery's
    space however good the query model becomes: its classifier may turn as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from hetero.heads import CosineHead
from hetero.methods import Setup, Step


class _Heads(nn.Module):
    """The own classifier, and the gallery model's frozen unit rows."""

    rows: Tensor

    def __init__(self, own: CosineHead, rows: Tensor) -> None:
        super().__init__()
        self.own = own
        self.register_buffer("rows", nn.functional.normalize(rows.float(), dim=1), False)


@dataclass(frozen=True)
class Method:
    """KL divergence between class distributions, each under its model's own classifier.

    Attributes:
        weight: Multiplies the loss.
        scale: Multiplies cosines in both classifiers.
        temperature: Softens both distributions.
    """

    weight: float = 1.0
    scale: float = 16.0
    temperature: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"head"})
    whole_batch: ClassVar[bool] = False
    control: ClassVar[bool] = True

    def own(self, setup: Setup) -> nn.Module:
        """A classifier of the query model's own, with fresh rows, and the frozen one."""
        assert setup.head is not None
        return _Heads(CosineHead(setup.dim, len(setup.head), self.scale, 0.0), setup.head)

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """T²·KL(gallery's class distribution || query's)."""
        assert isinstance(own, _Heads)
        heat = self.temperature
        theirs = (self.scale * step.gallery @ own.rows.T / heat).log_softmax(1)
        ours = (own.own(step.query) / heat).log_softmax(1)
        found = nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return self.weight * heat**2 * found
