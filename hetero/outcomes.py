"""What each query of a run got, file by file: kept beside a report for a later run to be held to.

A report holds sums over classes only; two sums do not say how many of the same queries changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from hetero.check import Place
from hetero.errors import DataError
from hetero.metrics import per_query
from hetero.retrieval import Ranks

SCHEMA = "hetero.outcomes/1"

#: Beside a report.json.
FILE = "outcomes.safetensors"

#: What is kept of each query, by the metric that gives it.
METRICS = ("recall", "average_precision")


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What each query got by each file.

    Attributes:
        ids: Of the queries that have an answer in the gallery.
        labels: The class of each.
        scores: By place and metric, one number in 0..1 for each query; NaN where it was not asked.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    scores: Mapping[tuple[Place, str], Float64[np.ndarray, " q"]]

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.ids) or len(self.ids) != len(self.labels):
            raise DataError(
                f"outcomes: {len(set(self.ids))} ids and {len(self.labels)} labels of "
                f"{len(self.ids)} queries"
            )
        for (place, metric), values in self.scores.items():
            sound = np.isnan(values) | ((values >= 0) & (values <= 1))
            if values.shape != (len(self.ids),) or not sound.all():
                raise DataError(f"outcomes: {metric} of {place} is not one number in 0..1 a query")

    @classmethod
    def of(
        cls, names: Sequence[str], whole: Ranks, ranks: Mapping[Place, tuple[Sequence[str], Ranks]]
    ) -> Outcomes:
        """The outcomes of rankings.

        Args:
            names: Ids of the task's queries.
            whole: A ranking of all of them, for those that have an answer.
            ranks: By place, the ids of the queries it was asked, and their ranking.
        """
        ids = tuple(names[row] for row in whole.queries)
        at = {name: row for row, name in enumerate(ids)}
        scores = {}
        for place, (asked, found) in ranks.items():
            rows = [at[asked[row]] for row in found.queries]
            for metric in METRICS:
                values = np.full(len(ids), np.nan)
                values[rows] = per_query(metric, found)
                scores[place, metric] = values
        return cls(ids, whole.labels, scores)

    def save(self, path: Path) -> None:
        """Write a safetensors file, atomically."""
        from safetensors.numpy import save

        from hetero._files import write_atomically

        keys = list(self.scores)
        about = {
            "ids": self.ids,
            "labels": self.labels,
            "scores": [[p.device, p.format, p.precision, metric] for p, metric in keys],
        }
        tensors = {
            name: np.frombuffer(json.dumps(value).encode(), np.uint8)
            for name, value in about.items()
        }
        tensors |= {f"score.{at}": self.scores[key] for at, key in enumerate(keys)}
        write_atomically(path, save(tensors, metadata={"hetero.schema": SCHEMA}))

    @classmethod
    def load(cls, path: Path) -> Outcomes:
        """What `save` wrote.

        Raises:
            BundleError: Missing, torn, or not one of ours.
        """
        from hetero._tensors import read_tensors

        def build(tensors: Mapping[str, np.ndarray[Any, Any]], _: Mapping[str, str]) -> Outcomes:
            ids, labels, keys = (
                json.loads(tensors[name].tobytes()) for name in ("ids", "labels", "scores")
            )
            scores = {
                (Place(*map(str, at)), str(metric)): tensors[f"score.{row}"].astype(np.float64)
                for row, (*at, metric) in enumerate(keys)
            }
            return cls(tuple(map(str, ids)), tuple(map(str, labels)), scores)

        return read_tensors(path, SCHEMA, "outcomes", "hetero check", build)
