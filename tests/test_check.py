from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from geometry import CIRCLE, on_circle, space
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hetero import check
from hetero.check import PLOT_POINTS, Place, Reference
from hetero.compare import agreement, flips
from hetero.errors import DataError, SpaceMismatchError
from hetero.evaluate import Task
from hetero.report import Measurement
from hetero.retrieval import Truth
from hetero.space import Embeddings, Space

#: Four queries and four gallery pictures, two of each class; nothing is hidden from anybody.
QUERIES, GALLERY = ("qa0", "qa1", "qb0", "qb1"), ("ga0", "ga1", "gb0", "gb1")
IDS = (*QUERIES, *GALLERY)
LABELS = ("a", "a", "b", "b")
TASK = Task(
    rows=tuple(range(8)),
    ids=IDS,
    query_ids=QUERIES,
    gallery_ids=GALLERY,
    truth=Truth(LABELS, QUERIES, LABELS, GALLERY),
)

#: By the gallery model both classes lie together: a near 0 degrees, b near 90.
CLEAR = dict(zip(IDS, (1, 2, 91, 92, 0, 4, 90, 94), strict=True))

#: By the query model, so that each corner has an answer of its own:
#: its queries in the gallery model's gallery: qa1 at 80 finds gb0 at 90, the others are right;
#: its queries in its own gallery: qa0 at 5 finds gb0 at 6 and qb1 at 85 finds ga0 at 84;
#: the gallery model's queries in its gallery: only qb1 at 92 finds a b, gb1 at 98.5.
MIXED = dict(zip(IDS, (5, 80, 95, 85, 84, 200, 6, 98.5), strict=True))


def vectors(degrees: dict[str, float], turned: float = 0, by: str = "by hand") -> Embeddings:
    return on_circle(*(d + turned for d in degrees.values()), ids=list(degrees), made_by=by)


def elsewhere(some: Embeddings, name: str = "other", digit: str = "d") -> Embeddings:
    """The same rows in a space of their own."""
    return Embeddings(Space(name, digit * 64, 2), some.ids, some.vectors.copy(), name)


def a_reference(query: dict[str, float] | None = None) -> Reference:
    return Reference.make(TASK, vectors(CLEAR), vectors(query or MIXED))


def by_name(measured: list[Measurement]) -> dict[str, Measurement]:
    assert len({m.name for m in measured}) == len(measured), "each name once"
    return {m.name: m for m in measured}


def by_models(reference: Reference, **more: Any) -> dict[str, Measurement]:
    given = {"pixels": elsewhere(vectors(MIXED), "pixels", "e"), "control": None}
    return by_name(check.models(reference, **{**given, "compute_ratio": 8.0, **more}))


# -- models: the four corners ---------------------------------------------------------------------


def test_each_corner_searches_the_right_gallery_with_the_right_queries() -> None:
    found = by_models(a_reference())
    assert found["heterogeneous_recall_at_1"].value == 3 / 4
    assert found["homogeneous_query_recall_at_1"].value == 2 / 4
    assert found["reverse_recall_at_1"].value == 1 / 4
    assert found["paragon_recall_at_1"].value == 1
    assert found["paragon_map"].value == 1
    assert found["paragon_gap_recall_at_1"].value == 1 / 4
    # qa1 at 80 sees gb0 (10 off), gb1 (14), ga1 (76), ga0 (80): precision 1/3 and 2/4.
    assert found["heterogeneous_map"].value == pytest.approx((3 + (1 / 3 + 2 / 4) / 2) / 4)
    assert found["heterogeneous_recall_at_5"].value == 1


def test_the_baseline_without_a_model_and_chance_stand_beside_them() -> None:
    found = by_models(a_reference())
    assert found["pixels_recall_at_1"].value == 2 / 4
    # Two of four gallery pictures are right.
    assert found["chance_recall_at_1"].value == pytest.approx(2 / 4)
    assert found["compute_ratio"].value == 8.0


def test_without_a_control_nothing_is_said_about_one() -> None:
    names = set(by_models(a_reference()))
    assert not {n for n in names if n.startswith(("control", "independent"))}
    assert not {n for n in names if n.startswith("heterogeneous_gain")}


def test_a_control_is_perfect_in_its_own_space_and_lost_in_the_gallerys() -> None:
    # The same picture of the world, turned by half a circle: as good a model, in another space.
    control = elsewhere(vectors(CLEAR, turned=180), "control")
    found = by_models(a_reference(), control=control)
    assert found["independent_recall_at_1"].value == 1
    # a at 181 degrees is nearest gb1 at 94; b at 271 is nearest ga0 at 360.
    assert found["control_recall_at_1"].value == 0
    assert found["control_over_chance"].value == 0
    assert found["heterogeneous_gain_recall_at_1"].value == -1 / 4
    expected = found["heterogeneous_map"].value - 1
    assert found["heterogeneous_gain_map"].value == pytest.approx(expected)


