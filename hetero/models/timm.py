"""Backbones of the timm library, pretrained where weights are at hand: ``timm:resnet18``.

Add ``,pretrained=1`` for its weights: ``timm:resnet18,pretrained=1``. They may have seen your test
classes (ImageNet): no result on those classes is an unseen-class result.
"""

from __future__ import annotations

from torch import nn

from hetero import models
from hetero.errors import ConfigError, require
from hetero.preprocess import Preprocess


def _parse(text: str) -> tuple[str, bool]:
    name, _, rest = text.partition(",")
    if not name or rest not in ("", "pretrained=1", "pretrained=0"):
        raise ConfigError(f"backbone timm: write timm:NAME or timm:NAME,pretrained=1; got {text!r}")
    return name, rest == "pretrained=1"


def build(text: str) -> nn.Module:
    """A timm model without its classifier, giving pooled features.

    Raises:
        ConfigError: timm knows no model of this name, or its weights cannot be had.
        MissingExtraError: timm is not installed.
    """
    name, pretrained = _parse(text)
    timm = require("timm", "timm")
    if name.split(".")[0] not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5])
        raise ConfigError(
            f"backbone timm: no model {name!r}" + (f"; near it: {near}" if near else "")
        )
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"backbone timm:{text}: {models.first_line(error)}") from error
    return model


def architecture(text: str) -> str:
    """The model's name without a request for pretrained weights."""
    return _parse(text)[0]


def preprocess(text: str) -> Preprocess:
    """The preprocessing that the model's pretrained weights were made with."""
    name, _ = _parse(text)
    config = require("timm", "timm").get_pretrained_cfg(name)
    if config is None:
        raise ConfigError(f"backbone timm: no model {name!r}")
    return Preprocess(
        size_px=int(config.input_size[-1]),
        resize="bicubic" if config.interpolation == "bicubic" else "bilinear",
        mean=tuple(config.mean),
        std=tuple(config.std),
    )
