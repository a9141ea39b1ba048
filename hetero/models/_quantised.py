"""A net that trains as it will run in int8: weights and activations rounded in the forward pass.

Paper: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, arXiv:1712.05877.
Differs: the loss is a compatibility method's against the float gallery's stored vectors; batch norm
    keeps the statistics of the float phase. PyTorch's own observers and straight-through rounding
    are used; a convolution's batch norm need not be folded for it, as symmetric rounding per
    channel is the same before and after a channel's scaling.

What is rounded is what int8 runtimes round: weights per output channel, symmetric; the inputs of
every convolution and linear layer; what a batch norm gives, unless a ReLU follows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

_WEIGHTY = (nn.Conv1d, nn.Conv2d, nn.Linear)

#: Runtimes run these together with the layer before them, and round once, behind.
_FUSED = (nn.ReLU, nn.ReLU6)


def _of_weights() -> FakeQuantize:
    # The range is that of the weights as they are now, not of all that they have been. 7 bits, as
    # int8 files of ONNX have: see `hetero.export._onnx_quantize`. TFLite's 8 lose less.
    return FakeQuantize(  # type: ignore[no-untyped-call]
        MovingAveragePerChannelMinMaxObserver,
        averaging_constant=1.0,
        ch_axis=0,
        quant_min=-63,
        quant_max=63,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )


def _of_activations() -> FakeQuantize:
    return FakeQuantize(  # type: ignore[no-untyped-call]
        MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=255,
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
    )


class Quantised(nn.Module):
    """A net with int8 rounding in its forward pass; `release` gives the plain net back.

    Args:
        net: Trained in float. Its weights are trained on.
        example: One batch of its input, to see which layer feeds which.
    """

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        """See the class."""
        super().__init__()
        fused = _followed_by_activation(net, example)
        self.net = net
        self.rounding = nn.ModuleList()
        self._hooks = []
        for name, part in net.named_modules():
            if isinstance(part, _WEIGHTY):
                parametrize.register_parametrization(part, "weight", _of_weights())
                self._hooks.append(part.register_forward_pre_hook(self._rounded_input()))
            elif isinstance(part, _BatchNorm) and name not in fused:
                self._hooks.append(part.register_forward_hook(self._rounded_output()))

    def forward(self, images: Tensor) -> Tensor:
        """As the net, rounded."""
        rows: Tensor = self.net(images)
        return rows

    def train(self, mode: bool = True) -> Quantised:
        """The mode of all but batch norms, whose statistics stay those of the float phase.

        Ranges are learnt in training and stand still in evaluation.
        """
        super().train(mode)
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
            elif isinstance(part, FakeQuantize):
                part.enable_observer(mode)
        return self

    def release(self) -> nn.Module:
        """The net with its weights as trained and no rounding left in it."""
        for hook in self._hooks:
            hook.remove()
        for part in self.net.modules():
            if isinstance(part, _WEIGHTY):
                parametrize.remove_parametrizations(part, "weight", leave_parametrized=False)
        return self.net

    def _rounded_input(self) -> Any:
        at = len(self.rounding)
        self.rounding.append(_of_activations())

        def hook(part: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self.rounding[at](given[0]), *given[1:])

        return hook

    def _rounded_output(self) -> Any:
        at = len(self.rounding)
        self.rounding.append(_of_activations())

        def hook(part: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            rounded: Tensor = self.rounding[at](out)
            return rounded

        return hook


def _followed_by_activation(net: nn.Module, example: Tensor) -> set[str]:
    """Names of the batch norms whose output goes straight into a ReLU."""
    made: dict[int, str] = {}
    kept: list[Tensor] = []
    found: set[str] = set()
    hooks = []

    def out(name: str) -> Any:
        def hook(part: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            made[id(result)] = name
            kept.append(result)  # so that no later tensor gets its id

        return hook

    def enter(part: nn.Module, given: tuple[Any, ...]) -> None:
        found.update(made[id(g)] for g in given if id(g) in made)

    for name, part in net.named_modules():
        if isinstance(part, _BatchNorm):
            hooks.append(part.register_forward_hook(out(name)))
        elif isinstance(part, _FUSED):
            hooks.append(part.register_forward_pre_hook(enter))
    training = net.training
    try:
        with torch.no_grad():
            net.eval()(example)
    finally:
        net.train(training)
        for handle in hooks:
            handle.remove()
    return found
