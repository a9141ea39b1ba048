"""Several widths of one model in one set of weights, to be trained together and taken apart after.

Paper: Yu et al., "Slimmable Neural Networks", ICLR 2019, arXiv:1812.08928; Yu and Huang,
    "Universally Slimmable Networks", ICCV 2019, arXiv:1903.05134, the sandwich rule.
Differs: works on any backbone whose narrower form has the same layers with fewer channels: a
    narrower net's convolution and linear weights are the leading slices of the widest net's, and
    what has one number a channel (batch norms, biases) is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from hetero import _plugins
from hetero.errors import ConfigError
from hetero.models import EmbeddingNet


class Several(nn.Module):
    """Nets that share weights and are trained together."""

    def sandwich(self) -> list[Any]:
        """What `forward` takes beside the pictures, for each net that a step trains."""
        raise NotImplementedError

    @property
    def narrowest(self) -> EmbeddingNet:
        """The net on its own that a run is watched by: the one that has most to lose."""
        raise NotImplementedError


class Nested(Several):
    """Nets of ascending width that share the widest net's weights.

    Args:
        nets: The narrowest first; all of one architecture.

    Raises:
        ConfigError: They are not: a layer is missing, or is not narrower.
    """

    def __init__(self, nets: Sequence[EmbeddingNet]) -> None:
        """See the class."""
        super().__init__()
        widest = nets[-1]
        whole = dict(widest.named_parameters())
        self._shared: list[dict[str, tuple[slice, ...]]] = []
        for net in nets:
            own = dict(net.named_parameters())
            if list(own) != list(whole) or any(
                a > b for n, p in own.items() for a, b in zip(p.shape, whole[n].shape, strict=True)
            ):
                raise ConfigError(
                    "widths: the backbone has other layers at another width, so its widths cannot "
                    "share weights; train each with `hetero train query`"
                )
            self._shared.append(
                {n: tuple(slice(s) for s in p.shape) for n, p in own.items() if p.ndim > 1}
            )
        for net, shared in zip(nets[:-1], self._shared, strict=False):
            for name in shared:
                path, _, leaf = name.rpartition(".")
                # The widest net's slice comes here at every call; this one is only its shape.
                layer, value = net.get_submodule(path), net.get_parameter(name)
                del layer._parameters[leaf]
                layer.register_buffer(leaf, torch.empty_like(value), persistent=False)
        self.nets = nn.ModuleList(nets)

    def forward(self, images: Float[Tensor, "n 3 h w"], at: int) -> Float[Tensor, "n d"]:
        """Unit rows by the net at this place, 0 the narrowest."""
        rows: Tensor
        if at == len(self.nets) - 1:
            rows = self.nets[at](images)
        else:
            rows = functional_call(self.nets[at], self._slices(at), (images,))
        return rows

    def sandwich(self) -> list[int]:
        """The places to train in a step: the narrowest, the widest and one drawn between them."""
        last = len(self.nets) - 1
        if last < 2:
            return list(range(last + 1))
        return [0, int(torch.randint(1, last, ())), last]

    def extract(self, at: int) -> EmbeddingNet:
        """The net at this place on its own, with a copy of its weights."""
        net = self.nets[at]
        assert isinstance(net, EmbeddingNet)
        alone = deepcopy(net)
        for name, value in self._slices(at).items():
            path, _, leaf = name.rpartition(".")
            layer = alone.get_submodule(path)
            layer._buffers.pop(leaf, None)
            layer._parameters[leaf] = nn.Parameter(value.detach().clone())
        return alone

    @property
    def narrowest(self) -> EmbeddingNet:
        """The first one."""
        return self.extract(0)

    def _slices(self, at: int) -> dict[str, Tensor]:
        whole = dict(self.nets[-1].named_parameters())
        return {name: whole[name][cut] for name, cut in self._shared[at].items()}


def with_width(spec: str, width: float) -> str:
    """The backbone's name with another width.

    Raises:
        ConfigError: The name is not of a family of this package.
    """
    family, _, rest = spec.partition(":")
    if family not in _plugins.names("hetero.models"):
        raise ConfigError(f"backbone {spec!r}: only families with an option width can be nested")
    others = [part for part in filter(None, rest.split(",")) if not part.startswith("width=")]
    return f"{family}:" + ",".join([f"width={width:g}", *others])
