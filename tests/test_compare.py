from __future__ import annotations

import numpy as np
import pytest
from geometry import CIRCLE, embeddings, on_circle, truth
from hypothesis import given
from hypothesis import strategies as st

from hetero.compare import agreement, flips
from hetero.errors import DataError, SpaceMismatchError
from hetero.retrieval import rank

GALLERY = on_circle(0, 30, 60, 90, 120, 150, 180)
NOBODY = ["nobody"] * len(GALLERY)


def test_a_turn_of_60_degrees_halves_the_cosine_and_its_row_is_named():
    ours = on_circle(0, 90, 180, ids=["a", "b", "c"])
    theirs = on_circle(0, 90, 240, ids=["a", "b", "c"])
    found = agreement(ours, theirs, GALLERY, truth(["x"] * 3, NOBODY), k=1)
    assert found.cosine == pytest.approx([1, 1, 0.5])
    assert found.worst_id == "c"


def test_neighbours_kept_are_counted_one_query_at_a_time():
    # From 40 degrees the next three are 30, 60, 0; from 70 they are 60, 90, 30 (50 ahead of 120).
    found = agreement(
        on_circle(40, 40, ids=["a", "b"]),
        on_circle(40, 70, ids=["a", "b"]),
        GALLERY,
        truth(["x"] * 2, NOBODY),
        k=3,
    )
    assert found.overlap == pytest.approx([1, 2 / 3])


def test_hidden_neighbours_do_not_count():
    # 30 is hidden: from 40 degrees the next two are 60 and 0, from 10 they are 0 and 60.
    groups = ["mine" if i == 1 else f"g{i}" for i in range(len(GALLERY))]
    answers = truth(["x"], NOBODY, ["mine"], groups)
    found = agreement(on_circle(40), on_circle(10), GALLERY, answers, k=2)
    assert found.overlap == pytest.approx([1.0])
    seen = agreement(on_circle(40), on_circle(10), GALLERY, truth(["x"], NOBODY), k=1)
    assert seen.overlap == pytest.approx([0.0])


def test_asking_for_more_neighbours_than_there_are_counts_those_there_are():
    found = agreement(on_circle(0), on_circle(179), GALLERY, truth(["x"], NOBODY), k=100)
    assert found.overlap == pytest.approx([1.0])


@given(st.permutations(range(5)))
def test_rows_are_matched_by_id_so_their_order_does_not_matter(order):
    rng = np.random.default_rng(0)
    ours = embeddings(rng.normal(size=(5, 4)))
    theirs = embeddings(ours.vectors + 0.3 * rng.normal(size=(5, 4)))
    gallery = embeddings(rng.normal(size=(20, 4)))
    answers = truth(["x"] * 5, ["y"] * 20)
    straight = agreement(ours, theirs, gallery, answers, k=3)
    shuffled = agreement(ours, theirs.take([str(i) for i in order]), gallery, answers, k=3)
    assert np.array_equal(straight.cosine, shuffled.cosine)
    assert np.array_equal(straight.overlap, shuffled.overlap)
    assert straight.worst_id == shuffled.worst_id


def test_a_missing_row_and_another_space_are_refused():
    with pytest.raises(DataError, match="first 'b'"):
        agreement(
            on_circle(0, 1, ids=["a", "b"]),
            on_circle(0, ids=["a"]),
            GALLERY,
            truth(["x"] * 2, NOBODY),
        )
    elsewhere = on_circle(0).pretend_in(type(CIRCLE)("other", "d" * 64, 2))
    with pytest.raises(SpaceMismatchError, match="other"):
        agreement(on_circle(0), elsewhere, GALLERY, truth(["x"], NOBODY))


def test_a_flip_is_a_first_answer_that_changed_sides():
    gallery = on_circle(0, 90)
    answers = truth(["a", "a", "a", "a"], ["a", "b"])
    before = rank(on_circle(10, 80, 10, 80), gallery, answers)  # right, wrong, right, wrong
    after = rank(on_circle(10, 10, 80, 80), gallery, answers)  # right, right, wrong, wrong
    found = flips(before, after)
    assert found.negative.tolist() == [False, False, True, False]
    assert found.positive.tolist() == [False, True, False, False]
    back = flips(after, before)
    assert np.array_equal(back.negative, found.positive)
    assert not flips(before, before).negative.any()


def test_flips_between_rankings_of_different_queries_are_refused():
    gallery = on_circle(0, 90)
    one = rank(on_circle(10, 80), gallery, truth(["a", "zebra"], ["a", "b"]))
    other = rank(on_circle(10, 80), gallery, truth(["zebra", "a"], ["a", "b"]))
    with pytest.raises(DataError, match="not about the same queries"):
        flips(one, other)
