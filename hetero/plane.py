"""Query and gallery vectors on a plane, for people to look at.

The plane is the one that keeps most of the variance of the gallery's vectors (principal components,
by a singular value decomposition). A plane shows little of a space of many dimensions, so it comes
with the share of the variance that it does show, and nothing is decided by it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from hetero import _schemas
from hetero._files import write_json
from hetero.check import Place, Reference
from hetero.errors import BundleError, DataError
from hetero.metrics import per_query
from hetero.retrieval import Ranks
from hetero.space import Embeddings

SCHEMA = "hetero.plane/1"
#: Beside `report.json`.
FILE = "plane.json"
#: More classes than this cannot be told apart in one picture.
CLASSES = 10
#: Of one class, at most this many pictures of the gallery, and as many queries.
EACH = 40


@dataclass(frozen=True)
class Spot:
    """A picture's vector on the plane.

    Attributes:
        id: Of the picture.
        label: Its class.
        x, y: Where, in the unit of the vectors.
    """

    id: str
    label: str
    x: float
    y: float


@dataclass(frozen=True)
class Asked:
    """A query on the plane, twice: by PyTorch's vector and by the file's.

    Attributes:
        before, after: Its two places.
        was_right, is_right: Whether the first answer from the gallery's index was right.
    """

    before: Spot
    after: Spot
    was_right: bool
    is_right: bool


@dataclass(frozen=True)
class Plane:
    """Some classes of the gallery, and their queries, on a plane.

    Attributes:
        device, format, precision: Of the file whose queries are shown.
        shares: Of the variance of the gallery vectors shown, along x and along y, each in 0..1.
        classes: Labels, in the order to number them.
        gallery: Pictures of the gallery, by the gallery model.
        queries: By the query model.
    """

    device: str
    format: str
    precision: str
    shares: tuple[float, float]
    classes: tuple[str, ...]
    gallery: tuple[Spot, ...]
    queries: tuple[Asked, ...]

    def __post_init__(self) -> None:
        if not all(0 <= x <= 1 + 1e-9 for x in self.shares) or sum(self.shares) > 1 + 1e-6:
            raise DataError(f"a plane's shares of variance are parts of one, got {self.shares}")
        spots = [*self.gallery, *(s for q in self.queries for s in (q.before, q.after))]
        if not spots or {s.label for s in spots} - set(self.classes):
            raise DataError(
                "a plane without pictures, or with pictures of classes it does not name"
            )
        if not all(math.isfinite(v) for s in spots for v in (s.x, s.y)):
            raise DataError("a place on a plane is not finite")

    def to_json(self) -> dict[str, Any]:
        """As in `plane.json`."""
        number = {label: at for at, label in enumerate(self.classes)}

        def row(s: Spot) -> list[Any]:
            return [s.id, number[s.label], s.x, s.y]

        return {
            "schema": SCHEMA,
            "device": self.device,
            "format": self.format,
            "precision": self.precision,
            "shares": list(self.shares),
            "classes": list(self.classes),
            "gallery": [row(s) for s in self.gallery],
            "queries": [
                [*row(q.before), *row(q.after)[2:], q.was_right, q.is_right] for q in self.queries
            ],
        }

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Plane:
        """What `save` wrote.

        Raises:
            BundleError: Torn, altered or from a newer version.
        """
        try:
            raw = json.loads(path.read_bytes())
            _schemas.check(path, raw["schema"], SCHEMA, again="check again")
            return cls._from_json(raw)
        except BundleError:
            raise
        except (*_schemas.UNREADABLE, DataError) as error:
            raise BundleError(f"{path}: cannot be read as a plane ({error!r})") from error

    @classmethod
    def _from_json(cls, raw: Mapping[str, Any]) -> Plane:
        labels = tuple(str(x) for x in raw["classes"])

        def spot(name: str, at: int, x: float, y: float) -> Spot:
            if at < 0:
                raise DataError(f"class number {at}")
            return Spot(str(name), labels[at], float(x), float(y))

        return cls(
            str(raw["device"]),
            str(raw["format"]),
            str(raw["precision"]),
            (float(raw["shares"][0]), float(raw["shares"][1])),
            labels,
            tuple(spot(*row) for row in raw["gallery"]),
            tuple(
                Asked(spot(name, at, *b), spot(name, at, *a), bool(was), bool(now))
                for name, at, *b_a, was, now in raw["queries"]
                for b, a in [(b_a[:2], b_a[2:])]
            ),
        )


def components(
    rows: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "2 d"], tuple[float, float]]:
    """The mean, the two directions of most variance, and the share of it along each.

    Directions point so that their largest number is positive: the same rows give the same picture.
    """
    centre = rows.mean(axis=0)
    _, strengths, directions = np.linalg.svd(rows - centre, full_matrices=False)
    axes = np.zeros((2, rows.shape[1]))
    axes[: len(directions[:2])] = directions[:2]
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.where(axes[np.arange(2), largest] < 0, -1.0, 1.0)[:, None]
    power = np.zeros(2)
    power[: len(strengths[:2])] = strengths[:2] ** 2
    total = float((strengths**2).sum())
    x, y = (power / total).tolist() if total > 0 else (0.0, 0.0)
    return centre, axes, (x, y)


def lay(
    reference: Reference, place: Place, candidate: Embeddings, ranks: Ranks | None = None
) -> Plane | None:
    """Classes that lost most by a file, and then those with most queries, on a plane.

    Args:
        reference: What PyTorch gave.
        place: Which file.
        candidate: The file's vectors of the queries.
        ranks: What they find in the gallery's index, where that is known already.

    Returns:
        None where fewer than two classes, or fewer than three pictures of the gallery, are there.
    """
    task = reference.task
    ranks = ranks or task.rank(candidate, reference.gallery)
    right = [
        dict(zip(r.queries.tolist(), (per_query("recall", r) > 0).tolist(), strict=True))
        for r in (reference.ranks, ranks)
    ]
    asked = [at for at in range(len(task.query_ids)) if at in right[0] and at in right[1]]
    labels = task.truth.query_labels
    lost = Counter(labels[at] for at in asked if right[0][at] and not right[1][at])
    there = Counter(task.truth.gallery_labels)
    many = Counter(labels[at] for at in asked)
    ranked = sorted((x for x in many if there[x]), key=lambda x: (-lost[x], -many[x], x))
    classes = tuple(ranked[:CLASSES])
    rows = _of(classes, list(range(len(task.gallery_ids))), task.truth.gallery_labels)
    if len(classes) < 2 or len(rows) < 3:
        return None
    # A query that lost its answer is not to fall to the limit on how many are shown.
    asked.sort(key=lambda at: (not (right[0][at] and not right[1][at]), at))
    shown = _of(classes, asked, labels)
    names = [task.gallery_ids[at] for at in rows]
    vectors = np.asarray(reference.gallery.take(names).vectors, dtype=np.float64)
    centre, axes, shares = components(vectors)

    def spots(ids: Sequence[str], kinds: Sequence[str], made: Embeddings) -> list[Spot]:
        at = (np.asarray(made.take(ids).vectors, dtype=np.float64) - centre) @ axes.T
        return [
            Spot(name, kind, float(f"{x:.5g}"), float(f"{y:.5g}"))
            for name, kind, (x, y) in zip(ids, kinds, at, strict=True)
        ]

    ids, kinds = [task.query_ids[at] for at in shown], [labels[at] for at in shown]
    pairs = zip(
        spots(ids, kinds, reference.query), spots(ids, kinds, candidate), shown, strict=True
    )
    return Plane(
        place.device,
        place.format,
        place.precision,
        shares,
        classes,
        tuple(spots(names, [task.truth.gallery_labels[at] for at in rows], reference.gallery)),
        tuple(Asked(b, a, right[0][at], right[1][at]) for b, a, at in pairs),
    )


def _of(classes: Sequence[str], rows: Sequence[int], labels: Sequence[str]) -> list[int]:
    """The first EACH rows of every class."""
    return [at for label in classes for at in [r for r in rows if labels[r] == label][:EACH]]