def test_a_control_that_is_secretly_in_the_space_stands_out_over_chance() -> None:
    found = by_models(a_reference(), control=elsewhere(vectors(CLEAR)))
    assert found["control_recall_at_1"].value == 1
    assert found["control_over_chance"].value == pytest.approx(2)


def test_a_query_model_of_another_space_is_refused() -> None:
    with pytest.raises(SpaceMismatchError):
        Reference.make(TASK, vectors(CLEAR), elsewhere(vectors(MIXED)))


def test_a_control_of_another_dimension_is_refused() -> None:
    rows = np.eye(8, 3, dtype=np.float32) + 1
    control = Embeddings.normalised(space(3), IDS, rows, "control")
    with pytest.raises(SpaceMismatchError):
        by_models(a_reference(), control=control)


def test_models_are_measured_in_pytorch_and_baselines_nowhere_in_particular() -> None:
    found = by_models(a_reference(), control=elsewhere(vectors(CLEAR)))
    for name, m in found.items():
        corner = name.startswith(
            (
                *("heterogeneous_r", "heterogeneous_map", "homogeneous", "reverse"),
                *("tpr_", "fpr_", "score_scale", "hubness", "worst_"),
            )
        )
        assert (m.format, m.precision) == (("pytorch", "fp32") if corner else ("", "")), name
        assert m.device == ""
        assert m.outcome == "unjudged"


# -- file -----------------------------------------------------------------------------------------

PLACE = Place("local", "tflite", "int8")


def by_file(reference: Reference, candidate: Embeddings) -> dict[str, Measurement]:
    return by_name(check.file(reference, PLACE, candidate))


@pytest.mark.parametrize("reference", [MIXED, CLEAR])
def test_a_file_that_gives_the_same_vectors_loses_nothing(reference: dict[str, float]) -> None:
    held = a_reference(reference)
    found = by_file(held, vectors(reference))
    models = by_models(held)
    for name in ("recall_at_1", "recall_at_5", "map"):
        assert found[f"heterogeneous_{name}"].value == models[f"heterogeneous_{name}"].value
    for corner in ("homogeneous_query", "reverse"):
        for name in ("recall_at_1", "map"):
            assert found[f"{corner}_{name}"].value == models[f"{corner}_{name}"].value
    for name in ("recall_at_1_lost", "query_negative_flip_rate", "query_positive_flip_rate"):
        assert found[name].value == 0, name
    for name in ("cosine_worst", "cosine_p1", "cosine_median", "neighbour_overlap_at_10"):
        assert found[name].value == pytest.approx(1), name


def test_a_file_that_turns_every_vector_loses_everything() -> None:
    found = by_file(a_reference(CLEAR), vectors(CLEAR, turned=180))
    assert found["recall_at_1_lost"].value == 1
    assert found["query_negative_flip_rate"].value == 1
    assert found["query_positive_flip_rate"].value == 0
    assert found["heterogeneous_recall_at_1"].value == 0
    assert found["cosine_worst"].value == pytest.approx(-1)
    assert found["cosine_median"].value == pytest.approx(-1)


def test_one_damaged_query_shows_as_one_negative_flip_and_as_the_worst_cosine() -> None:
    damaged = {**CLEAR, "qa1": 62.0}
    found = by_file(a_reference(CLEAR), vectors(damaged))
    assert found["query_negative_flip_rate"].value == 1 / 4
    assert found["recall_at_1_lost"].value == 1 / 4
    assert found["cosine_worst"].value == pytest.approx(0.5)  # 60 degrees
    assert found["cosine_median"].value == pytest.approx(1)
    assert found["cosine_worst"].value < found["cosine_p1"].value < 1


def test_an_improvement_is_a_positive_flip_and_a_negative_loss() -> None:
    found = by_file(a_reference(MIXED), vectors({**MIXED, "qa1": 3.0}))
    assert found["query_positive_flip_rate"].value == 1 / 4
    assert found["query_negative_flip_rate"].value == 0
    assert found["recall_at_1_lost"].value == -1 / 4


def test_flips_that_cancel_in_recall_are_still_seen() -> None:
    # qa1 becomes right and qb0 wrong.
    found = by_file(a_reference(MIXED), vectors({**MIXED, "qa1": 3.0, "qb0": 40.0}))
    assert found["recall_at_1_lost"].value == 0
    assert found["query_negative_flip_rate"].value == 1 / 4
    assert found["query_positive_flip_rate"].value == 1 / 4


