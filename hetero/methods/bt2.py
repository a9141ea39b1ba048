"""BT²: a change of basis in which the old space is one part, and the new model's own another.

Paper: Zhou, Li, Shrivastava, Zhao, Torralba, Tian and Lim, "BT²: Backward-compatible Training with
    Basis Transformation", ICCV 2023, arXiv:2211.03989.
Differs: the basis is kept for training alone. The paper's network gives its own vector, and turns
    it, with a few more numbers that recall the old model, into one that begins with the old space;
    here the network's last layer is linear and gives the turned vector at once, and the basis turns
    it back to read the own part from it, which is the same sum of losses. The numbers that recall
    the old model come from that layer too, where the paper has a small network for them. Own part
    and old space may differ in length. The classifier for the new model's classes is
    `hetero.train.upgrade`'s, on the whole vector. Written from a description of the method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hetero.errors import ConfigError
from hetero.methods import Setup, Step, bct


class Basis(nn.Module):
    """Two learnt turns between a whole vector and the own part that it holds.

    An own vector of n numbers is turned by the first; its last numbers, as many as the whole vector
    is longer than the old one, are the whole vector's last. The others, with what recalls the old
    model behind them, are turned by the second, and are the whole vector's beginning: the old
    space. Nothing of the own vector is lost, since both are turns.

    Args:
        own: Numbers in the own part.
        gallery: Numbers in the old space, at the beginning of the whole vector.
        whole: Numbers in the whole vector.
        frozen: What is kept for the frozen classifier, see `hetero.methods.bct`.

    Raises:
        ConfigError: The own part is longer than the whole vector, or shorter than what the whole
            one has beyond the old space.
    """

    def __init__(self, own: int, gallery: int, whole: int, frozen: nn.Module) -> None:
        """See the class."""
        super().__init__()
        if not whole - gallery <= own <= whole:
            raise ConfigError(
                f"bt2: the unconstrained model has {own} numbers, the old one {gallery} and the "
                f"new one {whole}; it must have at least {whole - gallery} and at most {whole}: "
                "set --dim, or train it with another length"
            )
        self.gallery, self.kept, self.frozen = gallery, own - (whole - gallery), frozen
        # Of zeros the turn is none.
        self.first = nn.Parameter(torch.zeros(own, own))
        self.second = nn.Parameter(torch.zeros(gallery, gallery))

    def own_part(self, whole: Float[Tensor, "b w"]) -> Float[Tensor, "b n"]:
        """What rows hold of the new model's own vectors: an orthogonal projection of each."""
        begin, more = whole[:, : self.gallery], whole[:, self.gallery :]
        kept = (begin @ _turn(self.second))[:, : self.kept]
        own: Tensor = torch.cat([kept, more], 1) @ _turn(self.first)
        return own


def _turn(square: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """An orthogonal matrix for any square one: Cayley's, (1 - S)⁻¹(1 + S) with S = A - Aᵀ.

    Every turn is one of these, or as near to one as one likes; matrix exponentials give the same
    for several times the arithmetic.
    """
    skew, one = square - square.T, torch.eye(len(square)).to(square)
    turn: Tensor = torch.linalg.solve(one - skew, one + skew)
    return turn


@dataclass(frozen=True)
class Method:
    """The old vector at the beginning, the unconstrained model's in another basis.

    Attributes:
        weight: Multiplies 1 - cosine between the beginning and the old model's vector.
        independent: Multiplies 1 - cosine between the own part and the unconstrained model's.
        influence: Multiplies the cross-entropy of the beginning under the old model's frozen
            classifier, as in `hetero.methods.bct`.
        scale: Multiplies that classifier's cosines.
        margin: Taken off the right class's cosine.
    """

    weight: float = 5.0
    independent: float = 1.0
    influence: float = 10.0
    scale: float = 16.0
    margin: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"labels", "head", "independent"})
    whole_batch: ClassVar[bool] = False

    def own(self, setup: Setup) -> nn.Module:
        """The basis, and the frozen classifier."""
        assert setup.independent is not None
        whole, own = setup.length or setup.dim, int(setup.independent.shape[2])
        return Basis(own, setup.dim, whole, self._influence().own(setup))

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """The weighted sum of both cosine losses and the frozen classifier's cross-entropy."""
        assert isinstance(own, Basis)
        assert step.independent is not None
        whole = step.query if step.whole is None else step.whole
        apart = 1 - nn.functional.cosine_similarity(own.own_part(whole), step.independent)
        loss = self.weight * (1 - (step.query * step.gallery).sum(1)).mean()
        loss = loss + self.independent * apart.mean()
        return loss + self._influence().loss(step, own.frozen)

    def _influence(self) -> bct.Method:
        return bct.Method(self.influence, 0.0, self.scale, self.margin)
