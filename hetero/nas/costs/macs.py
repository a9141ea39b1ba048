"""Multiply-accumulates of one picture."""

from __future__ import annotations

from collections.abc import Callable

from hetero import models
from hetero.models import EmbeddingNet
from hetero.nas.costs import without_options

UNIT = "MAC"


def cost(options: str) -> Callable[[EmbeddingNet, int], float]:
    """See `hetero.models.count`."""
    without_options("macs", options)
    return lambda net, size_px: float(models.count(net, size_px)[1])
