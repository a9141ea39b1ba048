"""Any backbone with leaky activations, which a linearised model needs: ``leaky:resnet:width=16``.

A ReLU passes nothing on of a unit that is off, and a linearised net never turns one on: what a
change of the weights does to it is lost. A leaky ReLU always passes a part on. ``leaky:SPEC`` has
the slope 0.2, ``leaky:slope=0.1,SPEC`` another; parameters and their names are those of SPEC.

Paper: Achille et al., "LQF: Linear Quadratic Fine-Tuning", CVPR 2021, arXiv:2012.11140.
Differs: ReLU6 becomes leaky too, without its bound of 6; hard-swish and others stay as they are.
"""

from __future__ import annotations

from torch import nn

from hetero import models
from hetero.errors import ConfigError
from hetero.preprocess import Preprocess

#: Of the slope below zero.
SLOPE = 0.2


def _parse(text: str) -> tuple[float, str]:
    """The slope, and the backbone that is made leaky."""
    slope, spec = SLOPE, text
    try:
        if text.startswith("slope="):
            number, _, spec = text.removeprefix("slope=").partition(",")
            slope = float(number)
    except ValueError:
        slope = -1.0
    if not (0 < slope < 1 and spec):
        raise ConfigError(
            "backbone leaky: write leaky:SPEC or leaky:slope=0.2,SPEC, with a slope between 0 and "
            f"1 and SPEC another backbone, such as leaky:resnet:width=16; got {text!r}"
        )
    return slope, spec


def build(text: str) -> nn.Module:
    """The backbone named behind ``leaky:``, each of its ReLU modules turned leaky.

    Raises:
        ConfigError: It has no ReLU module, so that nothing would be leaky.
    """
    slope, spec = _parse(text)
    net = models.backbone(spec)
    if not _turn(net, slope):
        raise ConfigError(f"backbone leaky: {spec!r} has no module of nn.ReLU or nn.ReLU6 in it")
    return net


def _turn(net: nn.Module, slope: float) -> int:
    """How many activations inside the net were turned leaky, in place."""
    count = 0
    for name, child in net.named_children():
        if isinstance(child, nn.ReLU | nn.ReLU6):
            setattr(net, name, nn.LeakyReLU(slope))
            count += 1
        else:
            count += _turn(child, slope)
    return count


def architecture(text: str) -> str:
    """The name without a wish for pretrained weights, as far as the backbone inside has one."""
    slope, spec = _parse(text)
    inside = models.architecture(spec)
    return inside if slope == SLOPE else f"slope={slope:g},{inside}"


def preprocess(text: str) -> Preprocess | None:
    """How the pretrained weights of the backbone inside want their pictures."""
    return models.pretrained_preprocess(_parse(text)[1])
