"""How far one file's vectors agree from device to device, and with PyTorch.

Cells of the same format and precision ought to give the same vectors; where they do not, the device
matters, and this says how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float64, Int64

from hetero.cells import Pair
from hetero.check import Place, Reference
from hetero.errors import DataError
from hetero.retrieval import search
from hetero.space import Embeddings

#: 1 - cosine up to which two devices agree, by precision: rounding alone stays far below. Int8 with
#: one version of a runtime stays below 1e-4 as well.
SAME = {"fp32": 1e-6, "fp16": 1e-5}
SAME_OTHERWISE = 1e-4


@dataclass(frozen=True, eq=False)
class _Side:
    """A cell's queries: their vectors, scaled to length 1 in float64, and what each finds first."""

    device: str
    row: Mapping[str, int]
    vectors: Float64[np.ndarray, "q d"]
    first: Int64[np.ndarray, " q"]


def agreement(reference: Reference, cells: Sequence[tuple[Place, Embeddings]]) -> tuple[Pair, ...]:
    """Each pair of cells of one format and precision, PyTorch included, over the shared queries.

    Args:
        reference: PyTorch's vectors, and the gallery that is searched.
        cells: Which cell, and its vectors, of all queries or of some.
    """
    groups: dict[tuple[str, str], list[_Side]] = {}
    whole = _side(reference, "", reference.query)
    for place, vectors in cells:
        group = groups.setdefault((place.format, place.precision), [whole])
        group.append(_side(reference, place.device, vectors))
    return tuple(
        _pair(kind, a, b) for kind, sides in groups.items() for a, b in combinations(sides, 2)
    )


def _side(reference: Reference, device: str, vectors: Embeddings) -> _Side:
    task, there = reference.task, set(vectors.ids)
    if not there.issuperset(task.query_ids):
        task = reference.only(vectors.ids).task
    queries = vectors.take(task.query_ids)
    found, _ = search(queries, reference.gallery.take(task.gallery_ids), 1, truth=task.truth)
    rows = queries.vectors.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return _Side(device, {name: i for i, name in enumerate(task.query_ids)}, rows, found[:, 0])


def _pair(kind: tuple[str, str], a: _Side, b: _Side) -> Pair:
    shared = [name for name in a.row if name in b.row]
    if not shared:
        raise DataError(f"{a.device or 'PyTorch'} and {b.device} embedded no query in common")
    left, right = ([side.row[name] for name in shared] for side in (a, b))
    # From the distance: 1 - a·b itself would lose half of the digits.
    apart = np.square(a.vectors[left] - b.vectors[right]).sum(axis=1) / 2
    worst = int(apart.argmax())
    cosine = max(-1.0, 1.0 - float(apart[worst]))
    return Pair(
        *kind,
        a.device,
        b.device,
        cosine_worst=cosine,
        worst_id=shared[worst],
        top1_same=float((a.first[left] == b.first[right]).mean()),
        n=len(shared),
        apart=bool(a.device) and not math.isclose(cosine, 1.0, rel_tol=0, abs_tol=_same(kind[1])),
    )


def _same(precision: str) -> float:
    return SAME.get(precision, SAME_OTHERWISE)
