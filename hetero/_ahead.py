"""How many wrong gallery rows are ahead of each right one, counted in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from threadpoolctl import threadpool_limits

from hetero._cores import cores

#: Similarities closer than this are ties. The last bits of a float32 product depend on where in a
#: block it was computed; without a tolerance, the rows of a collapsed model would not be equal.
TIE = 1e-6

#: So many queries are compared with so many gallery rows at a time: their similarities stay in a
#: processor's own memory until they are counted.
HIGH, WIDE = 256, 4096

#: Where memory is short, fewer gallery rows, down to this; then fewer queries.
NARROW = 512

#: Room for so many numbers is needed for each similarity that is looked at.
_EACH = 6

#: So many similarities of a query wait until they are counted together.
WAITING = 32_768

#: For so few right answers, comparing with each takes less time than sorting.
FEW = 128

#: In so large a gallery each processor looks for queries of its own.
LARGE = 50_000


@dataclass(frozen=True)
class Size:
    """How much is looked at at a time.

    Attributes:
        high, wide: So many queries and gallery rows.
        waiting: So many similarities of each query are kept until they are counted.
    """

    high: int
    wide: int
    waiting: int

    @classmethod
    def within(cls, mib: float, queries: int, gallery: int, own: int) -> Size:
        """The largest of use, in this memory.

        Args:
            mib: The memory.
            queries: How many there are.
            gallery: How many rows.
            own: Gallery rows that are right for a query or hidden from it, at most.
        """
        # In numbers of 4 bytes. A similarity takes one, and up to 13 bytes more where it is near:
        # whether, where, a copy. Sorting a query's own rows takes eight each.
        room = max(_EACH, int(mib * 2**18))
        wide = min(WIDE, gallery, max(room // (_EACH * HIGH), NARROW), room // _EACH)
        high = max(1, min(HIGH, queries, room // (_EACH * wide + 8 * own)))
        left = room // high - (_EACH - 1) * wide - 8 * own
        return cls(high, wide, max(wide, min(WAITING, left)))


def ahead(
    queries: Float32[np.ndarray, "b d"],
    gallery: Float32[np.ndarray, "g d"],
    right: Sequence[Int64[np.ndarray, " _"]],
    hidden: Sequence[Int64[np.ndarray, " _"]],
    size: Size,
) -> list[Int64[np.ndarray, " _"]]:
    """How many wrong rows are ahead of each right one that is not hidden, the last one first.

    Args:
        queries: Unit rows.
        gallery: The same.
        right: Gallery rows that answer each query.
        hidden: Gallery rows that each query does not see.
        size: How much is looked at at a time; so many queries at most.
    """
    reach = [_reach(gallery, *of) for of in zip(queries, right, hidden, strict=True)]
    wrong = [np.zeros(len(of), dtype=np.int64) for of in reach]
    lowest = np.array([of[0] if len(of) else np.inf for of in reach], dtype=np.float32)
    # What is no wrong answer, by gallery row.
    column = np.concatenate([*right, *hidden], dtype=np.int32)
    own = np.arange(len(queries), dtype=np.int32)
    place = np.repeat([own, own], [len(x) for x in (*right, *hidden)])
    order = np.argsort(column, kind="stable")
    column, place = column[order], place[order]

    waiting = np.empty((len(queries), size.waiting), dtype=np.float32)
    many = [0] * len(queries)
    store = np.empty(len(queries) * size.wide, dtype=np.float32)
    for first in range(0, len(gallery), size.wide):
        rows = gallery[first : first + size.wide]
        tile = store[: len(queries) * len(rows)].reshape(len(queries), len(rows))
        np.matmul(queries, rows.T, out=tile)
        a, b = np.searchsorted(column, np.array((first, first + len(rows)), dtype=np.int32))
        tile[place[a:b], column[a:b] - first] = -np.inf
        # What is below the lowest right answer is of no interest. (`tile[mask]` takes several times
        # as long where about half of them stay, and `compress` keeps other threads waiting.)
        mask = tile >= lowest[:, None]
        some = np.flatnonzero(mask.any(axis=1))
        if 2 * len(some) < len(tile):
            tile, mask = tile[some], mask[some]
        else:  # no copy
            some = np.arange(len(tile))
        near = np.flatnonzero(mask)
        scores = tile.reshape(-1)[near]
        edges = np.searchsorted(near, np.arange(len(some) + 1) * len(rows))
        for query, (begin, end) in zip(some.tolist(), pairwise(edges.tolist()), strict=True):
            if many[query] + end - begin > size.waiting:
                wrong[query] += count(waiting[query, : many[query]], reach[query])
                many[query] = 0
            waiting[query, many[query] : many[query] + end - begin] = scores[begin:end]
            many[query] += end - begin
    for query, of in enumerate(reach):
        wrong[query] += count(waiting[query, : many[query]], of)
    return wrong


def _reach(
    gallery: Float32[np.ndarray, "g d"],
    query: Float32[np.ndarray, " d"],
    right: Int64[np.ndarray, " r"],
    hidden: Int64[np.ndarray, " h"],
) -> Float32[np.ndarray, " a"]:
    """The similarities from which on a wrong row is ahead of a right one, ascending."""
    wanted = right[~np.isin(right, hidden)] if hidden.size else right
    # Ties are ahead.
    reach: Float32[np.ndarray, " a"] = np.sort(gallery[wanted] @ query) - np.float32(TIE)
    return reach


def count(
    scores: Float32[np.ndarray, " s"], reach: Float32[np.ndarray, " a"]
) -> Int64[np.ndarray, " a"]:
    """How many scores reach each of some ascending values; the scores' order is lost."""
    if len(reach) > FEW:
        scores.sort()
        return len(scores) - np.searchsorted(scores, reach)
    found = np.empty(len(reach), dtype=np.int64)
    for at, low in enumerate(reach):
        near = scores >= low
        found[at] = np.count_nonzero(near)
        if 2 * found[at] < len(scores):
            scores = scores[np.flatnonzero(near)]
    return found


@contextmanager
def workers(gallery: int) -> Iterator[tuple[int, Callable[..., Iterator[Any]]]]:
    """How many work side by side on a gallery of so many rows, and their `map`."""
    if gallery < LARGE:
        yield 1, map
        return
    # Threads of a matrix product within each thread would wait for each other.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores()) as pool:
        try:
            yield cores(), pool.map
        finally:
            pool.shutdown(cancel_futures=True)
