"""The ShuffleNetV2-like family that single-path one-shot search chooses from, block by block.

Paper: Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling",
    ECCV 2020, arXiv:1904.00420: 20 blocks, each one of {3x3, 5x5, 7x7, Xception-like}, inner
    channels 0.2 to 2.0 times half of the block's output. CMP-NAS (Duggal et al., CVPR 2021,
    arXiv:2105.06047) searches this space.
Differs: channels are set by `width`, because the published ones are for 224 px and 1000 classes;
    inner channels are rounded to multiples of 4.

Options: ops=33333333333333333333 (3, 5, 7 or x for each of the 20 blocks), inner=4444... (for each
block a digit d for 0.2·(d+1)), width=0.25 (multiplier of 64, 160, 320, 640), stem=1 (stride of the
stem: 2 for large pictures), last=1024 (features before pooling, times width).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hetero import models
from hetero.errors import ConfigError
from hetero.models.mobilenet import conv

REPEATS = (4, 4, 8, 4)
CHANNELS = (64, 160, 320, 640)
BLOCKS = sum(REPEATS)
OPERATORS = "357x"
_DEFAULTS: dict[str, int | float | str] = {
    "ops": "3" * BLOCKS,
    "inner": "4" * BLOCKS,
    "width": 0.25,
    "stem": 1,
    "last": 1024,
}


class Block(nn.Module):
    """Half of the channels go around (or through a projection, where the side is halved)."""

    def __init__(self, inputs: int, outputs: int, inner: int, operator: str, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = inputs if stride == 2 else inputs // 2
        rest = outputs - half
        branch = (
            _xception(half, inner, rest, stride)
            if operator == "x"
            else _shuffle(half, inner, rest, int(operator), stride)
        )
        # Its own name, because each operator has weights of its own in a supernet.
        self.name = f"op_{operator}"
        self.add_module(self.name, nn.Sequential(*branch))
        if stride == 2:
            kernel = 3 if operator == "x" else int(operator)
            self.add_module(
                f"around_{operator}",
                nn.Sequential(
                    *conv(half, half, kernel, 2, groups=half), *conv(half, half, 1), nn.ReLU()
                ),
            )
        self.around = f"around_{operator}"

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, outputs, h/stride, w/stride)."""
        if self.stride == 2:
            return torch.cat([self.get_submodule(self.around)(x), self._branch(x)], 1)
        # Every other channel: the shuffle, without a reshape that runtimes have no kernel for.
        return torch.cat([x[:, 0::2], self._branch(x[:, 1::2])], 1)

    def _branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.get_submodule(self.name)(x)
        return out


def _shuffle(inputs: int, inner: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    return [
        *conv(inputs, inner, 1),
        nn.ReLU(),
        *conv(inner, inner, kernel, stride, groups=inner),
        *conv(inner, outputs, 1),
        nn.ReLU(),
    ]


def _xception(inputs: int, inner: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        *conv(inputs, inputs, 3, stride, groups=inputs),
        *conv(inputs, inner, 1),
        nn.ReLU(),
        *conv(inner, inner, 3, groups=inner),
        *conv(inner, inner, 1),
        nn.ReLU(),
        *conv(inner, inner, 3, groups=inner),
        *conv(inner, outputs, 1),
        nn.ReLU(),
    ]


def build(text: str = "") -> nn.Module:
    """A backbone that maps (n, 3, h, w) to (n, features).

    Raises:
        ConfigError: An option is unknown or out of range.
    """
    chosen = models.options(text, _DEFAULTS, "shufflenet")
    ops, inner = chosen["ops"], chosen["inner"]
    width, stem, last = float(chosen["width"]), int(chosen["stem"]), int(chosen["last"])
    if len(ops) != BLOCKS or set(ops) - set(OPERATORS):
        raise ConfigError(
            f"backbone shufflenet: ops needs {BLOCKS} of {', '.join(OPERATORS)}; got {ops!r}"
        )
    if len(inner) != BLOCKS or not (inner.isascii() and inner.isdecimal()):
        raise ConfigError(f"backbone shufflenet: inner needs {BLOCKS} digits, got {inner!r}")
    if not 0.2 <= width < math.inf or stem not in (1, 2) or last < 8:
        raise ConfigError(
            "backbone shufflenet: width at least 0.2, stem 1 or 2, last at least 8; got "
            f"width={width}, stem={stem}, last={last}"
        )

    def channels(base: int) -> int:
        return max(8, round(base * width / 8) * 8)

    first = inputs = channels(16)
    blocks: list[nn.Module] = []
    for base, repeats in zip(CHANNELS, REPEATS, strict=True):
        outputs = channels(base)
        for repeat in range(repeats):
            at = len(blocks)
            middle = max(4, round(outputs / 2 * 0.2 * (int(inner[at]) + 1) / 4) * 4)
            blocks.append(Block(inputs, outputs, middle, ops[at], 1 if repeat else 2))
            inputs = outputs
    end = channels(last)
    return nn.Sequential(
        nn.Sequential(*conv(3, first, 3, stem), nn.ReLU()),
        nn.Sequential(*blocks),
        nn.Sequential(*conv(inputs, end, 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
