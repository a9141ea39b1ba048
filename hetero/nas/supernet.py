"""One set of weights for all architectures of a space.

Papers: Guo et al., "Single Path One-Shot NAS", ECCV 2020, arXiv:1904.00420, uniform sampling; Yu et
    al., "BigNAS", ECCV 2020, arXiv:2003.11142, the sandwich rule; Duggal et al., "Compatibility-
    aware Heterogeneous Visual Search", CVPR 2021, arXiv:2105.06047, training with the compatibility
    loss.
Differs: works on any backbone family. A smaller net's convolution has the leading channels and the
    middle of the kernel of the largest net's, batch norms the leading numbers; statistics are made
    anew for each architecture (`recalibrate`). The frozen gallery model is the teacher of all
    sub-networks, so no in-place teacher is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from hetero import models
from hetero.errors import ConfigError
from hetero.models import EmbeddingNet
from hetero.models._nested import Several
from hetero.nas.space import Architecture, SearchSpace

Sampling = Literal["sandwich", "single"]
#: Skeletons kept: a skeleton has no weights, but making it takes as long as a small step.
_KEPT = 256


class Supernet(Several):
    """Weights of every architecture of a space.

    Args:
        space: What can be chosen.
        dim: Length of the embedding.
        size_px: Side of the pictures.
        inner: See `hetero.models.EmbeddingNet`.
        sampling: "sandwich" trains the smallest, the largest and two others in each step; "single"
            one at random, which is what the papers do with days of accelerators.
        batches: Normalised pictures as training sees them, which `extract` takes statistics of.

    Raises:
        ConfigError: The space's architectures cannot share weights.
    """

    def __init__(
        self,
        space: SearchSpace,
        dim: int,
        size_px: int,
        inner: int = 0,
        sampling: Sampling = "sandwich",
        batches: Sequence[Float[Tensor, "n 3 h w"]] = (),
    ) -> None:
        """See the class."""
        super().__init__()
        self.space, self.dim, self.size_px, self.inner = space, dim, size_px, inner
        self.sampling, self.batches = sampling, batches
        for architecture in space.corners():
            net = models.build(space.backbone(architecture), dim, size_px, inner)
            for name, value in net.named_parameters():
                key = _key(name)
                if key not in self._parameters:
                    self.register_parameter(key, nn.Parameter(value.detach().clone()))
        self._skeleton = lru_cache(maxsize=_KEPT)(self._make)

    def forward(
        self, images: Float[Tensor, "n 3 h w"], architecture: Architecture
    ) -> Float[Tensor, "n d"]:
        """Unit rows by this architecture; in training mode with the batch's own statistics."""
        net = self._skeleton(self.space.backbone(architecture)).train(self.training)
        rows: Tensor = functional_call(net, self._slices(net), (images,))
        return rows

    def sandwich(self) -> list[Architecture]:
        """The architectures to train in a step."""
        rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
        if self.sampling == "single":
            return [self.space.draw(rng)]
        some = [self.space.draw(rng) for _ in range(2)]
        return [self.space.smallest(), *some, self.space.largest()]

    @property
    def narrowest(self) -> EmbeddingNet:
        """The smallest one."""
        return self.extract(self.space.smallest())

    def extract(self, architecture: Architecture, batches: int = 10) -> EmbeddingNet:
        """The net of this architecture on its own, in evaluation mode.

        Args:
            architecture: Of the space.
            batches: How many of the supernet's batches its statistics are taken of; with 0 it has
                those of a new net, which is good for showing what they are good for.
        """
        net = models.build(self.space.backbone(architecture), self.dim, self.size_px, self.inner)
        with torch.no_grad():
            for name, value in self._slices(net).items():
                net.get_parameter(name).copy_(value)
        net.to(self._device)
        if batches:
            recalibrate(net, [batch.to(self._device) for batch in self.batches[:batches]])
        return net.eval()

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _make(self, backbone: str) -> EmbeddingNet:
        """A net whose parameters are shapes only."""
        net = models.build(backbone, self.dim, self.size_px, self.inner)
        for part in net.modules():
            for leaf, value in list(part._parameters.items()):
                if value is not None:
                    part._parameters[leaf] = nn.Parameter(value.to("meta"))
            for leaf, buffer in part._buffers.items():
                part._buffers[leaf] = None if buffer is None else buffer.to(self._device)
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _slices(self, net: EmbeddingNet) -> dict[str, Tensor]:
        out = {}
        for name, value in net.named_parameters():
            whole = self._parameters.get(_key(name))
            if whole is None or any(a > b for a, b in zip(value.shape, whole.shape, strict=True)):
                raise ConfigError(
                    f"search space {self.space.name!r}: {name} of one architecture is not part of "
                    "the largest one's; name choices of a kind in `kinds`, and order values by size"
                )
            out[name] = whole[_cut(value.shape, whole.shape)]
        return out


def _key(name: str) -> str:
    """A parameter's name, as a module can register it."""
    return name.replace(".", "/")


def _cut(part: torch.Size, whole: torch.Size) -> tuple[slice, ...]:
    """Leading channels, and the middle of the kernel."""
    return tuple(
        slice(0, a) if axis < 2 else slice((b - a) // 2, (b - a) // 2 + a)
        for axis, (a, b) in enumerate(zip(part, whole, strict=True))
    )


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[Float[Tensor, "n 3 h w"]]) -> None:
    """Set a net's batch norms to the statistics of these batches, and leave it in evaluation mode.

    Weights taken out of a supernet come with statistics of no architecture at all. The mean over
    all batches is taken, each alike; nothing else in the net changes.

    Args:
        net: Changed in place.
        batches: Normalised pictures, as training sees them; at least one.

    Raises:
        ConfigError: There is no batch.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all that is seen, not a moving one
    net.eval()
    for norm in norms:
        norm.train()  # and nothing else: dropout stays off
    seen = 0
    for batch in batches:
        net(batch)
        seen += 1
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    net.eval()
    if not seen:
        raise ConfigError("recalibrate: needs at least one batch of pictures")
