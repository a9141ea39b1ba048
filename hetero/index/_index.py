"""What every index promises, and the checks that no engine can leave out."""

from __future__ import annotations

import abc
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from hetero.errors import BundleError, DataError
from hetero.space import Embeddings, Space

#: Longest id, in bytes of UTF-8: what a key of a PostgreSQL index has room for.
ID_BYTES = 1000


class NoIndexError(BundleError):
    """There is no index at a place, and nothing that is left of one."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        ids: Of each query, best first. Fewer than asked for where the index has no more rows or an
            approximate one did not reach more.
        scores: Cosines, float32 (queries, k), falling; -inf where there is no id. An engine that
            stores vectors with fewer bits gives the cosines to what it stores.
    """

    ids: tuple[tuple[str, ...], ...]
    scores: Float32[np.ndarray, "q k"]

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.ids]
        if lengths != np.isfinite(self.scores).sum(1).tolist():
            raise DataError("search result: as many finite scores as ids are needed for each query")

    @classmethod
    def of(cls, lines: Sequence[Sequence[tuple[str, float]]]) -> Found:
        """From pairs of id and cosine of each query, best first."""
        scores = np.full((len(lines), max(map(len, lines), default=0)), -np.inf, np.float32)
        for row, line in enumerate(lines):
            scores[row, : len(line)] = [score for _, score in line]
        return cls(tuple(tuple(name for name, _ in line) for line in lines), scores)


class Index(abc.ABC):
    """Rows of one space under unique ids, to be searched by cosine.

    Text is what a user named a row by, whatever is in it; the space is stored in the index and
    checked whenever vectors come in, to be kept or to ask. `add`, `replace` and `delete` do all
    that they are told or nothing. `save` makes it last; for an engine that is a server each change
    lasts when the call returns, and `save` builds what makes searching fast.

    Attributes:
        space: The coordinate system of the rows.
        where: For messages.
        effort: How much is searched, in the engine's own unit; 0 where there is nothing to turn.
        effort_name: Of that unit; "" where there is nothing to turn, so that the index is exact.
    """

    effort_name: ClassVar[str] = ""

    def __init__(self, space: Space, where: str, effort: int = 0) -> None:
        """See the class."""
        self.space, self.where, self.effort = space, where, effort

    # -- what one calls ---------------------------------------------------------------------------

    def add(self, rows: Embeddings) -> None:
        """Put rows in.

        Raises:
            SpaceMismatchError: They are of another space.
            DataError: An id is there already, or is none that every engine can store.
        """
        self._accept(rows)
        if there := self.present(rows.ids):
            raise DataError(
                f"{self.where}: {len(there)} of {len(rows)} ids are in the index already, first "
                f"{min(there)!r}; replace them (--replace), or leave them out"
            )
        if len(rows):
            self._insert(rows.ids, rows.vectors)

    def replace(self, rows: Embeddings) -> None:
        """Put rows in, instead of those of the same ids.

        Raises:
            SpaceMismatchError: See `add`.
            DataError: See `add`.
        """
        self._accept(rows)
        if len(rows):
            self._put(rows.ids, rows.vectors, self.present(rows.ids))

    def delete(self, ids: Collection[str]) -> None:
        """Take rows out.

        Raises:
            DataError: An id is not there.
        """
        wanted = list(dict.fromkeys(ids))
        there = self.present(wanted)
        if missing := [i for i in wanted if i not in there]:
            raise DataError(
                f"{self.where}: {len(missing)} of {len(wanted)} ids are not in the index, first "
                f"{missing[0]!r}"
            )
        if wanted:
            self._remove(wanted)

    def search(self, queries: Embeddings, k: int) -> Found:
        """The k rows of largest cosine to each query, best first; fewer where there are fewer.

        Raises:
            SpaceMismatchError: The queries are of another space.
            DataError: k is below 1.
        """
        self.space.must_match(queries.space, f"{self.where}: queries by {queries.made_by}")
        if k < 1:
            raise DataError(f"{self.where}: search for the {k} best; it has to be at least 1")
        return self._nearest(queries.vectors, k) if len(queries) else Found.of([])

    @abc.abstractmethod
    def present(self, ids: Collection[str]) -> frozenset[str]:
        """Those of the ids that are in the index."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abc.abstractmethod
    def save(self) -> None:
        """Make it last, see the class."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of files and connections; what is not saved is lost. Can be called twice."""

    def __enter__(self) -> Index:
        """The index; leaving closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `close`."""
        self.close()

    # -- what an engine does ----------------------------------------------------------------------

    @abc.abstractmethod
    def _insert(self, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"]) -> None:
        """Store rows whose ids are not there."""

    @abc.abstractmethod
    def _put(
        self, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"], there: frozenset[str]
    ) -> None:
        """Store rows; those of the ids in `there` are replaced."""

    @abc.abstractmethod
    def _remove(self, ids: Sequence[str]) -> None:
        """Remove rows that are there."""

    @abc.abstractmethod
    def _nearest(self, vectors: Float32[np.ndarray, "q d"], k: int) -> Found:
        """Search for at least 1 row; there may be fewer, or none."""

    def _accept(self, rows: Embeddings) -> None:
        self.space.must_match(rows.space, f"{self.where}: rows by {rows.made_by}")
        for name in rows.ids:
            try:
                length = len(name.encode())
            except UnicodeEncodeError:
                length = 0
            if not 1 <= length <= ID_BYTES or "\0" in name:
                raise DataError(
                    f"{self.where}: id {name[:80]!r} cannot be stored: ids are text of 1 to "
                    f"{ID_BYTES:,} bytes without a null character"
                )
