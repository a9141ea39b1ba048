"""What eight bits should cost a net: the measure for int8 files that carry no record of theirs.

Weights rounded per output channel and activations per tensor, as integer runtimes hold them, in
the PyTorch net.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from hetero.diagnose._evidence import departure
from hetero.diagnose._pipeline import Array, in_parts


def int8_gap(net: Any, tensor: Array) -> float:
    """Median 1 - cosine between a net and itself in simulated int8.

    Args:
        net: A PyTorch module that takes (n, 3, h, w).
        tensor: Pictures to fit the ranges to and to measure on.
    """
    import torch
    from torch import nn

    coarse = copy.deepcopy(net).eval()
    weighty = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
    ranges: dict[str, tuple[float, float]] = {}
    coarse_now = [False]

    def hook(name: str) -> Any:
        def after(_module: Any, _inputs: Any, out: Any) -> Any:
            if not isinstance(out, torch.Tensor):
                return None
            low, high = ranges.get(name, (0.0, 0.0))
            if not coarse_now[0]:
                ranges[name] = min(low, float(out.min())), max(high, float(out.max()))
                return None
            step = max((high - low) / 255, 1e-12)
            return ((out - low) / step).round().clamp(0, 255) * step + low

        return after

    with torch.no_grad():
        for name, part in coarse.named_modules():
            if isinstance(part, weighty):
                flat = part.weight.reshape(part.weight.shape[0], -1)
                scale = (flat.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
                part.weight.copy_(((flat / scale).round() * scale).reshape(part.weight.shape))
            elif not list(part.children()):
                part.register_forward_hook(hook(name))

        def rows(model: Any) -> Array:
            return in_parts(lambda x: model(torch.from_numpy(x)).numpy(), tensor)

        right = rows(net)
        rows(coarse)
        coarse_now[0] = True
        return float(np.median(departure(rows(coarse), right)))
