"""The version matrix on systems whose right answers are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from geometry import space
from test_compatibility import corner

from hetero import compatibility, versions
from hetero.errors import ConfigError, DataError, SpaceMismatchError
from hetero.metrics import per_query
from hetero.retrieval import Ranks
from hetero.space import Embeddings, Space

#: Right answers of 40 in (query, gallery): v2 in v1's index is better than v1 there, v3 is worse.
RIGHT = {
    ("q1", "g1"): 20, ("q1", "g2"): 20, ("q1", "g3"): 8,
    ("q2", "g1"): 30, ("q2", "g2"): 32, ("q2", "g3"): 32,
    ("q3", "g1"): 10, ("q3", "g2"): 38, ("q3", "g3"): 40,
}  # fmt: skip
HOMES = {"q1": "g1", "q2": "g2", "q3": "g3"}
GALLERIES = ("g1", "g2", "g3")


def all_ranks(right: dict[tuple[str, str], int] = RIGHT) -> dict[tuple[str, str], Ranks]:
    return {where: corner(count) for where, count in right.items()}


def outcomes(made: versions.Matrix, metric: str = "recall_at_1") -> dict[tuple[str, str], object]:
    return {(c.query, c.gallery): c.judged[metric].outcome for c in made.cells}


def test_each_cell_is_held_to_the_claim_of_its_side_of_the_diagonal() -> None:
    made = versions.matrix(all_ranks(), HOMES, GALLERIES)
    assert outcomes(made) == {
        ("q1", "g1"): None, ("q2", "g2"): None, ("q3", "g3"): None,
        ("q2", "g1"): "pass", ("q3", "g2"): "pass", ("q3", "g1"): "fail",
        # Old queries lose nothing in g2 and g3, but for q1 in g3: 8 of 40 instead of 20.
        ("q1", "g2"): "pass", ("q2", "g3"): "pass", ("q1", "g3"): "fail",
    }  # fmt: skip
    assert made.outcome == "fail"


def test_failing_cells_are_named_with_what_they_were_held_to() -> None:
    made = versions.matrix(all_ranks(), HOMES, GALLERIES, metrics=("recall_at_1",))
    assert len(made.failing) == 2
    new, old = sorted(made.failing, reverse=True)
    assert new.startswith("q3 in the index of g1: recall_at_1 25.0, -25.0 (")
    assert "against q1 in g1, wanted above it" in new
    assert old.startswith("q1 in the index of g3: recall_at_1 20.0, -30.0 (")
    assert "against q1 in g1, wanted at most 1 points below it" in old


def test_averages_are_those_of_the_matrix_of_means() -> None:
    made = versions.matrix(all_ranks(), HOMES, GALLERIES)
    assert made.average_compatibility is not None
    assert made.average_accuracy is not None
    # Below the diagonal: 30 > 20 and 38 > 32 hold, 10 > 20 does not.
    assert made.average_compatibility["recall_at_1"] == pytest.approx(2 / 3)
    assert made.average_accuracy["recall_at_1"] == pytest.approx(
        (20 + 30 + 32 + 10 + 38 + 40) / 6 / 40
    )
    means = [[per_query("recall", corner(RIGHT[q, g])).mean() for g in GALLERIES] for q in HOMES]
    assert compatibility.failing(np.asarray(means), GALLERIES) == (
        "g3 in the index of g1: 0.250, not above 0.500",
    )


def test_the_order_in_which_query_versions_are_named_does_not_matter() -> None:
    turned = dict(reversed(HOMES.items()))
    assert versions.matrix(all_ranks(), turned, GALLERIES) == versions.matrix(
        all_ranks(), HOMES, GALLERIES
    )


def test_a_difference_within_the_noise_is_undecided_and_said_so() -> None:
    right = {("q1", "g1"): 20, ("q1", "g2"): 20, ("q2", "g1"): 21, ("q2", "g2"): 30}
    made = versions.matrix(all_ranks(right), {"q1": "g1", "q2": "g2"}, ("g1", "g2"))
    assert outcomes(made)["q2", "g1"] == "inconclusive"
    assert made.outcome == "inconclusive"
    assert made.undecided[0].startswith("q2 in the index of g1: recall_at_1 52.5, +2.5 (")


def test_every_claim_that_holds_makes_a_pass() -> None:
    right = {("q1", "g1"): 20, ("q1", "g2"): 20, ("q2", "g1"): 30, ("q2", "g2"): 34}
    made = versions.matrix(all_ranks(right), {"q1": "g1", "q2": "g2"}, ("g1", "g2"))
    assert made.outcome == "pass"
    assert not made.failing
    assert not made.undecided


def test_the_margin_says_what_an_old_query_may_lose() -> None:
    right = {("q1", "g1"): 20, ("q1", "g2"): 8, ("q2", "g1"): 30, ("q2", "g2"): 34}
    homes, galleries = {"q1": "g1", "q2": "g2"}, ("g1", "g2")
    strict = versions.matrix(all_ranks(right), homes, galleries, ("recall_at_1",))
    assert outcomes(strict)["q1", "g2"] == "fail"
    mild = versions.matrix(all_ranks(right), homes, galleries, ("recall_at_1",), margin=0.6)
    assert outcomes(mild)["q1", "g2"] == "pass"


def test_a_field_without_new_query_models_is_judged_by_what_it_keeps() -> None:
    right = {("q1", "g1"): 20, ("q1", "g2"): 20}
    made = versions.matrix(all_ranks(right), {"q1": "g1"}, ("g1", "g2"))
    assert outcomes(made) == {("q1", "g1"): None, ("q1", "g2"): "pass"}
    assert made.average_compatibility is None


def test_a_matrix_in_which_nothing_is_judged_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to judge"):
        versions.matrix(all_ranks({("q1", "g1"): 20}), {"q1": "g1"}, ("g1",))
    # A newer query version without one at home in the older index has nothing to be held to.
    with pytest.raises(DataError, match="nothing to judge"):
        versions.matrix(all_ranks({("q2", "g1"): 20, ("q2", "g2"): 20}), {"q2": "g2"}, ("g1", "g2"))


def test_two_query_versions_of_one_home_and_strange_homes_are_refused() -> None:
    with pytest.raises(DataError, match="one matrix each"):
        versions.matrix(all_ranks(), {"q1": "g1", "q2": "g1"}, GALLERIES)
    with pytest.raises(DataError, match="of its own among g1, g2, g3"):
        versions.matrix(all_ranks(), {"q1": "g9"}, GALLERIES)
    with pytest.raises(DataError, match="no ranks of q1 in g4"):
        versions.matrix(all_ranks(), {"q1": "g1"}, ("g1", "g4"))


def test_an_unknown_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="recall_at_1, recall_at_5, map"):
        versions.metric_of("precision")


def test_a_matrix_as_json_has_every_number() -> None:
    value = versions.matrix(all_ranks(), HOMES, GALLERIES).to_json()
    assert value["outcome"] == "fail"
    cell = next(c for c in value["cells"] if (c["query"], c["gallery"]) == ("q3", "g1"))
    assert cell["kind"] == "newer query"
    assert cell["recall_at_1"]["difference"] == pytest.approx(-0.25)


# -- spaces of several lengths --------------------------------------------------------------------


def a_side(dim: int, digit: str, seed: int = 0) -> Embeddings:
    raw = np.random.default_rng(seed).normal(size=(4, dim))
    return Embeddings.normalised(space(dim, digit), tuple("abcd"), raw, f"dim {dim}")


def test_two_sides_meet_in_the_space_they_share() -> None:
    long, short = a_side(6, "b"), a_side(4, "a")
    for ours, theirs in (
        versions.meet(long, short, [short.space]),
        versions.meet(short, long, (), [short.space]),
    ):
        assert ours.space.same_as(short.space)
        assert theirs.space.same_as(short.space)
    found, _ = versions.meet(long, short, [short.space])
    first = long.vectors[:, :4].astype(np.float64)
    np.testing.assert_allclose(
        found.vectors, first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-6
    )


def test_two_longer_sides_meet_in_the_longest_space_that_both_hold() -> None:
    one, other = a_side(8, "c"), a_side(9, "d")
    held = [space(4, "a"), space(6, "b")]
    ours, theirs = versions.meet(one, other, held, held)
    assert ours.space.dim == theirs.space.dim == 6


def test_sides_of_one_space_are_left_as_they_are() -> None:
    one, other = a_side(5, "a"), a_side(5, "a", seed=1)
    assert versions.meet(one, other) == (one, other)


def test_sides_that_share_no_space_are_refused_with_a_way_out() -> None:
    with pytest.raises(SpaceMismatchError, match="hetero upgrade train"):
        versions.meet(a_side(5, "a"), a_side(5, "b"))


def test_no_vector_begins_with_a_longer_one() -> None:
    with pytest.raises(SpaceMismatchError, match="no first 5"):
        a_side(5, "a").shortened(space(5, "b"))


def test_several_sides_meet_in_the_longest_space_that_all_of_them_hold() -> None:
    long, middle, short = (space(d, str(d)) for d in (4, 3, 2))
    rng = np.random.default_rng(0)

    def rows(of: Space) -> Embeddings:
        return Embeddings.normalised(of, ("a", "b"), rng.normal(size=(2, of.dim)), str(of.dim))

    sides = (rows(long), (short, middle)), (rows(middle), (short,)), (rows(long), (middle, short))
    found = versions.common(*sides)
    assert [f.space.dim for f in found] == [3, 3, 3]
    for (before, _), after in zip(sides, found, strict=True):
        cut = before.vectors[:, :3]
        expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
        np.testing.assert_allclose(after.vectors, expected, atol=1e-6)
    # Two of them would meet in a longer one than the third is in.
    found = versions.common(*sides, (rows(short), ()))
    assert [f.space.dim for f in found] == [2, 2, 2, 2]
    other = rows(space(3, "e"))
    with pytest.raises(SpaceMismatchError, match=r"4 .* and 3 .* and 3 .* share no space"):
        versions.common(*sides[:2], (other, ()))
