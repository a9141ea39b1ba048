"""Training of a gallery model, which fixes a space, and of query and later models into it."""

from __future__ import annotations

from hetero.train.adopt import adopt_gallery
from hetero.train.gallery import GalleryRecipe, train_gallery
from hetero.train.query import QUERY_LR, QueryRecipe, train_query, train_widths
from hetero.train.supernet import SupernetRecipe, Trained, load_supernet, train_supernet
from hetero.train.upgrade import UpgradeRecipe, train_upgrade

__all__ = [
    "QUERY_LR",
    "GalleryRecipe",
    "QueryRecipe",
    "SupernetRecipe",
    "Trained",
    "UpgradeRecipe",
    "adopt_gallery",
    "load_supernet",
    "train_gallery",
    "train_query",
    "train_supernet",
    "train_upgrade",
    "train_widths",
]
