from __future__ import annotations

import numpy as np
import pytest
from geometry import CIRCLE, on_circle, space
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from hetero.errors import BundleError, ConfigError, DataError, SpaceMismatchError
from hetero.space import Embeddings, Space


def test_two_spaces_are_one_if_digest_and_dim_agree_whatever_their_names():
    assert space(4, "a", "paris").same_as(space(4, "a", "oxford"))
    assert not space(4, "a").same_as(space(5, "a"))
    assert not space(4, "a").same_as(space(4, "b"))


def test_meeting_another_space_names_both_and_says_who_came():
    with pytest.raises(SpaceMismatchError) as caught:
        space(4, "a", "ours").must_match(space(4, "b", "theirs"), "queries by the phone")
    assert str(caught.value).startswith("queries by the phone: ")
    assert "theirs@bbbbbbbbbbbb" in str(caught.value)
    assert "ours@aaaaaaaaaaaa" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "digest", "dim", "what"),
    [
        ("", "a" * 64, 4, "needs a name"),
        ("s", "A" * 64, 4, "64 hexadecimal digits"),
        ("s", "a" * 63, 4, "64 hexadecimal digits"),
        ("s", "a" * 64 + "\n", 4, "64 hexadecimal digits"),
        ("s", "a" * 64, 0, "at least 1"),
    ],
)
def test_a_space_that_cannot_be_is_refused(name, digest, dim, what):
    with pytest.raises(ConfigError, match=what):
        Space(name, digest, dim)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named_and_refused(bad):
    rows = np.ones((3, 2))
    rows[1, 0] = bad
    with pytest.raises(DataError, match=r"1 of 3 .* row 1 \(id 'dog'\) is not finite"):
        Embeddings.normalised(CIRCLE, ["cat", "dog", "eel"], rows, "the model")


def test_a_zero_row_is_named_and_refused():
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    with pytest.raises(DataError, match=r"2 of 3 .* row 1 \(id 'dog'\) is zero"):
        Embeddings.normalised(CIRCLE, ["cat", "dog", "eel"], rows, "the model")


def test_rows_of_the_wrong_length_are_refused_with_both_shapes():
    with pytest.raises(SpaceMismatchError, match=r"\(1, 3\).*\(1, 2\)"):
        Embeddings.normalised(CIRCLE, ["a"], np.ones((1, 3)), "the model")
    with pytest.raises(SpaceMismatchError, match=r"\(1, 3\).*\(1, 2\)"):
        Embeddings(CIRCLE, ("a",), np.ones((1, 3), np.float32), "the model")


def test_rows_that_are_not_unit_are_refused_where_nothing_normalises():
    with pytest.raises(DataError, match=r"row 1 \(id 'b', length 2\)"):
        Embeddings(CIRCLE, ("a", "b"), np.array([[1, 0], [0, 2]], np.float32), "the model")


def test_an_id_that_occurs_twice_is_named():
    with pytest.raises(DataError, match="'a' occurs more than once"):
        on_circle(0, 10, 20, ids=["a", "b", "a"])


def test_normalising_changes_neither_the_caller_s_array_nor_any_direction():
    rows = np.array([[3.0, 4.0], [0.0, -1e-9]])
    before = rows.copy()
    made = Embeddings.normalised(CIRCLE, ["a", "b"], rows, "the model")
    assert np.array_equal(rows, before)
    assert rows.flags.writeable
    assert made.vectors.tolist() == [[np.float32(0.6), np.float32(0.8)], [0.0, -1.0]]


def test_vectors_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        on_circle(0).vectors[0, 0] = 2


@given(
    arrays(np.float64, (5, 3), elements=st.floats(-1e3, 1e3)).filter(
        lambda a: (np.linalg.norm(a, axis=1) > 1e-6).all()
    ),
    st.floats(1e-3, 1e3),
)
def test_the_length_of_a_row_does_not_matter(rows, scale):
    ids = [str(i) for i in range(5)]
    once = Embeddings.normalised(space(3), ids, rows, "a").vectors
    scaled = Embeddings.normalised(space(3), ids, rows * scale, "a").vectors
    np.testing.assert_allclose(once, scaled, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(once, axis=1), 1, atol=1e-6)


