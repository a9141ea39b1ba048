"""Embeddings whose right answers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetero.retrieval import Truth
from hetero.space import Embeddings, Space

#: The space of all that is drawn on a circle.
CIRCLE = Space("circle", "c" * 64, 2)


def space(dim: int, digit: str = "a", name: str = "test") -> Space:
    return Space(name, digit * 64, dim)


def on_circle(*degrees: float, ids: Sequence[str] = (), made_by: str = "by hand") -> Embeddings:
    """Unit vectors at these angles; two of them d degrees apart have cosine cos(d)."""
    angles = np.radians(degrees)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    names = tuple(ids) or tuple(f"{i}" for i in range(len(degrees)))
    return Embeddings.normalised(CIRCLE, names, rows, made_by)


def embeddings(rows: np.ndarray, prefix: str = "", made_by: str = "by hand") -> Embeddings:
    """The rows, normalised, in a space of their length."""
    ids = tuple(f"{prefix}{i}" for i in range(len(rows)))
    return Embeddings.normalised(space(rows.shape[1]), ids, rows, made_by)


def truth(
    query: Sequence[str],
    gallery: Sequence[str],
    query_groups: Sequence[str] = (),
    gallery_groups: Sequence[str] = (),
) -> Truth:
    """Labels of both sides; without groups nothing is hidden from anybody."""
    return Truth(
        tuple(query),
        tuple(query_groups) or tuple(f"q{i}" for i in range(len(query))),
        tuple(gallery),
        tuple(gallery_groups) or tuple(f"g{i}" for i in range(len(gallery))),
    )
