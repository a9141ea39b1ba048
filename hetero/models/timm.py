"""Backbones of the timm library, pretrained where weights are at hand: ``timm:resnet18``.

Add ``,pretrained=1`` for its weights: ``timm:resnet18,pretrained=1``. They may have seen your test
classes (ImageNet): no result on those classes is an unseen-class result. Transformers are built for
one size of picture; ``,img_size=96`` builds them for another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hetero import models
from hetero.errors import ConfigError, require
from hetero.preprocess import Preprocess


@dataclass(frozen=True)
class _Asked:
    """What the text behind ``timm:`` asks for."""

    name: str
    pretrained: bool = False
    img_size: int = 0


def _parse(text: str) -> _Asked:
    name, *rest = text.split(",")
    given = dict(part.partition("=")[::2] for part in rest)
    size = given.pop("img_size", "")
    pretrained = given.pop("pretrained", "0")
    sized = not size or (size.isascii() and size.isdigit() and 0 < int(size) < 1 << 14)
    if not name or given or pretrained not in ("0", "1") or not sized or len(rest) > 2:
        raise ConfigError(
            f"backbone timm: write timm:NAME or timm:NAME,pretrained=1,img_size=96; got {text!r}"
        )
    return _Asked(name, pretrained == "1", int(size or 0))


def build(text: str) -> nn.Module:
    """A timm model without its classifier, giving pooled features.

    Raises:
        ConfigError: timm knows no model of this name, or its weights cannot be had.
        MissingExtraError: timm is not installed.
    """
    asked = _parse(text)
    name = asked.name
    timm = require("timm", "timm")
    if name.split(".")[0] not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5])
        raise ConfigError(
            f"backbone timm: no model {name!r}" + (f"; near it: {near}" if near else "")
        )
    sized: dict[str, Any] = {"img_size": asked.img_size} if asked.img_size else {}
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=asked.pretrained, num_classes=0, **sized
        )
    except TypeError as error:
        if not sized:
            raise
        raise ConfigError(
            f"backbone timm: {name} takes pictures of any size; leave img_size out"
        ) from error
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"backbone timm:{text}: {models.first_line(error)}") from error
    return model


def architecture(text: str) -> str:
    """The model's name and size without a request for pretrained weights."""
    asked = _parse(text)
    return asked.name + (f",img_size={asked.img_size}" if asked.img_size else "")


def deployed(net: nn.Module) -> nn.Module:
    """The net itself, the branches that timm's models have for training alone merged, in place.

    MobileOne, RepViT and FastViT train parallel convolutions that compute one. A net without parts
    of timm is left as it is.

    Args:
        net: In evaluation mode.
    """
    if any(type(part).__module__.startswith("timm.") for part in net.modules()):
        require("timm", "timm").utils.reparameterize_model(net, inplace=True)
    return net


def preprocess(text: str) -> Preprocess:
    """The preprocessing that the model's pretrained weights were made with."""
    asked = _parse(text)
    config = require("timm", "timm").get_pretrained_cfg(asked.name)
    if config is None:
        raise ConfigError(f"backbone timm: no model {asked.name!r}")
    return Preprocess(
        size_px=asked.img_size or int(config.input_size[-1]),
        resize="bicubic" if config.interpolation == "bicubic" else "bilinear",
        mean=tuple(config.mean),
        std=tuple(config.std),
    )
