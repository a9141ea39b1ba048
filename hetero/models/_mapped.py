"""Nets that a map has brought into another space: folded where that is exact, else one module more.

The embedding is normalise(y) with y = M·f + c: features f, linear layer and batch norm (in
evaluation mode) together an affine map. A matrix W keeps directions apart from lengths: W·(y/|y|)
and W·y point the same way. So normalise(W·normalise(y)) = normalise(W·M·f + W·c): the same
architecture, at the same cost. An offset, or anything that bends, depends on |y| and stays a module
behind the embedding.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hetero import maps
from hetero.bundle import FittedMap
from hetero.models import EmbeddingNet


class MappedNet(EmbeddingNet):
    """An embedding, then a map, then L2 again.

    Args:
        net: Gives the embedding; its parts become this net's.
        fitted: Which map; it is built here, with any numbers in it.
        dim: Length of what comes out.
    """

    def __init__(self, net: EmbeddingNet, fitted: FittedMap, dim: int) -> None:
        """See the class."""
        nn.Module.__init__(self)
        self.dim, self.inner, self.fitted = dim, net.inner, fitted
        self.backbone, self.projection = net.backbone, net.projection
        self.map = maps.make(fitted.name, fitted.settings).net(fitted.dim, dim)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Unit rows in the space the map leads to."""
        return nn.functional.normalize(self.map(super().forward(images)), dim=1)


@torch.no_grad()
def folded(net: EmbeddingNet, turn: Float[Tensor, "g q"]) -> EmbeddingNet:
    """A net of the same architecture that gives normalise(turn · embedding).

    Args:
        net: In evaluation mode; not a `MappedNet`. It is not changed.
        turn: float64, from the length of its embedding to that of the new one.
    """
    linear, norm, *lift = net.projection
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    out = EmbeddingNet(copy.deepcopy(net.backbone), linear.in_features, len(turn), net.inner)
    state = net.state_dict()
    if lift:
        for name in ("projection.2.weight", "projection.2.bias"):
            state[name] = turn @ state[name].double()
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = norm.bias.double() - norm.running_mean.double() * scale
        state["projection.0.weight"] = turn @ (scale[:, None] * linear.weight.double())
        # What is left to the batch norm is to add: mean 0, and variance + eps = 1.
        ones = torch.ones(len(turn))
        state["projection.1.weight"], state["projection.1.bias"] = ones, turn @ shift
        state["projection.1.running_mean"] = 0 * ones
        state["projection.1.running_var"] = (1 - out.projection[1].eps) * ones  # type: ignore[operator]
    out.load_state_dict(state)
    return out.eval()
