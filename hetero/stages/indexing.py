"""Stages about the index of a gallery: build one, search it, and see what approximation costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from hetero import index, metrics
from hetero._files import make_folder, write_json
from hetero.errors import ConfigError, DataError
from hetero.index import Found, Generations, Index
from hetero.metrics import Score
from hetero.progress import Reporter
from hetero.render.recall import curves as curves_of
from hetero.retrieval import TIE
from hetero.space import Embeddings, Space
from hetero.stages.drawing import drawn

#: Efforts that are tried unless others are asked for.
EFFORTS = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Built:
    """What came of a build.

    Attributes:
        rows: In the index now.
        added: Of this build.
        space: Of the index.
        seconds: For putting in and saving.
        made: Whether there was none before.
    """

    rows: int
    added: int
    space: Space
    seconds: float
    made: bool


def build(
    spec: str,
    files: Sequence[Path],
    reporter: Reporter,
    *,
    settings: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Built:
    """An index of stored vectors: a new one, or more rows for one that is there.

    Args:
        spec: ``ENGINE:WHERE``.
        files: Of embeddings, all of one space.
        reporter: Shows progress.
        settings: Of the engine, for a new one.
        replace: Whether rows may stand in for those of the same ids.

    Raises:
        SpaceMismatchError: A file is of another space than the index.
        DataError: An id is there already.
        ConfigError: Settings were given for an index that is there.
    """
    first = Embeddings.load(files[0])
    begun = time.monotonic()
    try:
        made, fresh = index.load(spec), False
    except index.NoIndexError:
        made, fresh = index.create(spec, first.space, settings), True
    with made:
        if settings and not fresh:
            raise ConfigError(
                f"{made.where}: there already, with its settings; --set is for a new one"
            )
        added = 0
        with reporter.bar("index", len(files)) as bar:
            for at, file in enumerate(files):
                # A file at a time: what is learnt of rows is learnt of many, and on a server a
                # file is in the index or not.
                rows = Embeddings.load(file) if at else first
                (made.replace if replace else made.add)(rows)
                added += len(rows)
                bar.advance(note=file.name)
        made.save()
        return Built(len(made), added, made.space, time.monotonic() - begun, fresh)


def search(
    spec: str,
    queries: Embeddings,
    k: int,
    *,
    effort: int = 0,
    newer: str = "",
    holds: Sequence[Space] = (),
    new_holds: Sequence[Space] = (),
) -> Found:
    """The k best rows of each query.

    Args:
        spec: ``ENGINE:WHERE``.
        queries: Of a space that the index may be searched by.
        k: How many.
        effort: In the engine's unit; 0 for the index's own.
        newer: Another index, whose rows stand in for those of `spec`: see
            `hetero.index.Generations`.
        holds: Spaces that the first numbers of the queries are in.
        new_holds: Likewise, of the rows of `newer`.

    Raises:
        SpaceMismatchError: The queries may not search it.
        ConfigError: The engine has no effort to set.
    """
    with index.load(spec) as old:
        _turn(old, effort)
        if not newer:
            return old.search(queries, k)
        with index.load(newer) as new:
            _turn(new, effort)
            return Generations(old, new, new_holds).search(queries, k, holds)


def _turn(made: Index, effort: int) -> None:
    if effort and not made.effort_name:
        raise ConfigError(f"{made.where}: exact, with no effort to set")
    made.effort = effort or made.effort


# -- recall of an approximate index ---------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One query model at one effort.

    Attributes:
        effort: In the engine's unit.
        recall: Of the k best rows by exact search, the share that is found.
        difference: Recall less that of the first query model, paired by query; None for that one
            and where the queries are of other pictures.
        seconds: Of every repeat, for all queries together.
    """

    effort: int
    recall: Score
    difference: Score | None
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """What one query model finds in the index, by effort.

    Attributes:
        made_by: Who made the queries.
        queries: How many.
        exact_seconds: Exact search of all of them, each repeat, in turn with the others.
        points: By rising effort.
    """

    made_by: str
    queries: int
    exact_seconds: tuple[float, ...]
    points: tuple[Point, ...]

    def ms(self, seconds: Sequence[float]) -> float:
        """A repeat's median time for one query."""
        return 1000 * statistics.median(seconds) / self.queries


@dataclass(frozen=True)
class Recall:
    """An approximate index against an exact one.

    Attributes:
        spec, exact: Their names.
        rows: In both.
        space: Of both.
        k: Rows that are looked for.
        effort_name: The engine's unit.
        clustered: Whether intervals are resampled by class; if not, by query.
        curves: One for each query model.
    """

    spec: str
    exact: str
    rows: int
    space: Space
    k: int
    effort_name: str
    clustered: bool
    curves: tuple[Curve, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "index": self.spec,
            "exact": self.exact,
            "rows": self.rows,
            "space": self.space.id,
            "dim": self.space.dim,
            "k": self.k,
            "effort": self.effort_name,
            "resampled_by": "class" if self.clustered else "query",
            "models": [
                {
                    "made_by": c.made_by,
                    "queries": c.queries,
                    "exact_ms": c.ms(c.exact_seconds),
                    "exact_seconds": list(c.exact_seconds),
                    "points": [
                        {
                            "effort": p.effort,
                            "recall": p.recall.value,
                            "ci": p.recall.ci,
                            "difference": None if p.difference is None else p.difference.value,
                            "difference_ci": None if p.difference is None else p.difference.ci,
                            "ms": c.ms(p.seconds),
                            "seconds": list(p.seconds),
                        }
                        for p in c.points
                    ],
                }
                for c in self.curves
            ],
        }


