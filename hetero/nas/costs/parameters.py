"""Learnt numbers of a network."""

from __future__ import annotations

from collections.abc import Callable

from hetero.models import EmbeddingNet
from hetero.nas.costs import without_options

UNIT = "parameters"


def cost(options: str) -> Callable[[EmbeddingNet, int], float]:
    """All of them, batch norms included."""
    without_options("parameters", options)
    return lambda net, size_px: float(sum(p.numel() for p in net.parameters()))
