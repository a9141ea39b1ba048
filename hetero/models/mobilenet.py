"""A MobileNetV3-like family for query models: depthwise 3x3, friendly to exporters and int8.

Paper: Howard et al., "Searching for MobileNetV3", ICCV 2019, arXiv:1905.02244.
Differs: kernels are 3x3 (some mobile runtimes have no fast 5x5 or 7x7), squeeze-and-excite is off
    unless asked for (its int8 form loses most), and hard-swish is written x·clamp(x/6 + 1/2, 0, 1),
    the form that mobile runtimes run fused in int8.

Options: width=1.0 (multiplier), depth=1.0 (multiplier of repeats), se=0 (1 adds
    squeeze-and-excite), act=relu (or hswish), stride=2 (of the stem; 1 for pictures of 32 px and
    less, where detail counts), last=192 (features before pooling at width 1: cheap, because there
    are few pixels left).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from hetero import models
from hetero.errors import ConfigError

# channels, expansion, repeats, stride
_STAGES = ((16, 1, 1, 1), (24, 4, 2, 2), (48, 4, 2, 2), (96, 4, 2, 2))
_LAST = 192
_DEFAULTS: dict[str, int | float | str] = {
    "width": 1.0,
    "depth": 1.0,
    "se": 0,
    "act": "relu",
    "stride": 2,
    "last": _LAST,
}


class HardSwish(nn.Module):
    """x·clamp(x/6 + 1/2, 0, 1): hard-swish without the operator that int8 runtimes fall back on."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        return x * (x * (1 / 6) + 0.5).clamp(0.0, 1.0)


class _Squeeze(nn.Module):
    """Channel weights from the pooled picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, channels // 4)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.weigh(x)
        return x * (weights * (1 / 6) + 0.5).clamp(0.0, 1.0)


def activation(name: str, family: str) -> type[nn.Module]:
    """The activation of this name.

    Raises:
        ConfigError: There is none.
    """
    if name not in ("relu", "hswish"):
        raise ConfigError(f"backbone {family}: act is relu or hswish, got {name!r}")
    return nn.ReLU if name == "relu" else HardSwish


def channels(base: int, width: float) -> int:
    """So many channels at this multiplier: multiples of 8, which fill every vector register."""
    return max(8, int(base * width / 8 + 0.5) * 8)


def conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the side (but for its stride), and its batch norm."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class Inverted(nn.Module):
    """Widen, look around depthwise, narrow; and the way around where shapes allow."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        stride: int,
        se: bool,
        act: type[nn.Module],
        kernel: int = 3,
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        layers = [*conv(inputs, inner, 1), act()] if expansion > 1 else []
        layers += [*conv(inner, inner, kernel, stride, groups=inner), act()]
        layers += [_Squeeze(inner)] if se else []
        self.inner = nn.Sequential(*layers, *conv(inner, outputs, 1))
        self.around = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, outputs, h/stride, w/stride)."""
        y: Tensor = self.inner(x)
        return x + y if self.around else y


def build(text: str = "") -> nn.Module:
    """A backbone that maps (n, 3, h, w) to (n, features).

    Raises:
        ConfigError: An option is unknown or out of range.
    """
    chosen = models.options(text, _DEFAULTS, "mobilenet")
    width, depth = float(chosen["width"]), float(chosen["depth"])
    stride, act, se = int(chosen["stride"]), chosen["act"], int(chosen["se"])
    last = int(chosen["last"])
    finite = 0 < width < math.inf and 0 < depth < math.inf and last >= 8
    if not finite or stride not in (1, 2) or se not in (0, 1):
        raise ConfigError(
            "backbone mobilenet: width and depth above 0, stride 1 or 2, se 0 or 1, last at least "
            f"8; got width={width}, depth={depth}, stride={stride}, se={se}, last={last}"
        )
    make = activation(act, "mobilenet")

    inputs = channels(16, width)
    layers: list[nn.Module] = [*conv(3, inputs, 3, stride), make()]
    for base, expansion, repeats, step in _STAGES:
        for block in range(max(1, round(repeats * depth))):
            layers.append(
                Inverted(
                    inputs,
                    channels(base, width),
                    expansion,
                    step if not block else 1,
                    bool(se),
                    make,
                )
            )
            inputs = channels(base, width)
    layers += [*conv(inputs, channels(last, width), 1), make()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
