"""Approximate search in few bytes a row: cells, and products of small codebooks, by faiss.

Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 2011.

A row is its cell and `bytes` bytes; what cosines come out are those to the compressed rows. Cells
and codebooks are learnt once, from all rows there are when the first `learn_from` have come; until
then they are kept whole and search is exact. Add much at first: later rows do not move the cells.
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

#: Rows a centroid that faiss asks for, below which it warns.
PER_CENTROID = 39


@dataclass(frozen=True)
class Engine:
    """Settings.

    Attributes:
        cells: How many; 0 for 4·√rows, and as many as there are rows enough for.
        bytes: A row takes; 0 for one to 4 numbers. Has to divide the dimension.
        nprobe: Cells looked at by a search; the effort.
        learn_from: Rows from which cells and codebooks are learnt.
    """

    cells: int = 0
    bytes: int = 0
    nprobe: int = 16
    learn_from: int = 256 * PER_CENTROID

    def __post_init__(self) -> None:
        """Refuse what cannot be learnt."""
        if min(self.cells, self.bytes) < 0 or self.nprobe < 1 or self.learn_from < 256:
            raise ConfigError(
                f"engine ivfpq: cells and bytes at least 0, nprobe 1, learn_from 256; got {self}"
            )

    def create(self, where: str, space: Space) -> Compressed:
        """See `hetero.index.Engine`."""
        must_be_free(where)
        self.bytes_a_row(space)
        return Compressed(self, space, where, [], _whole_rows(space))

    def load(self, where: str) -> Compressed:
        """See `hetero.index.Engine`."""
        stored = read(where, "ivfpq")
        rows = read_rows(stored, ("IndexIVFPQ", "IndexIDMap"))
        return Compressed(Engine(**stored.settings), stored.space, where, stored.names, rows)

    def bytes_a_row(self, space: Space) -> int:
        """Of the codes, without the row number.

        Raises:
            ConfigError: The dimension cannot be cut into so many pieces.
        """
        if not self.bytes:
            return next(m for m in range(max(1, space.dim // 4), 0, -1) if space.dim % m == 0)
        if space.dim % self.bytes:
            raise ConfigError(
                f"engine ivfpq: bytes={self.bytes} does not divide the dimension {space.dim}"
            )
        return self.bytes

    def learnt(self, space: Space, vectors: Float32[np.ndarray, "n d"]) -> Any:
        """An empty faiss index with cells and codebooks learnt from vectors."""
        faiss = library()
        cells = self.cells or max(
            1, min(len(vectors) // PER_CENTROID, int(4 * len(vectors) ** 0.5))
        )
        coarse = faiss.IndexFlatIP(space.dim)
        made = faiss.IndexIVFPQ(
            coarse, space.dim, cells, self.bytes_a_row(space), 8, faiss.METRIC_INNER_PRODUCT
        )
        made.cp.spherical = True  # cells by angle, as the rows are compared
        made.train(np.ascontiguousarray(vectors))
        return made


def _whole_rows(space: Space) -> Any:
    faiss = library()
    flat = faiss.IndexFlatIP(space.dim)
    made = faiss.IndexIDMap(flat)
    made.own_fields = True
    flat.this.disown()
    return made


class Compressed(FaissIndex):
    """See the module."""

    engine, effort_name = "ivfpq", "nprobe"

    def __init__(
        self, settings: Engine, space: Space, where: str, names: list[str | None], rows: Any
    ) -> None:
        """See `hetero.index._folder.FolderIndex`; `rows` is faiss's index."""
        super().__init__(asdict(settings), space, where, names, settings.nprobe)
        self._engine, self._index = settings, rows

    @property
    def compressed(self) -> bool:
        """Whether cells and codebooks have been learnt."""
        return type(self._index).__name__ == "IndexIVFPQ"

    def _append(self, vectors: Float32[np.ndarray, "n d"], rows: Int64[np.ndarray, " n"]) -> None:
        if not self.compressed and len(self) + len(rows) >= self._engine.learn_from:
            faiss = library()
            flat = faiss.downcast_index(self._index.index)
            before = flat.reconstruct_n(0, flat.ntotal)
            numbers = faiss.vector_to_array(self._index.id_map)
            rows = np.concatenate([numbers, rows])
            vectors = np.concatenate([before, vectors])
            self._index = self._engine.learnt(self.space, vectors)
        self._index.add_with_ids(np.ascontiguousarray(vectors), rows)

    def _erase(self, rows: Int64[np.ndarray, " n"]) -> None:
        self._drop(rows)

    def _look(self, vectors: Float32[np.ndarray, "q d"], k: int) -> Found:
        asked = None
        if self.compressed:
            asked = library().SearchParametersIVF(nprobe=min(self.effort, self._index.nlist))
        return self._asked(vectors, k, asked)
