"""An elastic MobileNet-like family: depth of each stage, kernel and expansion of each block.

Paper: Cai et al., "Once-for-All", ICLR 2020, arXiv:1908.09791, for what is elastic; the blocks are
    those of `hetero.models.mobilenet`.
Differs: stages fit small pictures; a smaller input is made inside the network by bilinear
    resizing, so that all sub-networks of a search share one preprocessing; ReLU and no
    squeeze-and-excite unless asked for, because their int8 form loses most.

Options: depth=222 (blocks of each of the three stages, 1 to 3), kernel=333333333 and
expand=444444444 (of every block that there can be, stage after stage, 3 or 5 or 7 and 2 to 6),
width=1.0 (multiplier), size=0 (side to resize pictures to; 0 as they come), last=192, stride=2 (of
the stem), se=0, act=relu (or hswish).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from hetero import models
from hetero.errors import ConfigError
from hetero.models.mobilenet import Inverted, activation, channels, conv

#: Channels of each stage at width 1; each halves the side once.
STAGES = (24, 48, 96)
#: Blocks a stage has at most.
DEEPEST = 3
BLOCKS = len(STAGES) * DEEPEST
_DEFAULTS: dict[str, int | float | str] = {
    "depth": "222",
    "kernel": "3" * BLOCKS,
    "expand": "4" * BLOCKS,
    "width": 1.0,
    "size": 0,
    "last": 192,
    "stride": 2,
    "se": 0,
    "act": "relu",
}


class Resize(nn.Module):
    """Pictures at another side, bilinear."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, c, size, size)."""
        return nn.functional.interpolate(
            x, size=(self.size, self.size), mode="bilinear", align_corners=False
        )


class Elastic(nn.Module):
    """Resize, stem, first block, three stages, last layer, pooling."""

    def __init__(self, front: nn.Module, stages: list[nn.Sequential], back: nn.Module) -> None:
        super().__init__()
        self.front, self.stages, self.back = front, nn.ModuleList(stages), back

    def forward(self, x: Tensor) -> Tensor:
        """Features, shape (n, features)."""
        x = self.front(x)
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.back(x)
        return out


def build(text: str = "") -> nn.Module:
    """A backbone that maps (n, 3, h, w) to (n, features).

    Raises:
        ConfigError: An option is unknown or out of range.
    """
    chosen = models.options(text, _DEFAULTS, "elastic")
    depth, kernel, expand = chosen["depth"], chosen["kernel"], chosen["expand"]
    width, size, last = float(chosen["width"]), int(chosen["size"]), int(chosen["last"])
    stride, se, act = int(chosen["stride"]), int(chosen["se"]), chosen["act"]
    _check(depth, "depth", len(STAGES), "123")
    _check(kernel, "kernel", BLOCKS, "357")
    _check(expand, "expand", BLOCKS, "23456")
    if not 0 < width < math.inf or size < 0 or last < 8 or stride not in (1, 2):
        raise ConfigError(
            "backbone elastic: width above 0, size at least 0, last at least 8, stride 1 or 2; got "
            f"width={width}, size={size}, last={last}, stride={stride}"
        )
    make = activation(act, "elastic")

    inputs = channels(16, width)
    # Names of layers must not depend on the size: sub-networks share weights by name.
    front = nn.Sequential()
    if size:
        front.add_module("resize", Resize(size))
    front.add_module("stem", nn.Sequential(*conv(3, inputs, 3, stride), make()))
    front.add_module("first", Inverted(inputs, inputs, 1, 1, bool(se), make))
    stages = []
    for at, base in enumerate(STAGES):
        blocks = []
        for block in range(int(depth[at])):
            place = at * DEEPEST + block
            blocks.append(
                Inverted(
                    inputs,
                    channels(base, width),
                    int(expand[place]),
                    1 if block else 2,
                    bool(se),
                    make,
                    int(kernel[place]),
                )
            )
            inputs = channels(base, width)
        stages.append(nn.Sequential(*blocks))
    back = nn.Sequential(
        *conv(inputs, channels(last, width), 1), make(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return Elastic(front, stages, back)


def _check(value: str, name: str, length: int, among: str) -> None:
    if len(value) != length or set(value) - set(among):
        raise ConfigError(
            f"backbone elastic: {name} needs {length} digits, each of {', '.join(among)}; "
            f"got {value!r}"
        )
