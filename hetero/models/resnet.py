"""A ResNet family for small and large pictures, the usual choice for the gallery model.

Paper: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    arXiv:1512.03385.
Differs: pictures up to 64 px get a 3x3 stem without pooling (as the paper's CIFAR nets); the width
    of the first stage is free; global average pooling ends the backbone.

Options: width=32 (channels of the first stage), depth=10 (10, 18 or 34), stem=small (or large).
"""

from __future__ import annotations

from torch import Tensor, nn

from hetero import models
from hetero.errors import ConfigError

_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_DEFAULTS: dict[str, int | float | str] = {"width": 32, "depth": 10, "stem": "small"}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class _Block(nn.Module):
    """Two 3x3 convolutions and the way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _conv(inputs, outputs, 3, stride), nn.ReLU(), _conv(outputs, outputs, 3)
        )
        same = stride == 1 and inputs == outputs
        # oneDNN 3.12 (PyTorch 2.13) writes beyond its memory in the gradient of a strided 1x1
        # convolution of fewer than 8 channels, channels last, on processors with AVX2 alone. A
        # stride is the same as taking every other pixel first, so there it is done so.
        self.every = stride if inputs < 8 else 1
        step = stride // self.every
        self.around = nn.Identity() if same else _conv(inputs, outputs, 1, step)
        self.end = nn.ReLU()  # a module, so that `leaky` can put another in its place

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.every == 1 else x[:, :, :: self.every, :: self.every]
        out: Tensor = self.end(self.inner(x) + self.around(beside))
        return out


def build(text: str = "") -> nn.Module:
    """A backbone that maps (n, 3, h, w) to (n, 8·width).

    Raises:
        ConfigError: An option is unknown or out of range.
    """
    chosen = models.options(text, _DEFAULTS, "resnet")
    width, depth, stem = int(chosen["width"]), int(chosen["depth"]), chosen["stem"]
    if depth not in _BLOCKS or width < 1 or stem not in ("small", "large"):
        raise ConfigError(
            f"backbone resnet: depth is one of {', '.join(map(str, _BLOCKS))}, width at least 1, "
            f"stem small or large; got depth={depth}, width={width}, stem={stem}"
        )
    layers: list[nn.Module] = (
        [_conv(3, width, 3), nn.ReLU()]
        if stem == "small"
        else [_conv(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    )
    channels = width
    for stage, blocks in enumerate(_BLOCKS[depth]):
        for block in range(blocks):
            outputs = width * 2**stage
            layers.append(_Block(channels, outputs, 2 if stage and not block else 1))
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