@given(st.permutations([str(i) for i in range(6)]))
def test_taking_rows_goes_by_id_and_not_by_position(order):
    made = on_circle(0, 10, 20, 30, 40, 50)
    taken = made.take(order)
    assert taken.ids == tuple(order)
    for i in order:
        assert np.array_equal(taken.vectors[order.index(i)], made.vectors[int(i)])


def test_taking_an_id_that_is_not_there_names_it():
    with pytest.raises(DataError, match=r"1 of 2 ids have no embedding, first 'zebra'"):
        on_circle(0, 10).take(["0", "zebra"])


def test_pretending_is_recorded_and_never_changes_the_dimension():
    there = space(2, "d", "theirs")
    pretended = on_circle(0).pretend_in(there)
    assert pretended.space == there
    assert pretended.made_by == "by hand (pretending theirs@dddddddddddd)"
    with pytest.raises(SpaceMismatchError):
        on_circle(0).pretend_in(space(3))


@given(st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8")), unique=True))
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, ids):
    rows = np.random.default_rng(0).normal(size=(len(ids), 3))
    made = Embeddings.normalised(space(3), ids, rows, "the model")
    path = tmp_path_factory.mktemp("saved") / "e.safetensors"
    made.save(path)
    back = Embeddings.load(path)
    assert (back.space, back.ids, back.made_by) == (made.space, made.ids, made.made_by)
    assert np.array_equal(back.vectors, made.vectors)


def test_an_id_with_a_line_break_cannot_be_saved(tmp_path):
    with pytest.raises(DataError, match="line break"):
        on_circle(0, ids=["a\nb"]).save(tmp_path / "e.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_cut_anywhere_is_a_bundle_error(tmp_path):
    path = tmp_path / "e.safetensors"
    on_circle(0, 90).save(path)
    raw = path.read_bytes()
    for cut in range(len(raw)):
        path.write_bytes(raw[:cut])
        with pytest.raises(BundleError, match=r"e\.safetensors"):
            Embeddings.load(path)


GOOD = {
    "hetero.schema": "embeddings/1",
    "hetero.space_name": "s",
    "hetero.space_digest": "a" * 64,
    "hetero.dim": "2",
    "hetero.made_by": "m",
}


@pytest.mark.parametrize(
    ("meta", "vectors"),
    [
        ({}, np.eye(2, dtype=np.float32)),
        ({**GOOD, "hetero.schema": "embeddings/2"}, np.eye(2, dtype=np.float32)),
        ({k: v for k, v in GOOD.items() if k != "hetero.made_by"}, np.eye(2, dtype=np.float32)),
        ({**GOOD, "hetero.dim": "two"}, np.eye(2, dtype=np.float32)),
        ({**GOOD, "hetero.dim": "3"}, np.eye(2, dtype=np.float32)),
        ({**GOOD, "hetero.space_digest": "z"}, np.eye(2, dtype=np.float32)),
        (GOOD, np.eye(3, dtype=np.float32)),
        (GOOD, np.zeros((2, 2), np.float32)),
        (GOOD, np.ones(2, np.float32)),
        (GOOD, np.float32(1)),
    ],
    ids=lambda v: "",
)
def test_a_file_that_is_not_ours_is_a_bundle_error(tmp_path, meta, vectors):
    path = tmp_path / "e.safetensors"
    ids = np.frombuffer(b"a\nb", np.uint8)
    save_file({"vectors": np.asarray(vectors), "ids": ids}, path, metadata=meta)
    with pytest.raises(BundleError, match=r"e\.safetensors"):
        Embeddings.load(path)


def test_the_sound_twin_of_those_files_is_read(tmp_path):
    path = tmp_path / "e.safetensors"
    vectors = np.eye(2, dtype=np.float32)
    save_file({"vectors": vectors, "ids": np.frombuffer(b"a\nb", np.uint8)}, path, metadata=GOOD)
    assert Embeddings.load(path).ids == ("a", "b")


def test_a_missing_file_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match="nowhere"):
        Embeddings.load(tmp_path / "nowhere.safetensors")
