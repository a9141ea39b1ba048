"""The version matrix: every query version searching every gallery version, each cell judged.

A product in the field has query models of several ages and, while it moves, indexes of several
ages. Each query version has a *home*, the gallery version it was trained into (a gallery model is
at home in its own index). A cell is held to one of two claims:

* a query version newer than the index beats the index's own query version there: the empirical
  compatibility criterion, for which an upgrade is shipped before anything is re-embedded;
* a query version older than the index loses, against its own index, less than a margin: what is in
  the field goes on working when the index moves on.

Terms as in `hetero.compatibility`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from hetero import compatibility
from hetero.compatibility import Criterion
from hetero.errors import ConfigError, DataError, SpaceMismatchError
from hetero.metrics import Score, mean, per_query
from hetero.retrieval import Ranks
from hetero.space import Embeddings, Space
from hetero.verdict import Decided

#: Name of a metric in reports -> its module and cut-off.
METRICS: Mapping[str, tuple[str, int]] = {
    "recall_at_1": ("recall", 1),
    "recall_at_5": ("recall", 5),
    "map": ("average_precision", 1),
}

#: Those that are judged unless asked otherwise.
JUDGED = ("recall_at_1", "map")

#: What an older query version may lose in a newer index, in 0..1.
MARGIN = 0.01

Kind = Literal["own", "newer query", "older query"]


def metric_of(name: str) -> tuple[str, int]:
    """Module and cut-off of a metric by its name in reports.

    Raises:
        ConfigError: No such metric.
    """
    if name not in METRICS:
        raise ConfigError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
    return METRICS[name]


def scored(ranks: Ranks, metric: str) -> Score:
    """A metric's mean over queries, by its name in reports, with its interval."""
    return mean(per_query(metric_of(metric)[0], ranks, metric_of(metric)[1]), ranks.labels)


@dataclass(frozen=True)
class Judged:
    """A cell's claim on one metric.

    Attributes:
        score: Of the cell.
        against: Name of the cell it is held to, "QUERY in GALLERY"; "" where there is none.
        difference: Cell less that one, paired by query; None where there is none.
        outcome: Of the claim; None where there is nothing to hold it to.
    """

    score: Score
    against: str = ""
    difference: Score | None = None
    outcome: Decided | None = None


@dataclass(frozen=True)
class Cell:
    """One query version in one gallery version.

    Attributes:
        query, gallery: Names of the versions.
        kind: Which claim it is held to; "own" is the reference of others.
        judged: By metric.
    """

    query: str
    gallery: str
    kind: Kind
    judged: Mapping[str, Judged]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.query} in the index of {self.gallery}"


@dataclass(frozen=True)
class Matrix:
    """All cells, in the order of queries and, within one, of galleries.

    Attributes:
        queries: Names of the query versions, oldest home first.
        galleries: Names of the gallery versions, oldest first.
        metrics: What was judged.
        cells: See above.
        average_compatibility: By metric: AC; None unless each gallery version has its query
            version, and there are two or more.
        average_accuracy: By metric, likewise.
        failing: Claims that do not hold, in words.
        undecided: Claims that these queries cannot decide, in words.
    """

    queries: tuple[str, ...]
    galleries: tuple[str, ...]
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]
    average_compatibility: Mapping[str, float] | None
    average_accuracy: Mapping[str, float] | None
    failing: tuple[str, ...]
    undecided: tuple[str, ...]

    @property
    def outcome(self) -> Decided:
        """Fail if one claim fails, pass if every claim holds."""
        return "fail" if self.failing else "inconclusive" if self.undecided else "pass"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "outcome": self.outcome,
            "queries": list(self.queries),
            "galleries": list(self.galleries),
            "average_compatibility": self.average_compatibility,
            "average_accuracy": self.average_accuracy,
            "failing": list(self.failing),
            "undecided": list(self.undecided),
            "cells": [
                {
                    "query": c.query,
                    "gallery": c.gallery,
                    "kind": c.kind,
                    **{
                        name: {
                            "value": j.score.value,
                            "ci": j.score.ci,
                            "against": j.against,
                            "difference": None if j.difference is None else j.difference.value,
                            "difference_ci": None if j.difference is None else j.difference.ci,
                            "outcome": j.outcome,
                        }
                        for name, j in c.judged.items()
                    },
                }
                for c in self.cells
            ],
        }


def meet(
    queries: Embeddings,
    gallery: Embeddings,
    query_holds: Sequence[Space] = (),
    gallery_holds: Sequence[Space] = (),
) -> tuple[Embeddings, Embeddings]:
    """Both sides in the longest space that both are in: their own, or one that a longer one holds.

    Args:
        queries: In any space.
        gallery: In any space.
        query_holds: Spaces that the queries' first numbers are in, `hetero.bundle.Bundle.nested`.
        gallery_holds: Likewise.

    Raises:
        SpaceMismatchError: There is none.
    """
    ours, theirs = common((queries, query_holds), (gallery, gallery_holds))
    return ours, theirs


