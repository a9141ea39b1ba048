"""Training of a gallery model, which fixes a space, and of query models into it."""

from __future__ import annotations

from hetero.train.adopt import adopt_gallery
from hetero.train.gallery import GalleryRecipe, train_gallery
from hetero.train.query import QUERY_LR, QueryRecipe, train_query, train_widths
from hetero.train.supernet import SupernetRecipe, Trained, load_supernet, train_supernet

__all__ = [
    "QUERY_LR",
    "GalleryRecipe",
    "QueryRecipe",
    "SupernetRecipe",
    "Trained",
    "adopt_gallery",
    "load_supernet",
    "train_gallery",
    "train_query",
    "train_supernet",
    "train_widths",
]