def test_vectors_given_to_the_wrong_queries_are_found_out() -> None:
    # A device that returns the right rows in the wrong order.
    swapped = dict(zip(IDS, (CLEAR[i] for i in (*reversed(QUERIES), *GALLERY)), strict=True))
    found = by_file(a_reference(CLEAR), vectors(swapped))
    assert found["query_negative_flip_rate"].value == 1
    assert found["cosine_median"].value == pytest.approx(0, abs=0.04)


def test_rows_are_matched_by_id_not_by_place() -> None:
    shuffled = {i: MIXED[i] for i in reversed(IDS)}
    assert by_file(a_reference(), vectors(shuffled)) == by_file(a_reference(), vectors(MIXED))


def test_queries_alone_are_enough_for_all_but_the_other_corners() -> None:
    whole = by_file(a_reference(), vectors(MIXED))
    alone = by_file(a_reference(), vectors({i: MIXED[i] for i in QUERIES}))
    missing = set(whole) - set(alone)
    assert missing == {
        f"{corner}_{name}"
        for corner in ("homogeneous_query", "reverse")
        for name in ("recall_at_1", "map")
    }
    assert alone == {name: m for name, m in whole.items() if name not in missing}


def test_a_missing_query_is_named() -> None:
    some = {i: d for i, d in CLEAR.items() if i != "qb0"}
    with pytest.raises(DataError, match="'qb0'"):
        by_file(a_reference(CLEAR), vectors(some))


def test_a_file_of_another_space_is_refused() -> None:
    with pytest.raises(SpaceMismatchError):
        by_file(a_reference(), elsewhere(vectors(MIXED)))


def test_every_measurement_of_a_file_says_which_file_and_how_many() -> None:
    for m in by_file(a_reference(), vectors(MIXED)).values():
        assert (m.device, m.format, m.precision) == ("local", "tflite", "int8")
        assert m.n == 4


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(0, 30))
def test_every_interval_contains_its_value(seed: int, damage: float) -> None:
    rng = np.random.default_rng(seed)
    queries = tuple(f"q{i}" for i in range(12))
    gallery = tuple(f"g{i}" for i in range(12))
    labels = tuple(f"c{i % 4}" for i in range(12))
    job = Task(
        tuple(range(24)),
        (*queries, *gallery),
        queries,
        gallery,
        Truth(labels, queries, labels, gallery),
    )
    centres = np.array([0, 90, 180, 270.0])[np.arange(24) % 4]
    theirs = on_circle(*(centres + rng.normal(0, 30, 24)), ids=job.ids)
    angles = centres + rng.normal(0, 30, 24)
    held = Reference.make(job, theirs, on_circle(*angles, ids=job.ids))
    moved = on_circle(*(angles + rng.normal(0, damage, 24)), ids=job.ids)
    measured = check.file(held, PLACE, moved)
    measured += check.models(held, pixels=moved, control=elsewhere(moved), compute_ratio=1.0)
    intervals = [m for m in measured if m.ci is not None]
    assert len(intervals) > 15
    for m in intervals:
        assert m.ci is not None
        assert m.ci[0] - 1e-9 <= m.value <= m.ci[1] + 1e-9, m.name
        assert np.isfinite(m.ci).all()


# -- only -----------------------------------------------------------------------------------------


def test_a_reference_of_some_queries_keeps_the_gallery_whole_and_their_ranks() -> None:
    whole = a_reference()
    some = whole.only(["qb1", "qa1"])
    assert some.task.query_ids == ("qa1", "qb1")
    assert some.task.gallery_ids == GALLERY
    assert some.task.truth.query_labels == ("a", "b")
    for at, query in ((0, 1), (1, 3)):
        assert some.ranks.of(at).tolist() == whole.ranks.of(query).tolist()
    assert some.ranks.visible.tolist() == [4, 4]


def test_a_file_may_be_held_to_some_queries_only() -> None:
    some = a_reference(CLEAR).only(["qa0", "qa1"])
    found = by_file(some, vectors({"qa0": 91.0, "qa1": 2.0}))
    assert found["query_negative_flip_rate"].value == 1 / 2
    assert found["recall_at_1_lost"].n == 2


def test_a_reference_of_no_query_is_refused() -> None:
    with pytest.raises(DataError):
        a_reference().only(["nobody"])


# -- agreement and flips --------------------------------------------------------------------------


