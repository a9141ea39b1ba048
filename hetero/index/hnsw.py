"""Approximate search in a graph of near neighbours, by faiss.

Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical
    Navigable Small World graphs", 2016, arXiv:1603.09320.

Memory is that of `exact` and 8·m bytes a row more. A deleted row stays in the graph as a way to
others and is not found; when a quarter of all are such, `save` builds the graph again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from hetero.errors import ConfigError
from hetero.index._faiss import FaissIndex, library, read_rows
from hetero.index._folder import must_be_free, read
from hetero.index._index import Found
from hetero.space import Space

#: Share of deleted rows from which the graph is built again.
STALE = 0.25


@dataclass(frozen=True)
class Engine:
    """Settings.

    Attributes:
        m: Neighbours that a row keeps; more find more, in more memory.
        ef_construction: Rows looked at for them; more find better ones, in more time.
        ef: Rows looked at by a search; the effort.
    """

    m: int = 32
    ef_construction: int = 100
    ef: int = 64

    def __post_init__(self) -> None:
        """Refuse what makes no graph."""
        if self.m < 2 or min(self.ef_construction, self.ef) < 1:
            raise ConfigError(f"engine hnsw: m at least 2, the others at least 1; got {self}")

    def create(self, where: str, space: Space) -> Graph:
        """See `hetero.index.Engine`."""
        must_be_free(where)
        return Graph(self, space, where, [], self.graph(space))

    def load(self, where: str) -> Graph:
        """See `hetero.index.Engine`."""
        stored = read(where, "hnsw")
        rows = read_rows(stored, ("IndexHNSWFlat",))
        return Graph(Engine(**stored.settings), stored.space, where, stored.names, rows)

    def graph(self, space: Space) -> Any:
        """An empty graph."""
        faiss = library()
        made = faiss.IndexHNSWFlat(space.dim, self.m, faiss.METRIC_INNER_PRODUCT)
        made.hnsw.efConstruction = self.ef_construction
        return made


class Graph(FaissIndex):
    """See the module."""

    engine, effort_name = "hnsw", "ef"

    def __init__(
        self, settings: Engine, space: Space, where: str, names: list[str | None], rows: Any
    ) -> None:
        """See `hetero.index._folder.FolderIndex`; `rows` is faiss's index."""
        super().__init__(asdict(settings), space, where, names, settings.ef)
        self._engine, self._index = settings, rows

    def _append(self, vectors: Float32[np.ndarray, "n d"], rows: Int64[np.ndarray, " n"]) -> None:
        self._index.add(np.ascontiguousarray(vectors))

    def _erase(self, rows: Int64[np.ndarray, " n"]) -> None:
        pass  # the names say which rows are left

    def _look(self, vectors: Float32[np.ndarray, "q d"], k: int) -> Found:
        faiss = library()
        asked = faiss.SearchParametersHNSW(efSearch=max(self.effort, k))
        if len(self) < len(self._names):
            alive = np.asarray([name is not None for name in self._names])
            bits = np.packbits(alive, bitorder="little")
            asked.sel = selector = faiss.IDSelectorBitmap(bits)
            found = self._asked(vectors, k, asked)
            del selector  # faiss does not hold it
            return found
        return self._asked(vectors, k, asked)

    def _compact(self) -> None:
        if len(self._names) - len(self) <= STALE * len(self._names):
            return
        alive = [row for row, name in enumerate(self._names) if name is not None]
        kept = self._index.reconstruct_n(0, len(self._names))[alive]
        self._index = self._engine.graph(self.space)
        self._index.add(np.ascontiguousarray(kept))
        self._renumber()
