"""Approximate search in a graph, by USearch: one portable file that is mapped, not read.

The file in the folder is USearch's own, the same on a phone, in a browser or here; keys are row
numbers, whose ids the other file lists. An index that was loaded is mapped into memory, so that
opening one of many gigabytes takes none, and is read when it is first changed.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from hetero.errors import BundleError, ConfigError, require
from hetero.index._folder import FolderIndex, must_be_free, read
from hetero.index._index import Found
from hetero.space import Space

#: How numbers are stored, best first.
DTYPES = ("f32", "bf16", "f16", "i8")


@dataclass(frozen=True)
class Engine:
    """Settings.

    Attributes:
        dtype: Of stored numbers: f32, bf16, f16 or i8.
        m: Neighbours that a row keeps.
        ef_construction: Rows looked at for them.
        ef: Rows looked at by a search; the effort.
    """

    dtype: str = "f32"
    m: int = 16
    ef_construction: int = 128
    ef: int = 64

    def __post_init__(self) -> None:
        """Refuse what makes no graph."""
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"engine usearch: dtype {self.dtype!r}; there are {', '.join(DTYPES)}"
            )
        if self.m < 2 or min(self.ef_construction, self.ef) < 1:
            raise ConfigError(f"engine usearch: m at least 2, the others at least 1; got {self}")

    def create(self, where: str, space: Space) -> Mapped:
        """See `hetero.index.Engine`."""
        must_be_free(where)
        return Mapped(self, space, where, [], self.graph(space))

    def load(self, where: str) -> Mapped:
        """See `hetero.index.Engine`."""
        stored = read(where, "usearch")
        engine = Engine(**stored.settings)
        rows = engine.graph(stored.space)
        try:
            rows.view(str(stored.rows))
        except RuntimeError as error:
            raise BundleError(f"{stored.rows}: USearch cannot map it: {error}") from error
        if rows.ndim != stored.space.dim:
            raise BundleError(f"{stored.rows}: dim {rows.ndim}, expected {stored.space.dim}")
        return Mapped(engine, stored.space, where, stored.names, rows, stored.rows)

    def graph(self, space: Space) -> Any:
        """An empty graph."""
        return require("usearch.index", "index").Index(
            ndim=space.dim,
            metric="cos",
            dtype=self.dtype,
            connectivity=self.m,
            expansion_add=self.ef_construction,
            expansion_search=self.ef,
        )


class Mapped(FolderIndex):
    """See the module."""

    engine, suffix, effort_name = "usearch", "usearch", "ef"

    def __init__(
        self,
        settings: Engine,
        space: Space,
        where: str,
        names: list[str | None],
        rows: Any,
        mapped: Path | None = None,
    ) -> None:
        """See `hetero.index._folder.FolderIndex`; `rows` is a view of the file `mapped`, if any."""
        super().__init__(asdict(settings), space, where, names, settings.ef)
        self._engine, self._index, self._mapped = settings, rows, mapped

    def close(self) -> None:
        """See `hetero.index.Index`."""
        self._index.reset()
        self._names, self._live, self._where, self._mapped = [], 0, None, None

    def _append(self, vectors: Float32[np.ndarray, "n d"], rows: Int64[np.ndarray, " n"]) -> None:
        self._own().add(rows.astype(np.uint64), np.ascontiguousarray(vectors), threads=_threads())

    def _erase(self, rows: Int64[np.ndarray, " n"]) -> None:
        self._own().remove(rows.astype(np.uint64), threads=_threads())

    def _look(self, vectors: Float32[np.ndarray, "q d"], k: int) -> Found:
        self._index.expansion_search = max(self.effort, k)
        found = self._index.search(np.ascontiguousarray(vectors), k, threads=_threads())
        # One query comes back without its axis.
        keys, away = (
            np.asarray(x).reshape(len(vectors), -1) for x in (found.keys, found.distances)
        )
        counts = np.asarray(getattr(found, "counts", [keys.shape[1]]))
        there = np.arange(k) < counts[:, None]
        rows = np.full((len(vectors), k), -1, np.int64)
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        width = min(k, keys.shape[1])
        rows[:, :width] = keys[:, :width].astype(np.int64)
        scores[:, :width] = 1 - away[:, :width]
        return self._found(np.where(there, rows, -1), scores)

    def _write(self, path: Path) -> None:
        self._index.save(str(path))

    def _own(self) -> Any:
        """The graph, read into memory if it was only mapped."""
        if self._mapped is not None:
            rows = self._engine.graph(self.space)
            rows.load(str(self._mapped))
            self._index, self._mapped = rows, None
        return self._index


def _threads() -> int:
    """As many as the other engines take: OMP_NUM_THREADS, else all cores."""
    try:
        return max(0, int(os.environ.get("OMP_NUM_THREADS", "0")))
    except ValueError:
        return 0
