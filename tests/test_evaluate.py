from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from geometry import on_circle
from PIL import Image
from sklearn.metrics import average_precision_score

from hetero.data import Images
from hetero.errors import DataError
from hetero.evaluate import raw_pixels, scores, task


def collection(rows: Sequence[tuple[str, str, str, str]]) -> Images:
    """A collection of (label, group, split, role), ids p0, p1, ..., whose pictures nobody reads."""

    def read(row: int) -> np.ndarray:
        raise AssertionError("a task needs no pixels")

    labels, groups, splits, roles = (tuple(column) for column in zip(*rows, strict=True))
    ids = tuple(f"p{i}" for i in range(len(rows)))
    return Images("drawn", ids, labels, groups, splits, roles, read)


def test_a_task_takes_the_queries_and_the_gallery_of_one_split() -> None:
    images = collection(
        [
            ("cat", "g0", "test", "query"),
            ("dog", "g1", "train", "both"),
            ("cat", "g2", "test", "gallery"),
            ("owl", "g3", "test", "both"),
            ("owl", "g4", "test", "both"),
            ("emu", "g5", "val", "both"),
        ]
    )
    found = task(images, "test")
    assert found.rows == (0, 2, 3, 4)
    assert found.ids == ("p0", "p2", "p3", "p4")
    assert found.query_ids == ("p0", "p3", "p4")
    assert found.gallery_ids == ("p2", "p3", "p4")
    assert found.truth.query_labels == ("cat", "owl", "owl")
    assert found.truth.query_groups == ("g0", "g3", "g4")
    assert found.truth.gallery_labels == ("cat", "owl", "owl")
    assert found.truth.gallery_groups == ("g2", "g3", "g4")


def test_a_task_ranks_by_id_whatever_the_order_of_the_vectors() -> None:
    images = collection([(label, f"g{i}", "test", "both") for i, label in enumerate("aabb")])
    found = task(images, "test")
    degrees = {"p0": 0.0, "p1": 50.0, "p2": 40.0, "p3": 110.0}
    straight = on_circle(*degrees.values(), ids=list(degrees))
    turned = on_circle(*reversed(degrees.values()), ids=list(reversed(degrees)))
    # Ahead of their answers: p0 has p2, p1 has p2, p2 has p1 and p0, p3 has p1.
    assert found.rank(straight, straight).best.tolist() == [1, 1, 2, 1]
    assert found.rank(turned, straight).best.tolist() == [1, 1, 2, 1]
    assert found.rank(straight, turned).best.tolist() == [1, 1, 2, 1]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([("a", "g", "train", "both")], "the test split has 0 queries and 0 gallery pictures"),
        ([("a", "g", "test", "gallery")], "has 0 queries and 1 gallery"),
        ([("a", "g", "test", "query")], "has 1 queries and 0 gallery"),
        (
            [("a", "g", "test", "both"), ("b", "h", "test", "both")],
            "no query of the test split has a right answer",
        ),
        (
            [("a", "g", "test", "query"), ("a", "g", "test", "gallery")],
            "two pictures of different groups",
        ),
    ],
)
def test_a_split_that_cannot_be_evaluated_is_refused(
    rows: list[tuple[str, str, str, str]], match: str
) -> None:
    with pytest.raises(DataError, match=match) as caught:
        task(collection(rows), "test")
    assert "\n" not in str(caught.value)


def test_one_answerable_query_is_enough() -> None:
    rows = [("a", "g", "test", "both"), ("a", "h", "test", "both"), ("b", "i", "test", "both")]
    found = task(collection(rows), "test")
    ranks = found.rank(on_circle(0, 1, 2, ids=found.ids), on_circle(0, 1, 2, ids=found.ids))
    assert ranks.unanswerable == 1


# -- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_scores_equal_a_sort_of_every_query_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 5))
    n = int(rng.integers(2 * classes, 16))
    labels = [f"c{i % classes}" for i in range(n)]
    angles = rng.uniform(0, 360, 2 * n)
    images = collection([(label, f"g{i}", "test", "both") for i, label in enumerate(labels)])
    job = task(images, "test")
    queries, gallery = on_circle(*angles[:n], ids=job.ids), on_circle(*angles[n:], ids=job.ids)
    similar = queries.vectors @ gallery.vectors.T
    first, fifth, precision = [], [], []
    for q in range(n):
        others = [g for g in range(n) if g != q]
        order = sorted(others, key=lambda g: -similar[q, g])
        right = [labels[g] == labels[q] for g in order]
        first.append(any(right[:1]))
        fifth.append(any(right[:5]))
        precision.append(average_precision_score(right, -np.arange(len(right))))
    found = scores(job.rank(queries, gallery))
    assert found.recall_at_1.value == pytest.approx(np.mean(first))
    assert found.recall_at_5.value == pytest.approx(np.mean(fifth))
    assert found.map.value == pytest.approx(np.mean(precision))
    for score in (found.recall_at_1, found.recall_at_5, found.map):
        assert score.n == n
        assert score.ci is not None
        assert score.ci[0] - 1e-9 <= score.value <= score.ci[1] + 1e-9


# -- the baseline without a model -----------------------------------------------------------------


def noise(count: int, size: int = 32, seed: int = 0, **more: Any) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8, **more)


def test_raw_pixels_are_centred_averages_of_the_picture() -> None:
    pictures = noise(5)
    found = raw_pixels([f"p{i}" for i in range(5)], pictures, side=16)
    # 32 to 16 by a box filter is the mean of 2x2, which Pillow rounds to bytes.
    halves = np.rint(pictures.reshape(5, 16, 2, 16, 2, 3).mean((2, 4), dtype=np.float64) + 1e-9)
    rows = halves.reshape(5, -1)
    rows = np.concatenate([rows - rows.mean(0), np.ones((5, 1))], axis=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert found.vectors.shape == (5, 16 * 16 * 3 + 1)
    np.testing.assert_allclose(found.vectors, rows, atol=1e-3)


def test_equal_pictures_are_nearest_and_negatives_farthest() -> None:
    picture = noise(1)[0]
    pictures = np.stack([picture, picture, 255 - picture, *noise(4, seed=1)])
    cosine = (v := raw_pixels(list("abcdefg"), pictures).vectors) @ v[0]
    assert cosine[1] == pytest.approx(1, abs=1e-5)
    assert int(np.argmin(cosine)) == 2


def test_a_picture_of_the_mean_colour_is_no_zero_row() -> None:
    pictures = np.full((3, 8, 8, 3), 77, np.uint8)
    found = raw_pixels(["a", "b", "c"], pictures)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1)


def test_raw_pixels_live_in_a_space_of_their_own() -> None:
    found = raw_pixels(["a", "b"], noise(2))
    assert found.made_by == "raw pixels"
    assert found.space.dim == 16 * 16 * 3 + 1
    assert not found.space.same_as(on_circle(0).space)


def test_smaller_pictures_are_enlarged_to_the_same_length() -> None:
    pictures = noise(2, size=8)
    found = raw_pixels(["a", "b"], pictures, side=16)
    whole = [
        np.asarray(Image.fromarray(p).resize((16, 16), Image.Resampling.BOX)) for p in pictures
    ]
    difference = (whole[0].astype(float) - whole[1]).ravel() / 2
    direction = found.vectors[0, :-1] / np.linalg.norm(found.vectors[0, :-1])
    np.testing.assert_allclose(direction, difference / np.linalg.norm(difference), atol=1e-4)
