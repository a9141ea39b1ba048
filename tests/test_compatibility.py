from __future__ import annotations

import numpy as np
import pytest

from hetero import Embeddings, Space, Truth, compatibility, rank
from hetero.errors import DataError
from hetero.retrieval import Ranks

#: 40 classes of two pictures; right answers are in the gallery, one each.
COUNT = 40
LABELS = tuple(f"c{i}" for i in range(COUNT))
TRUTH = Truth(LABELS, tuple(f"q{i}" for i in range(COUNT)), LABELS, LABELS)
SPACE = Space("toy", "0" * 64, COUNT)


def corner(right: int) -> Ranks:
    """A system that answers the first `right` queries and no other."""
    gallery = np.eye(COUNT)
    queries = np.roll(np.eye(COUNT), 1, axis=1)
    queries[:right] = gallery[:right]
    return rank(
        Embeddings.normalised(SPACE, [f"q{i}" for i in range(COUNT)], queries, "q"),
        Embeddings.normalised(SPACE, [f"g{i}" for i in range(COUNT)], gallery, "g"),
        TRUTH,
    )


def test_a_difference_is_that_of_the_two_shares() -> None:
    found = compatibility.difference(corner(30), corner(18))
    assert found.value == pytest.approx(12 / 40)
    assert found.ci is not None
    assert found.ci[0] < 0.3 < found.ci[1]


@pytest.mark.parametrize(
    ("one", "other", "met"), [(35, 10, True), (10, 35, False), (21, 20, None), (20, 20, None)]
)
def test_the_criterion_is_met_missed_or_open(one: int, other: int, met: bool | None) -> None:
    assert compatibility.criterion(corner(one), corner(other)).met is met


def test_update_gain_by_hand() -> None:
    # Before 10, crossed 16, free model 30 of 40: 6 of the 20 that could be won.
    gain = compatibility.update_gain(corner(16), corner(10), corner(30))
    assert gain == pytest.approx(6 / 20)
    assert compatibility.update_gain(corner(8), corner(10), corner(30)) == pytest.approx(-0.1)


def test_a_gain_over_nothing_is_none() -> None:
    assert compatibility.update_gain(corner(16), corner(20), corner(21)) is None
    # A new model that is worse than the old: losing half of the loss is no gain of a half.
    assert compatibility.update_gain(corner(20), corner(30), corner(10)) is None


def test_tax_and_gap_are_what_is_lost() -> None:
    assert compatibility.tax(corner(30), corner(26)).value == pytest.approx(4 / 40)
    assert compatibility.paragon_gap(corner(30), corner(28)).value == pytest.approx(2 / 40)


def test_another_metric_gives_another_answer() -> None:
    # The wrong answers here have their right one somewhere behind.
    recall = compatibility.difference(corner(30), corner(20))
    precision = compatibility.difference(corner(30), corner(20), "average_precision")
    assert 0 < precision.value < recall.value


def test_corners_about_other_queries_are_refused() -> None:
    part = Truth(LABELS[:20], TRUTH.query_groups[:20], LABELS, LABELS)
    eye = np.eye(COUNT)
    some = rank(
        Embeddings.normalised(SPACE, [f"q{i}" for i in range(20)], eye[:20], "q"),
        Embeddings.normalised(SPACE, [f"g{i}" for i in range(COUNT)], eye, "g"),
        part,
    )
    with pytest.raises(DataError, match="not about the same queries"):
        compatibility.difference(corner(3), some)


#: Version i's queries in version j's index. Version 2 fails in the index of 0: 0.45, not above 0.5.
MATRIX = np.asarray([[0.50, 0.0, 0.0], [0.55, 0.60, 0.0], [0.45, 0.65, 0.70]])


def test_average_compatibility_counts_the_pairs_below_the_diagonal() -> None:
    assert compatibility.average_compatibility(MATRIX) == pytest.approx(2 / 3)
    assert compatibility.failing(MATRIX, ("v1", "v2", "v3")) == (
        "v3 in the index of v1: 0.450, not above 0.500",
    )


def test_average_accuracy_is_the_mean_of_the_lower_triangle() -> None:
    expected = (0.5 + 0.55 + 0.6 + 0.45 + 0.65 + 0.7) / 6
    assert compatibility.average_accuracy(MATRIX) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_a_matrix_of_one_version_or_none_square_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="square matrix of two versions or more"):
        compatibility.average_compatibility(np.zeros(shape))
    with pytest.raises(DataError, match="square matrix of two versions or more"):
        compatibility.average_accuracy(np.zeros(shape))
