"""hetero: edge-cloud visual search with many small query models and one gallery model's space."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetero.bundle import Bundle
    from hetero.data import Images
    from hetero.data import load as load_images
    from hetero.fit import Settings
    from hetero.models import TorchEmbedder
    from hetero.preprocess import Preprocess
    from hetero.progress import Reporter
    from hetero.report import Limit, Measurement, Report
    from hetero.retrieval import Truth, rank, search
    from hetero.space import Embeddings, Space
    from hetero.train import GalleryRecipe, QueryRecipe, train_gallery, train_query

__version__ = "0.1.0"

#: Name -> its module, and after a point what it is called there, if otherwise.
_HOME = {
    "Bundle": "bundle",
    "Embeddings": "space",
    "GalleryRecipe": "train",
    "Images": "data",
    "Limit": "report",
    "Measurement": "report",
    "Preprocess": "preprocess",
    "QueryRecipe": "train",
    "Report": "report",
    "Reporter": "progress",
    "Settings": "fit",
    "Space": "space",
    "TorchEmbedder": "models",
    "Truth": "retrieval",
    "load_images": "data.load",
    "rank": "retrieval",
    "search": "retrieval",
    "train_gallery": "train",
    "train_query": "train",
}

__all__ = [
    "Bundle",
    "Embeddings",
    "GalleryRecipe",
    "Images",
    "Limit",
    "Measurement",
    "Preprocess",
    "QueryRecipe",
    "Report",
    "Reporter",
    "Settings",
    "Space",
    "TorchEmbedder",
    "Truth",
    "load_images",
    "rank",
    "search",
    "train_gallery",
    "train_query",
]


def __getattr__(name: str) -> Any:
    """A public name, its module imported when it is first used."""
    if name in _HOME:
        home, _, known_as = _HOME[name].partition(".")
        return getattr(importlib.import_module(f"hetero.{home}"), known_as or name)
    raise AttributeError(f"module 'hetero' has no attribute {name!r}")
