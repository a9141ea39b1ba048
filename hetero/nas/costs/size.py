"""Bytes of weights in an exported file, its structure left out.

Batch norms are folded: a convolution's or linear layer's weights at the precision's width, and one
float of bias for each of its outputs (four bytes in int8 files too).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hetero.errors import ConfigError
from hetero.models import EmbeddingNet

UNIT = "B"
_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


def cost(options: str) -> Callable[[EmbeddingNet, int], float]:
    """At ``size:int8`` (the default), ``size:fp16`` or ``size:fp32``.

    Raises:
        ConfigError: Another precision.
    """
    precision = options or "int8"
    if precision not in _BYTES:
        raise ConfigError(f"cost size: {precision!r} is not among {', '.join(_BYTES)}")
    width = _BYTES[precision]

    def of(net: EmbeddingNet, size_px: int) -> float:
        layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        return float(sum(m.weight.numel() * width + m.weight.shape[0] * 4 for m in layers))

    return of