def common(*sides: tuple[Embeddings, Sequence[Space]]) -> tuple[Embeddings, ...]:
    """All sides in the longest space that all of them are in, see `meet`.

    Args:
        sides: Vectors, and the spaces that their first numbers are in.

    Raises:
        SpaceMismatchError: There is none.
    """
    (first, holds), *others = sides
    there = [(rows.space, *held) for rows, held in others]
    for space in (first.space, *sorted(holds, key=lambda s: -s.dim)):
        if all(any(space.same_as(one) for one in spaces) for spaces in there):
            return tuple(_within(rows, space) for rows, _ in sides)
    who = " and ".join(f"{rows.made_by} ({rows.space.id})" for rows, _ in sides)
    raise SpaceMismatchError(
        f"{who} share no space; train the newer one with `hetero upgrade train`, or use "
        "`hetero upgrade map`"
    )


def _within(rows: Embeddings, space: Space) -> Embeddings:
    return rows if rows.space.same_as(space) else rows.shortened(space)


def matrix(
    ranks: Mapping[tuple[str, str], Ranks],
    homes: Mapping[str, str],
    galleries: Sequence[str],
    metrics: Sequence[str] = JUDGED,
    margin: float = MARGIN,
) -> Matrix:
    """The version matrix with every claim judged.

    Args:
        ranks: (query version, gallery version) -> what it finds there; all of the same queries.
        homes: Query version -> the gallery version it was trained into.
        galleries: Oldest first.
        metrics: Of `METRICS`.
        margin: What an older query version may lose in a newer index.

    Raises:
        DataError: A cell is missing, two query versions share a home, or no cell is judged.
    """
    age = {name: at for at, name in enumerate(galleries)}
    if not set(homes.values()) <= set(age) or len(set(homes.values())) < len(homes):
        raise DataError(
            f"version matrix: each query version has a gallery version of its own among "
            f"{', '.join(galleries)}; got {dict(homes)}. For several lines of query models, take "
            "one matrix each"
        )
    queries = tuple(sorted(homes, key=lambda q: age[homes[q]]))
    missing = [(q, g) for q in queries for g in galleries if (q, g) not in ranks]
    if missing:
        raise DataError(f"version matrix: no ranks of {missing[0][0]} in {missing[0][1]}")
    resident = {home: query for query, home in homes.items()}
    cells = tuple(
        _cell(ranks, q, g, age[homes[q]] - age[g], homes, resident, metrics, margin)
        for q in queries
        for g in galleries
    )
    claims = [(c, m, j) for c in cells for m, j in c.judged.items() if j.outcome is not None]
    if not claims:
        raise DataError(
            "version matrix: nothing to judge: give two gallery versions or more, and for each "
            "older index the query version that was trained into it"
        )
    compatible = accurate = None
    if len(queries) == len(galleries) >= 2:
        means = {m: _means(cells, queries, galleries, m) for m in metrics}
        compatible = {m: compatibility.average_compatibility(x) for m, x in means.items()}
        accurate = {m: compatibility.average_accuracy(x) for m, x in means.items()}
    return Matrix(
        queries=queries,
        galleries=tuple(galleries),
        metrics=tuple(metrics),
        cells=cells,
        average_compatibility=compatible,
        average_accuracy=accurate,
        failing=tuple(_words(c, m, j, margin) for c, m, j in claims if j.outcome == "fail"),
        undecided=tuple(
            _words(c, m, j, margin) for c, m, j in claims if j.outcome == "inconclusive"
        ),
    )


def _cell(
    ranks: Mapping[tuple[str, str], Ranks],
    query: str,
    gallery: str,
    newer: int,
    homes: Mapping[str, str],
    resident: Mapping[str, str],
    metrics: Sequence[str],
    margin: float,
) -> Cell:
    kind: Kind = "newer query" if newer > 0 else "older query" if newer < 0 else "own"
    reference = {
        "own": None,
        "newer query": (resident[gallery], gallery) if gallery in resident else None,
        "older query": (query, homes[query]),
    }[kind]
    judged = {}
    for name in metrics:
        score = scored(ranks[query, gallery], name)
        if reference is None:
            judged[name] = Judged(score)
            continue
        allowed = margin if kind == "older query" else 0.0
        found = compatibility.criterion(
            ranks[query, gallery], ranks[reference], *metric_of(name), margin=allowed
        )
        judged[name] = Judged(score, " in ".join(reference), found.difference, outcome_of(found))
    return Cell(query, gallery, kind, judged)


def outcome_of(found: Criterion) -> Decided:
    """A criterion as a verdict."""
    return "inconclusive" if found.met is None else "pass" if found.met else "fail"


def _means(
    cells: Sequence[Cell], queries: Sequence[str], galleries: Sequence[str], metric: str
) -> Float64[np.ndarray, "t u"]:
    values = [c.judged[metric].score.value for c in cells]
    return np.asarray(values, dtype=np.float64).reshape(len(queries), len(galleries))


def _words(cell: Cell, metric: str, judged: Judged, margin: float) -> str:
    assert judged.difference is not None
    low, high = judged.difference.ci or (-1.0, 1.0)
    wanted = "above" if cell.kind == "newer query" else f"at most {100 * margin:g} points below"
    return (
        f"{cell.name}: {metric} {100 * judged.score.value:.1f}, "
        f"{100 * judged.difference.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) against "
        f"{judged.against}, wanted {wanted} it"
    )