def recall(
    spec: str,
    exact: str,
    queries: Sequence[Embeddings],
    output: Path,
    reporter: Reporter,
    *,
    k: int = 10,
    efforts: Sequence[int] = EFFORTS,
    repeats: int = 3,
    labels: Mapping[str, str] | None = None,
) -> Recall:
    """What an approximate index finds of what exact search finds, for each query model.

    Vectors of a small query model do not lie where the gallery's do, and a graph or cells made for
    those can serve them worse; so no recall stands without the model that asked.

    Args:
        spec: The approximate index.
        exact: One of the same rows that compares all of them.
        queries: One for each query model.
        output: Folder for recall.json and recall.svg.
        reporter: Shows progress.
        k: Rows to look for.
        efforts: To try; an engine that has none is taken once.
        repeats: Of every timing.
        labels: Query id to class, to resample by; without it, queries are resampled.

    Raises:
        SpaceMismatchError: Queries of another space, or two indexes of different spaces.
        DataError: The two indexes are not of the same rows, or a query has no class.
        ConfigError: `exact` is an approximate index, or an effort is below 1.
    """
    if min(efforts, default=0) < 1 or repeats < 1 or not queries:
        raise ConfigError("recall: efforts and repeats are at least 1, and somebody has to ask")
    with index.load(spec) as made, index.load(exact) as whole:
        if whole.effort_name:
            raise ConfigError(f"{whole.where}: approximate itself; build one with exact:FOLDER")
        whole.space.must_match(made.space, made.where)
        if len(made) != len(whole):
            raise DataError(
                f"{made.where} has {len(made)} rows and {whole.where} {len(whole)}; recall needs "
                "two indexes of the same gallery"
            )
        tried = _efforts(made, efforts, k)
        curves: list[Curve] = []
        first: dict[int, Float64[np.ndarray, " q"]] = {}
        with reporter.bar("search", len(queries) * repeats * (1 + len(tried))) as bar:
            for asked in queries:
                clusters = _clusters(asked, labels)
                found, seconds = _searched(
                    made, whole, asked, k, tried, repeats, lambda: bar.advance()
                )
                hits = {e: shares(found[e], found[-1], k) for e in tried}
                paired = bool(curves) and asked.ids == queries[0].ids
                curves.append(
                    Curve(
                        asked.made_by,
                        len(asked),
                        tuple(seconds[-1]),
                        tuple(
                            Point(
                                e,
                                metrics.mean(hits[e], clusters),
                                metrics.mean(hits[e] - first[e], clusters) if paired else None,
                                tuple(seconds[e]),
                            )
                            for e in tried
                        ),
                    )
                )
                first = first or hits
        done = Recall(
            spec, exact, len(whole), whole.space, k, made.effort_name, labels is not None,
            tuple(curves),
        )  # fmt: skip
    make_folder(output)
    write_json(output / "recall.json", done.to_json())
    drawn(output / "recall.svg", lambda: curves_of(done.to_json()), reporter)
    return done


def _efforts(made: Index, efforts: Sequence[int], k: int) -> tuple[int, ...]:
    if not made.effort_name:
        return (0,)
    # A graph is searched at least as wide as what is wanted of it.
    least = k if made.effort_name == "ef" else 1
    return tuple(sorted({max(least, e) for e in efforts}))


def _searched(
    made: Index,
    whole: Index,
    queries: Embeddings,
    k: int,
    efforts: Sequence[int],
    repeats: int,
    on_step: Callable[[], None],
) -> tuple[dict[int, Found], dict[int, list[float]]]:
    """Results and times by effort, -1 for exact search; all in turn, so that all see one noise."""
    found: dict[int, Found] = {}
    seconds: dict[int, list[float]] = {e: [] for e in (-1, *efforts)}
    for _ in range(repeats):
        for effort in seconds:
            asked, wide = (whole, 2 * k) if effort < 0 else (made, k)
            if effort > 0:
                made.effort = effort
            begun = time.monotonic()
            found[effort] = asked.search(queries, wide)
            seconds[effort].append(time.monotonic() - begun)
            on_step()
    return found, seconds


def shares(found: Found, exact: Found, k: int) -> Float64[np.ndarray, " q"]:
    """Of each query's k best rows, the share that was found.

    A row that is as near as the k-th, within rounding, is as good as that one: of two equal
    pictures either is right.

    Args:
        found: By the approximate index, up to k rows each.
        exact: By exact search, more than k rows each where there are more, so that ties are seen.
        k: How many are looked for.
    """
    out = np.zeros(len(found.ids))
    for row, (ours, best) in enumerate(zip(found.ids, exact.ids, strict=True)):
        wanted = min(k, len(best))
        if not wanted:
            raise DataError("recall: an empty index has none")
        least = exact.scores[row][wanted - 1] - TIE
        right = {i for i, s in zip(best, exact.scores[row], strict=False) if s >= least}
        out[row] = min(wanted, len(right.intersection(ours))) / wanted
    return out


def _clusters(queries: Embeddings, labels: Mapping[str, str] | None) -> Sequence[str]:
    if labels is None:
        return queries.ids
    if missing := [i for i in queries.ids if i not in labels]:
        raise DataError(
            f"{queries.made_by}: {len(missing)} of {len(queries)} queries are not pictures of "
            f"--data, first {missing[0]!r}; their classes are not known"
        )
    return [labels[i] for i in queries.ids]
