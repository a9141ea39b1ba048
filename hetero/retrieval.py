"""Exact search, and what is enough to score it: the rank of each right answer.

Recall@k, mAP, CMC and their kin all follow from the ranks of the relevant gallery rows, so the
ranks are computed once, block by block in bounded memory, and every metric of `hetero.metrics` is a
function of them. Ties count against the query: a model that maps everything to one point scores
nothing, not everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from hetero._ahead import TIE as TIE
from hetero._ahead import Size, ahead, workers
from hetero.errors import DataError
from hetero.space import Embeddings

#: Memory for similarities at one time, in MiB, unless a caller says otherwise.
BLOCK_MIB = 64


@dataclass(frozen=True)
class Truth:
    """Which gallery rows answer which query.

    A gallery row is *relevant* if it has the query's label, and *hidden* from the query if it has
    the query's group (the same design family, the same camera, or the picture itself).

    Attributes:
        query_labels, query_groups: One each per query row.
        gallery_labels, gallery_groups: One each per gallery row.
    """

    query_labels: tuple[str, ...]
    query_groups: tuple[str, ...]
    gallery_labels: tuple[str, ...]
    gallery_groups: tuple[str, ...]

    def __post_init__(self) -> None:
        for side in ("query", "gallery"):
            labels, groups = getattr(self, f"{side}_labels"), getattr(self, f"{side}_groups")
            if len(labels) != len(groups) or not labels:
                raise DataError(
                    f"truth: {len(labels)} {side} labels and {len(groups)} groups; "
                    "both sides need at least one row"
                )


@dataclass(frozen=True, eq=False)
class Ranks:
    """For each answerable query, the ranks of its relevant gallery rows.

    Attributes:
        queries: Row numbers, in the query embeddings, of the queries that have an answer.
        labels: The class of each such query, for clustered statistics.
        ranks: Ranks of relevant rows, 0 is the top, ascending, all queries' one after another.
        starts: ranks[starts[i]:starts[i + 1]] belong to queries[i].
        visible: Number of gallery rows each query could have found.
        unanswerable: How many queries have no visible relevant row and are left out.
    """

    queries: Int64[np.ndarray, " q"]
    labels: tuple[str, ...]
    ranks: Int64[np.ndarray, " r"]
    starts: Int64[np.ndarray, " q1"]
    visible: Int64[np.ndarray, " q"]
    unanswerable: int

    @property
    def best(self) -> Int64[np.ndarray, " q"]:
        """Rank of the first right answer of each query."""
        best: Int64[np.ndarray, " q"] = self.ranks[self.starts[:-1]]
        return best

    def of(self, query: int) -> Int64[np.ndarray, " r"]:
        """The ranks of one answerable query, by its position in `queries`."""
        some: Int64[np.ndarray, " r"] = self.ranks[self.starts[query] : self.starts[query + 1]]
        return some


def _members(keys: Sequence[str], asked: Sequence[str]) -> dict[str, Int64[np.ndarray, " m"]]:
    """Each key that is asked for -> ascending row numbers, none where it is not there."""
    number = {key: n for n, key in enumerate(dict.fromkeys(asked))}
    code = np.fromiter((number.get(key, -1) for key in keys), np.int32, len(keys))
    order = np.argsort(code, kind="stable")
    edges = np.searchsorted(code[order], np.arange(len(number) + 1))
    return {key: order[edges[n] : edges[n + 1]] for key, n in number.items()}


def _check(queries: Embeddings, gallery: Embeddings, truth: Truth) -> None:
    gallery.space.must_match(queries.space, f"queries by {queries.made_by}")
    if (len(queries), len(gallery)) != (len(truth.query_labels), len(truth.gallery_labels)):
        raise DataError(
            f"truth is for {len(truth.query_labels)} queries and {len(truth.gallery_labels)} "
            f"gallery rows, but there are {len(queries)} and {len(gallery)}"
        )


def _blocks(
    queries: Embeddings, gallery: Embeddings, block_mib: float
) -> Iterator[tuple[int, Float32[np.ndarray, "b g"]]]:
    """First query row of each block, and the block's similarities; the next block overwrites it."""
    step = max(1, int(block_mib * 2**20 / (4 * max(1, len(gallery)))))
    store = np.empty((min(step, len(queries)), len(gallery)), dtype=np.float32)
    for begin in range(0, len(queries), step):
        rows = queries.vectors[begin : begin + step]
        yield begin, np.matmul(rows, gallery.vectors.T, out=store[: len(rows)])


def blocks(
    queries: Embeddings, gallery: Embeddings, truth: Truth, block_mib: float = BLOCK_MIB
) -> Iterator[tuple[int, Float32[np.ndarray, "b g"]]]:
    """First query row and similarities of block after block, in bounded memory.

    A block is overwritten by the next one.

    Args:
        queries: Rows as in `truth`.
        gallery: Rows as in `truth`, in the queries' space.
        truth: Checked to fit.
        block_mib: Bound on the similarities held at one time.

    Raises:
        SpaceMismatchError: The two are not in one space.
        DataError: `truth` is for other numbers of rows.
    """
    _check(queries, gallery, truth)
    yield from _blocks(queries, gallery, block_mib)