def test_neighbours_kept_are_counted_per_query() -> None:
    # First three of qa0 at 0: ga0 0, ga1 4, gb0 90; moved to 92: gb0, gb1, ga1: two in common.
    reference, moved = vectors({"qa0": 0.0}), vectors({"qa0": 92.0})
    gallery = vectors({i: CLEAR[i] for i in GALLERY})
    truth = Truth(("a",), ("qa0",), LABELS, GALLERY)
    found = agreement(reference, moved, gallery, truth, k=3)
    assert found.overlap.tolist() == [2 / 3]
    assert found.cosine.tolist() == pytest.approx([np.cos(np.radians(92))])
    assert found.worst_id == "qa0"


def test_the_worst_picture_is_named() -> None:
    reference = vectors(CLEAR)
    moved = vectors({**CLEAR, "gb0": 10.0, "qa0": 40.0})
    gallery = vectors({i: CLEAR[i] for i in GALLERY})
    truth = Truth(LABELS * 2, IDS, LABELS, GALLERY)
    assert agreement(reference, moved, gallery, truth).worst_id == "gb0"


def test_hidden_gallery_pictures_count_as_neighbours_of_nobody() -> None:
    reference, moved = vectors({"qa0": 0.0}), vectors({"qa0": 92.0})
    gallery = vectors({i: CLEAR[i] for i in GALLERY})
    truth = Truth(("a",), ("same",), LABELS, ("same", "same", "g", "h"))
    # Two are left to be found, and both find both.
    assert agreement(reference, moved, gallery, truth, k=4).overlap.tolist() == [1.0]


def test_flips_of_different_queries_are_refused() -> None:
    held = a_reference()
    with pytest.raises(DataError, match="same queries"):
        flips(held.ranks, held.only(["qa0", "qb0"]).ranks)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_flips_are_the_difference_in_recall(angles: list[int]) -> None:
    held = a_reference(MIXED)
    moved = vectors({**MIXED, **{q: 60.0 * a for q, a in zip(QUERIES, angles, strict=True)}})
    found = by_file(held, moved)
    lost = found["query_negative_flip_rate"].value - found["query_positive_flip_rate"].value
    assert found["recall_at_1_lost"].value == pytest.approx(lost)


