"""The main question: do embeddings from this file still find the right pictures in the gallery?

Pure measuring: vectors in, measurements out. Nothing here knows a file format or a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, UInt8

from hetero.compare import agreement, flips, hubness, score_scale
from hetero.compatibility import difference, paragon_gap
from hetero.evaluate import Scores, Task, scores
from hetero.metrics import Score, mean, per_query
from hetero.report import Measurement
from hetero.retrieval import Ranks, Truth, pairwise_cosine, search
from hetero.slices import by_slice
from hetero.space import Embeddings
from hetero.verdict import paired
from hetero.verification import tpr_at_fpr

#: Queries a group needs to be looked at by itself.
SLICE_QUERIES = 30

#: Points of a distribution kept for a plot; the raw results stay on disk.
PLOT_POINTS = 400


@dataclass(frozen=True)
class Place:
    """Which file a measurement is about; all empty for a model as a whole."""

    device: str = ""
    format: str = ""
    precision: str = ""

    def measured(
        self, name: str, value: float, unit: str = "", n: int | None = None
    ) -> Measurement:
        """A measurement without an interval."""
        return Measurement(name, float(value), unit, self.device, self.format, self.precision, n=n)

    def scored(self, name: str, score: Score) -> Measurement:
        """A measurement of a mean over queries."""
        return replace(self.measured(name, score.value, n=score.n), ci=score.ci)


@dataclass(frozen=True, eq=False)
class Reference:
    """What every file is held to.

    Attributes:
        task: Queries, gallery and right answers.
        gallery: The gallery model's vectors of all pictures of the task.
        query: The query model's vectors of the same pictures, by PyTorch.
        ranks: Of `query` searching `gallery`.
    """

    task: Task
    gallery: Embeddings
    query: Embeddings
    ranks: Ranks

    @classmethod
    def make(cls, task: Task, gallery: Embeddings, query: Embeddings) -> Reference:
        """The reference, its ranks computed.

        Raises:
            SpaceMismatchError: The query model is not in the gallery's space.
        """
        return cls(task, gallery, query, task.rank(query, gallery))

    def only(self, ids: Sequence[str]) -> Reference:
        """The same with these queries alone; the gallery stays whole."""
        t = self.task
        wanted = set(ids)
        keep = [i for i, name in enumerate(t.query_ids) if name in wanted]
        truth = Truth(
            tuple(t.truth.query_labels[i] for i in keep),
            tuple(t.truth.query_groups[i] for i in keep),
            t.truth.gallery_labels,
            t.truth.gallery_groups,
        )
        some = replace(t, query_ids=tuple(t.query_ids[i] for i in keep), truth=truth)
        return Reference.make(some, self.gallery, self.query)


def _corner(place: Place, corner: str, found: Scores, *, five: bool = False) -> list[Measurement]:
    out = [
        place.scored(f"{corner}_recall_at_1", found.recall_at_1),
        place.scored(f"{corner}_map", found.map),
    ]
    return [*out, place.scored(f"{corner}_recall_at_5", found.recall_at_5)] if five else out


def models(
    reference: Reference,
    *,
    pixels: Embeddings,
    control: Embeddings | None,
    compute_ratio: float,
    slices: Mapping[str, Sequence[str]] | None = None,
) -> list[Measurement]:
    """What the models do in PyTorch, with the honest rows beside it.

    Args:
        reference: Task and vectors.
        pixels: The baseline without a model: see `hetero.evaluate.raw_pixels`.
        control: Vectors by an independently trained model of the query model's architecture, in
            its own space: the negative control against the gallery, and on both sides the row that
            a heterogeneous system has to beat.
        compute_ratio: The gallery model's multiply-accumulates over the query model's.
        slices: By what queries are told apart, to each one's slice: {"brightness": ("dark", …)}.
    """
    task, gallery, query = reference.task, reference.gallery, reference.query
    here, whole = Place(format="pytorch", precision="fp32"), Place()
    found = scores(reference.ranks)
    out = [
        *_corner(here, "heterogeneous", found, five=True),
        *_corner(here, "homogeneous_query", scores(task.rank(query, query))),
        *_corner(here, "reverse", scores(task.rank(gallery, query))),
    ]
    best = task.rank(gallery, gallery)
    out += _corner(whole, "paragon", scores(best))
    out.append(whole.scored("paragon_gap_recall_at_1", paragon_gap(best, reference.ranks)))
    gap = paragon_gap(best, reference.ranks, "average_precision")
    out.append(whole.scored("paragon_gap_map", gap))
    if control is not None:
        own = task.rank(control, control)
        out += _corner(whole, "independent", scores(own))
        gain = difference(reference.ranks, own)
        out.append(whole.scored("heterogeneous_gain_recall_at_1", gain))
        gain = difference(reference.ranks, own, "average_precision")
        out.append(whole.scored("heterogeneous_gain_map", gain))
        lost = scores(task.rank(control.pretend_in(gallery.space), gallery))
        out += _corner(whole, "control", lost)
    alone = task.rank(pixels, pixels)
    out.append(whole.scored("pixels_recall_at_1", scores(alone).recall_at_1))
    chance = mean(per_query("chance", reference.ranks), reference.ranks.labels)
    out.append(whole.measured("chance_recall_at_1", chance.value, n=chance.n))
    if control is not None:
        out.append(
            whole.measured("control_over_chance", lost.recall_at_1.value / chance.value, n=chance.n)
        )
    out.append(whole.measured("compute_ratio", compute_ratio))
    return out + _behaviour(reference, here) + _worst(reference, here, slices or {})


def _behaviour(reference: Reference, here: Place) -> list[Measurement]:
    """What recall does not show: verification, one score scale, hubs, and who is served worst."""
    task, ranks = reference.task, reference.ranks
    gallery = reference.gallery.take(task.gallery_ids)
    query, anchor = (side.take(task.query_ids) for side in (reference.query, reference.gallery))
    labels = ranks.labels
    out = [here.scored("heterogeneous_map_at_r", mean(per_query("map_at_r", ranks), labels))]
    if len(set(task.truth.query_labels)) < 2:
        return out  # With one class there is nothing to be told apart.
    verified = tpr_at_fpr(query, gallery, task.truth, 0.01).tpr
    out.append(here.scored("tpr_at_fpr_1_percent", verified))
    scale = score_scale(query, anchor, gallery, task.truth)
    out += [
        here.measured("score_scale_same_class_shift", scale.same - scale.gallery_same),
        here.measured("score_scale_other_class_shift", scale.other - scale.gallery_other),
        here.measured("fpr_at_gallery_threshold", scale.fpr),
    ]
    hubs = hubness(query, gallery, task.truth)
    out.append(here.measured("hubness_skewness", hubs.skewness))
    return out


def _worst(
    reference: Reference, here: Place, slices: Mapping[str, Sequence[str]]
) -> list[Measurement]:
    """Recall@1 of the slice served worst, where there are two slices with enough queries."""
    out, ranks = [], reference.ranks
    values = per_query("recall", ranks)
    for kind, names in slices.items():
        mine = [names[row] for row in ranks.queries]
        if sum(n >= SLICE_QUERIES for n in Counter(mine).values()) < 2:
            continue
        found = by_slice(values, ranks.labels, mine, SLICE_QUERIES)
        out.append(here.scored(f"worst_{kind}_recall_at_1", found.scores[found.worst]))
    return out


def losses(reference: Ranks, candidate: Ranks) -> dict[str, Float64[np.ndarray, " q"]]:
    """By measurement, what each query loses by the candidate, in -1..1.

    These are the measurements that can be judged by "noninferiority", and while queries come in.
    """
    return {
        "recall_at_1_lost": per_query("recall", reference) - per_query("recall", candidate),
        "query_negative_flip_rate": flips(reference, candidate).negative.astype(np.float64),
    }


def file(
    reference: Reference, place: Place, candidate: Embeddings, ranks: Ranks | None = None
) -> list[Measurement]:
    """What a file's vectors do in the gallery's index, held against PyTorch's query by query.

    Args:
        reference: What PyTorch gave; its queries are the ones measured.
        place: Which file, where.
        candidate: The file's vectors, at least of the queries; with the gallery's pictures too,
            the other corners are measured as well.
        ranks: Of the file's queries in the gallery, where that is known already.
    """
    task, gallery = reference.task, reference.gallery
    queries = reference.query.take(task.query_ids)
    ranks = ranks or task.rank(candidate, gallery)
    out = _corner(place, "heterogeneous", scores(ranks), five=True)
    if set(task.gallery_ids) <= set(candidate.ids):
        out += _corner(place, "homogeneous_query", scores(task.rank(candidate, candidate)))
        out += _corner(place, "reverse", scores(task.rank(gallery, candidate)))
    for name, values in losses(reference.ranks, ranks).items():
        found = place.scored(name, mean(values, ranks.labels))
        out.append(replace(found, evidence=paired(values, ranks.labels)))
    gained = flips(reference.ranks, ranks).positive.astype(np.float64)
    out.append(place.scored("query_positive_flip_rate", mean(gained, ranks.labels)))
    same = agreement(queries, candidate, gallery.take(task.gallery_ids), task.truth)
    n = len(same.cosine)
    out += [
        place.measured("cosine_worst", same.cosine.min(), n=n),
        place.measured("cosine_p1", np.percentile(same.cosine, 1), n=n),
        place.measured("cosine_median", np.median(same.cosine), n=n),
        place.scored("neighbour_overlap_at_10", mean(same.overlap, task.truth.query_labels)),
    ]
    return out


def points(values: Float[np.ndarray, " n"]) -> list[float]:
    """A distribution as at most PLOT_POINTS of its quantiles, ascending."""
    array = np.sort(values.astype(np.float64))
    if len(array) > PLOT_POINTS:
        array = np.asarray(np.quantile(array, np.linspace(0, 1, PLOT_POINTS)), dtype=np.float64)
    return [float(f"{v:.8g}") for v in array]


def examples(
    reference: Reference,
    place: Place,
    candidate: Embeddings,
    pictures: Mapping[str, UInt8[np.ndarray, "s s 3"]],
    count: int = 6,
) -> list[dict[str, Any]]:
    """The worst queries, for people to look at: what PyTorch found, what the file finds.

    Queries that were right and are wrong come first, then those whose vector moved most.

    Args:
        reference: As for `file`.
        place: As for `file`.
        candidate: As for `file`.
        pictures: Pixels by id.
        count: How many.
    """
    task, gallery = reference.task, reference.gallery.take(reference.task.gallery_ids)
    queries = reference.query.take(task.query_ids)
    moved = candidate.take(task.query_ids)
    ranks = task.rank(candidate, reference.gallery)
    negative = np.zeros(len(queries), dtype=bool)
    negative[ranks.queries] = flips(reference.ranks, ranks).negative
    cosine = pairwise_cosine(queries, moved)
    order = np.lexsort((cosine, ~negative))[:count]
    chosen = [task.query_ids[i] for i in order]
    truth = Truth(
        tuple(task.truth.query_labels[i] for i in order),
        tuple(task.truth.query_groups[i] for i in order),
        task.truth.gallery_labels,
        task.truth.gallery_groups,
    )
    before = search(queries.take(chosen), gallery, 5, truth=truth)
    after = search(moved.take(chosen), gallery, 5, truth=truth)

    def shown(at: int, found: tuple[Any, Any]) -> list[dict[str, Any]]:
        return [
            {
                "id": gallery.ids[row],
                "label": task.truth.gallery_labels[row],
                "image": data_uri(pictures[gallery.ids[row]]),
                "similarity": float(value),
                "right": task.truth.gallery_labels[row] == truth.query_labels[at],
            }
            for row, value in zip(found[0][at], found[1][at], strict=True)
            if row >= 0
        ]

    return [
        {
            "query": {
                "id": name,
                "label": truth.query_labels[at],
                "image": data_uri(pictures[name]),
            },
            "device": place.device,
            "format": place.format,
            "precision": place.precision,
            "before": shown(at, before),
            "after": shown(at, after),
        }
        for at, name in enumerate(chosen)
    ]


def data_uri(pixels: UInt8[np.ndarray, "s s 3"]) -> str:
    """The picture as an embedded PNG."""
    import base64
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
