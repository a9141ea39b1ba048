"""Backbones of torchvision, pretrained where weights are at hand: ``torchvision:resnet18``.

Add ``,weights=DEFAULT`` (or another name) for its weights. They may have seen your test classes
(ImageNet): no result on those classes is an unseen-class result.
"""

from __future__ import annotations

from torch import nn

from hetero import models
from hetero.errors import ConfigError, require

#: With pretrained weights these also normalise their input anew, so they are another net.
_OTHER_WITH_WEIGHTS = ("googlenet", "inception_v3")


def build(text: str) -> nn.Module:
    """A torchvision classifier with its last linear layer taken off.

    Raises:
        ConfigError: torchvision knows no model of this name, its weights cannot be had, or it does
            not end in a linear layer.
        MissingExtraError: torchvision is not installed.
    """
    name, _, rest = text.partition(",")
    key, _, weights = rest.partition("=")
    if rest and key != "weights":
        raise ConfigError(
            f"backbone torchvision: write torchvision:NAME or NAME,weights=DEFAULT; got {text!r}"
        )
    library = require("torchvision.models", "timm")
    try:
        model: nn.Module = library.get_model(name, weights=weights or None)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise ConfigError(f"backbone torchvision:{text}: {models.first_line(error)}") from error
    for head in ("fc", "classifier", "head", "heads"):
        module = getattr(model, head, None)
        if isinstance(module, nn.Linear):
            setattr(model, head, nn.Identity())
            return model
        if isinstance(module, nn.Sequential) and len(module) and isinstance(module[-1], nn.Linear):
            module[-1] = nn.Identity()
            return model
    raise ConfigError(f"backbone torchvision:{name}: found no last linear layer to take off")


def architecture(text: str) -> str:
    """The model's name without a request for pretrained weights, where that changes nothing."""
    name = text.partition(",")[0]
    return text if name in _OTHER_WITH_WEIGHTS else name
