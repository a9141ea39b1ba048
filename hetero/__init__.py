"""hetero: edge-cloud visual search with many small query models and one gallery model's space."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetero.bundle import Bundle
    from hetero.data import Images
    from hetero.preprocess import Preprocess
    from hetero.report import Limit, Measurement, Report
    from hetero.retrieval import Truth, rank, search
    from hetero.space import Embeddings, Space

__version__ = "0.1.0"

_HOME = {
    "Bundle": "bundle",
    "Embeddings": "space",
    "Images": "data",
    "Limit": "report",
    "Measurement": "report",
    "Preprocess": "preprocess",
    "Report": "report",
    "Space": "space",
    "Truth": "retrieval",
    "rank": "retrieval",
    "search": "retrieval",
}

__all__ = [
    "Bundle",
    "Embeddings",
    "Images",
    "Limit",
    "Measurement",
    "Preprocess",
    "Report",
    "Space",
    "Truth",
    "rank",
    "search",
]


def __getattr__(name: str) -> Any:
    """A public name, its module imported when it is first used."""
    if name in _HOME:
        return getattr(importlib.import_module(f"hetero.{_HOME[name]}"), name)
    raise AttributeError(f"module 'hetero' has no attribute {name!r}")