def rank(
    queries: Embeddings,
    gallery: Embeddings,
    truth: Truth,
    *,
    block_mib: float = BLOCK_MIB,
    on_rows: Callable[[int], None] | None = None,
) -> Ranks:
    """The ranks of all relevant gallery rows, exact.

    Args:
        queries: In the gallery's space.
        gallery: What is searched.
        truth: Labels and groups of both.
        block_mib: Bound on the similarities held at one time.
        on_rows: Called with the number of queries done, for a progress bar.

    Raises:
        SpaceMismatchError: The two are not in one space.
        DataError: No query has a visible relevant gallery row.
    """
    _check(queries, gallery, truth)
    by_label = _members(truth.gallery_labels, truth.query_labels)
    by_group = _members(truth.gallery_groups, truth.query_groups)
    kept: list[int] = []
    visible: list[int] = []
    # Room for all of them at once: joined from parts at the end, they would take twice that.
    room = np.empty(sum(len(by_label[x]) for x in truth.query_labels), dtype=np.int64)
    starts = [0]
    with workers(len(gallery)) as (count, side_by_side):
        own = sum(max(map(len, rows.values())) for rows in (by_label, by_group))
        size = Size.within(block_mib / count, len(queries), len(gallery), own)
        parts = [
            slice(begin, min(begin + size.high, len(queries)))
            for begin in range(0, len(queries), size.high)
        ]

        def look(part: slice) -> list[Int64[np.ndarray, " _"]]:
            right = [by_label[x] for x in truth.query_labels[part]]
            hidden = [by_group[x] for x in truth.query_groups[part]]
            return ahead(queries.vectors[part], gallery.vectors, right, hidden, size)

        for part, found in zip(parts, side_by_side(look, parts), strict=True):
            for row, wrong in enumerate(found, start=part.start):
                if wrong.size:
                    starts.append(starts[-1] + wrong.size)
                    # Wrong ones are ahead; before its own place come the right ones too.
                    room[starts[-2] : starts[-1]] = wrong[::-1] + np.arange(wrong.size)
                    kept.append(row)
                    visible.append(len(gallery) - len(by_group[truth.query_groups[row]]))
            if on_rows is not None:
                on_rows(len(found))
    if not kept:
        raise DataError(
            "no query has a right answer in the gallery: every class needs two pictures that may "
            "answer each other (different groups), one a query and one in the gallery"
        )
    return Ranks(
        queries=np.asarray(kept, dtype=np.int64),
        labels=tuple(truth.query_labels[row] for row in kept),
        ranks=room[: starts[-1]],
        starts=np.asarray(starts, dtype=np.int64),
        visible=np.asarray(visible, dtype=np.int64),
        unanswerable=len(queries) - len(kept),
    )


def search(
    queries: Embeddings,
    gallery: Embeddings,
    k: int,
    *,
    truth: Truth | None = None,
    block_mib: float = BLOCK_MIB,
) -> tuple[Int64[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """The k most similar gallery rows of each query, best first, exact.

    Args:
        queries: In the gallery's space.
        gallery: What is searched.
        k: How many; at most the number of gallery rows.
        truth: If given, rows of the query's group are hidden; a place that cannot be filled
            holds row -1 and similarity -inf.
        block_mib: Bound on the similarities held at one time.

    Returns:
        Gallery row numbers, and cosine similarities. Equal similarities go by row number.

    Raises:
        SpaceMismatchError: The two are not in one space.
        DataError: k is below 1, or the gallery is empty.
    """
    gallery.space.must_match(queries.space, f"queries by {queries.made_by}")
    if truth is not None:
        _check(queries, gallery, truth)
    if k < 1 or not len(gallery):
        raise DataError(
            f"search for the {k} best of {len(gallery)} gallery rows; both have to be at least 1"
        )
    k = min(k, len(gallery))
    by_group = _members(truth.gallery_groups, truth.query_groups) if truth else {}
    rows = np.empty((len(queries), k), dtype=np.int64)
    values = np.empty((len(queries), k), dtype=np.float32)
    for begin, block in _blocks(queries, gallery, block_mib):
        for row, scores in enumerate(block, start=begin):
            if truth is not None:
                scores[by_group[truth.query_groups[row]]] = -np.inf
            rows[row] = _top(scores, k)
            values[row] = scores[rows[row]]
    rows[np.isneginf(values)] = -1
    return rows, values


def _top(scores: Float32[np.ndarray, " g"], k: int) -> Int64[np.ndarray, " k"]:
    """Row numbers of the k best scores, best first, equal ones by row number."""
    # The k-th best of the maxima of many parts is a lower bound for the k-th best of all, and a
    # maximum costs a fraction of a partition.
    part = max(1, len(scores) // (8 * k))
    heads = np.maximum.reduceat(scores, np.arange(0, len(scores), part))
    bound = np.partition(heads, len(heads) - k)[len(heads) - k]
    near = np.flatnonzero(scores >= bound)
    best: Int64[np.ndarray, " k"] = near[np.lexsort((near, -scores[near]))[:k]]
    return best


def pairwise_cosine(a: Embeddings, b: Embeddings) -> Float64[np.ndarray, " n"]:
    """Cosine between the two vectors of each id, in the order of `a`, in -1..1.

    Raises:
        SpaceMismatchError: Two spaces.
        DataError: An id of `a` is missing in `b`.
    """
    a.space.must_match(b.space, f"vectors by {b.made_by}")
    other = b.take(a.ids)
    dots = np.einsum("nd,nd->n", a.vectors.astype(np.float64), other.vectors.astype(np.float64))
    cosine: Float64[np.ndarray, " n"] = np.clip(dots, -1.0, 1.0)
    return cosine
