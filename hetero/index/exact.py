"""Exact search: faiss's flat index of inner products, every row compared with every query.

Memory is 4 bytes a number, and time grows with the rows. It is what the others are measured by.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from hetero.index._faiss import FaissIndex, library, read_rows
from hetero.index._folder import must_be_free, read
from hetero.index._index import Found
from hetero.space import Space


@dataclass(frozen=True)
class Engine:
    """Nothing to set."""

    def create(self, where: str, space: Space) -> Flat:
        """See `hetero.index.Engine`."""
        must_be_free(where)
        return Flat(asdict(self), space, where, [], library().IndexFlatIP(space.dim))

    def load(self, where: str) -> Flat:
        """See `hetero.index.Engine`."""
        stored = read(where, "exact")
        rows = read_rows(stored, ("IndexFlat", "IndexFlatIP"))
        return Flat(stored.settings, stored.space, where, stored.names, rows)


class Flat(FaissIndex):
    """See the module."""

    engine = "exact"

    def __init__(
        self, settings: Any, space: Space, where: str, names: list[str | None], rows: Any
    ) -> None:
        """See `hetero.index._folder.FolderIndex`; `rows` is faiss's index."""
        super().__init__(settings, space, where, names)
        self._index = rows

    def _append(self, vectors: Float32[np.ndarray, "n d"], rows: Int64[np.ndarray, " n"]) -> None:
        self._index.add(np.ascontiguousarray(vectors))

    def _erase(self, rows: Int64[np.ndarray, " n"]) -> None:
        self._drop(rows)
        self._renumber()  # faiss closes the gaps and keeps the order

    def _look(self, vectors: Float32[np.ndarray, "q d"], k: int) -> Found:
        return self._asked(vectors, k)
