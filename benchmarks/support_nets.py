"""The architectures of the support matrix: ours, and timm's with random weights.

Every net here is named by a function's path, which is how hetero takes a user's own backbone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from hetero import data, models
from hetero.models import timm as family
from hetero.preprocess import Preprocess

SIZE, DIM = 96, 128

#: Name on the page -> backbone as hetero takes it.
OURS = {
    "resnet": "resnet:width=16",
    "mobilenet": "mobilenet",
}

#: Of timm; the transformer is built for the tested input size.
THEIRS = {
    "mobilenetv3_small_050": "mobilenetv3_small_050",
    "efficientnet_lite0": "efficientnet_lite0",
    "resnet18": "resnet18",
    "mobileone_s0": "mobileone_s0",
    "repvit_m0_9": "repvit_m0_9",
    "fastvit_t8": "fastvit_t8",
    "convnext_atto": "convnext_atto",
    "vit_tiny_patch16": f"vit_tiny_patch16_224,img_size={SIZE}",
    "mobilenetv4_conv_small": "mobilenetv4_conv_small",
    "edgenext_xx_small": "edgenext_xx_small",
    "ghostnetv2_100": "ghostnetv2_100",
}

ARCHITECTURES = (*OURS, *THEIRS)

#: Known by name beside those of the page.
OTHERS = {"mobilenetv3_small_100": "mobilenetv3_small_100"}

#: With random weights and few or no shortcuts, each batch norm enlarges what rounding left:
#: PyTorch's own float32 is 8e-5 from its float64 (mobileone_s0), and its own vectors, everything
#: rounded to float16, have a cosine of 0.9926 (efficientnet_lite0). Shifts, in deviations, as
#: training brings, end that.
SHIFTED = {"mobileone_s0": 0.5, "efficientnet_lite0": 1.0, "mobilenetv3_small_100": 0.5}

#: Pictures that batch norms see.
_SEEN = 128


def spec(name: str) -> str:
    """The backbone of this name, as a command line would give it."""
    return OURS.get(name) or f"{__name__}:{name}"


def __getattr__(name: str) -> Callable[[], nn.Module]:
    if name not in THEIRS and name not in OTHERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _declare()
    return partial(family.build, {**THEIRS, **OTHERS}[name])


def net(name: str, size: int = SIZE) -> tuple[models.EmbeddingNet, Preprocess]:
    """A net in which every block matters, in evaluation mode, and its preprocessing.

    Weights are random, but batch norms have the statistics of real pictures, and the scales that
    let a block begin as nothing are 0.4: else most of a net could be dropped unseen.
    """
    torch.manual_seed(0)
    made = models.build(spec(name), DIM, size)
    for part in made.modules():
        for key, parameter in part.named_parameters(recurse=False):
            if "gamma" in key or "layer_scale" in key or key in ("ls", "layer_scale"):
                nn.init.constant_(parameter, 0.4)
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            # Some zero the last norm of a branch, so that it begins as nothing.
            if part.weight is not None and not part.weight.any():
                nn.init.constant_(part.weight, 0.4)
            if name in SHIFTED:
                nn.init.constant_(part.bias, SHIFTED[name])
            part.reset_running_stats()
            part.momentum = None  # statistics of all that was seen, not a moving average
    preprocess = Preprocess(size_px=size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    made.train()
    with torch.no_grad():
        seen = preprocess.tensor(pictures("train", _SEEN, size))
        for at in range(0, len(seen), 64):
            made(torch.from_numpy(seen[at : at + 64]))
    return made.eval(), preprocess


def pictures(split: str, count: int, size: int = SIZE) -> np.ndarray:
    """Pictures of the embedded collection, uint8 (count, s, s, 3), spread over its split."""
    images = data.load("emoji")
    rows = images.rows(split)
    step = max(1, len(rows) // count)
    return images.pixels(rows[::step][:count], Preprocess(size_px=size))


# timm needs torchvision, whose CUDA build cannot be imported beside a CPU build of PyTorch until
# its operators are declared. On a machine where the two match nothing is done.
_OTHERS = """
    roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward
    ps_roi_pool _ps_roi_pool_backward qroi_align deform_conv2d _deform_conv2d_backward
"""
_OPERATORS = {
    **dict.fromkeys(["nms", "qnms"], "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    **dict.fromkeys(_OTHERS.split(), "(Tensor a) -> Tensor"),
}
_kept: list[torch.library.Library] = []


def _declare() -> None:
    """After it, torchvision can be imported."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _kept.append(torch.library.Library("torchvision", "DEF"))  # they last as long as it does
        for name, signature in _OPERATORS.items():
            _kept[0].define(name + signature)
        importlib.import_module("torchvision")