# -- what is shown to people ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, PLOT_POINTS])
def test_few_points_are_kept_as_they_are_in_ascending_order(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    assert check.points(values) == pytest.approx(sorted(values))


def test_many_points_become_their_quantiles_with_both_ends() -> None:
    values = np.random.default_rng(0).exponential(size=10_000)
    points = check.points(values)
    assert len(points) == PLOT_POINTS
    assert points == sorted(points)
    assert (points[0], points[-1]) == pytest.approx((values.min(), values.max()))
    assert points[PLOT_POINTS // 2] == pytest.approx(np.median(values), rel=0.02)


def a_picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


PICTURES = {name: a_picture(number) for number, name in enumerate(IDS)}


def pixels_of(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_data_uri_is_the_picture() -> None:
    assert np.array_equal(pixels_of(check.data_uri(PICTURES["qa0"])), PICTURES["qa0"])


def test_examples_are_the_negative_flips_and_then_what_moved_most() -> None:
    # qb0 is flipped though qa0 moved further; of the rest qa0 moved most.
    moved = vectors({**CLEAR, "qa0": -48.0, "qb0": 45.0, "qb1": 93.0})
    shown = check.examples(a_reference(CLEAR), PLACE, moved, PICTURES, count=3)
    assert [e["query"]["id"] for e in shown] == ["qb0", "qa0", "qb1"]
    first = shown[0]
    assert first["query"]["label"] == "b"
    assert np.array_equal(pixels_of(first["query"]["image"]), PICTURES["qb0"])
    assert (first["device"], first["format"], first["precision"]) == ("local", "tflite", "int8")
    assert [e["id"] for e in first["before"]] == ["gb0", "gb1", "ga1", "ga0"]
    assert [e["right"] for e in first["before"]] == [True, True, False, False]
    assert [e["id"] for e in first["after"]] == ["ga1", "ga0", "gb0", "gb1"]
    assert first["after"][0]["similarity"] == pytest.approx(np.cos(np.radians(41)), abs=1e-6)
    for found in (*first["before"], *first["after"]):
        assert np.array_equal(pixels_of(found["image"]), PICTURES[found["id"]])
        assert found["label"] == found["id"][1]


def test_examples_show_nothing_that_was_hidden_from_the_query() -> None:
    job = Task(
        TASK.rows, IDS, QUERIES, GALLERY, Truth(LABELS, QUERIES, LABELS, (*"xy", "qb0", "z"))
    )
    held = Reference.make(job, vectors(CLEAR), vectors(CLEAR))
    shown = check.examples(held, PLACE, vectors(CLEAR), PICTURES, count=4)
    (one,) = (e for e in shown if e["query"]["id"] == "qb0")
    assert "gb0" not in [e["id"] for e in (*one["before"], *one["after"])]


def test_there_are_never_more_examples_than_queries() -> None:
    assert len(check.examples(a_reference(), PLACE, vectors(MIXED), PICTURES, count=99)) == 4


def test_the_geometry_above_is_that_of_one_space() -> None:
    assert a_reference().gallery.space == CIRCLE


# -- evidence -------------------------------------------------------------------------------------


def test_paired_losses_and_their_evidence_say_what_the_measurement_says() -> None:
    reference = a_reference(CLEAR)
    candidate = vectors(MIXED)
    found = by_file(reference, candidate)
    ranks = TASK.rank(candidate, reference.gallery)
    losses = check.losses(reference.ranks, ranks)
    # By PyTorch all four are right; MIXED loses qa1, of class a with two queries.
    assert losses["recall_at_1_lost"].tolist() == [0, 1, 0, 0]
    assert losses["query_negative_flip_rate"].tolist() == [0, 1, 0, 0]
    for name, values in losses.items():
        evidence = found[name].evidence
        assert evidence is not None
        assert evidence.rows == ((0.0, 2, 1), (1.0, 2, 1))
        assert evidence.estimate == found[name].value == values.mean()


def test_what_is_no_paired_outcome_carries_no_evidence() -> None:
    found = by_file(a_reference(), vectors(MIXED))
    with_evidence = {name for name, m in found.items() if m.evidence is not None}
    assert with_evidence == {"recall_at_1_lost", "query_negative_flip_rate"}


def test_what_recall_does_not_show_stands_beside_it() -> None:
    from hetero.compare import hubness, score_scale
    from hetero.verification import tpr_at_fpr

    reference, measured = behaviour()
    task = reference.task
    gallery = reference.gallery.take(task.gallery_ids)
    query = reference.query.take(task.query_ids)
    scale = score_scale(query, reference.gallery.take(task.query_ids), gallery, task.truth)
    assert measured["tpr_at_fpr_1_percent"] == tpr_at_fpr(query, gallery, task.truth).tpr.value
    assert measured["score_scale_same_class_shift"] == scale.same - scale.gallery_same
    assert measured["score_scale_other_class_shift"] == scale.other - scale.gallery_other
    assert measured["fpr_at_gallery_threshold"] == scale.fpr
    assert measured["hubness_skewness"] == hubness(query, gallery, task.truth).skewness


def test_the_slice_served_worst_is_named_where_there_are_enough_queries() -> None:
    reference, measured = behaviour()
    recall = np.zeros(len(reference.task.query_ids))
    recall[reference.ranks.queries] = reference.ranks.best == 0
    # Every other query is of the slice "odd"; "few" has too few queries to be looked at.
    expected = min(recall[::2].mean(), recall[1::2].mean())
    assert measured["worst_side_recall_at_1"] == pytest.approx(expected)
    assert "worst_few_recall_at_1" not in measured


def behaviour() -> tuple[Reference, dict[str, float]]:
    """Noisy models of 20 classes with four queries each, and what is measured of them."""
    rng = np.random.default_rng(0)
    space = Space("toy", "0" * 64, 12)
    labels = [f"c{i // 8:02}" for i in range(160)]
    ids = tuple(f"i{i}" for i in range(160))
    centres = np.repeat(rng.normal(size=(20, 12)), 8, axis=0)
    made = [
        Embeddings.normalised(space, ids, centres + noise * rng.normal(size=(160, 12)), name)
        for name, noise in (("gallery", 0.6), ("query", 1.0))
    ]
    queries = [i for i in range(160) if i % 2]
    answers = [i for i in range(160) if not i % 2]
    truth = Truth(
        tuple(labels[i] for i in queries),
        tuple(ids[i] for i in queries),
        tuple(labels[i] for i in answers),
        tuple(ids[i] for i in answers),
    )
    task = Task(
        tuple(range(160)),
        ids,
        tuple(ids[i] for i in queries),
        tuple(ids[i] for i in answers),
        truth,
    )
    reference = Reference.make(task, *made)
    found = check.models(
        reference,
        pixels=made[0],
        control=None,
        compute_ratio=4.0,
        slices={
            "side": [("even", "odd")[i % 2] for i in range(80)],
            "few": ["most"] * 70 + ["few"] * 10,
        },
    )
    return reference, {m.name: m.value for m in found}
