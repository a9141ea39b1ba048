"""Mixed galleries on a circle, areas by hand, and scores that are brought to one scale."""

from __future__ import annotations

import numpy as np
import pytest
from geometry import CIRCLE, on_circle, space, truth
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from hetero import refresh
from hetero.errors import DataError, SpaceMismatchError
from hetero.evaluate import Task
from hetero.refresh import Correction, Curve
from hetero.space import Embeddings

#: Two queries, a and b; each has one right answer in a gallery of three.
IDS = ("qa", "qb", "ga", "gb", "gc")


def a_task() -> Task:
    return Task(
        rows=tuple(range(5)),
        ids=IDS,
        query_ids=IDS[:2],
        gallery_ids=IDS[2:],
        truth=truth("ab", "abc"),
    )


def rows(*degrees: float, who: str = "by hand") -> Embeddings:
    return on_circle(*degrees, ids=IDS, made_by=who)


#: The new model puts a class where its query is; the old one has b and c the wrong way round.
NEW = rows(0, 90, 0, 90, 180, who="new")
OLD = rows(0, 90, 10, 180, 80, who="old")


def test_the_area_is_that_of_trapezoids_by_hand() -> None:
    curve = Curve((0.0, 0.25, 1.0), (0.2, 0.4, 0.8))
    # 0.25 wide at a mean of 0.3, and 0.75 wide at a mean of 0.6.
    assert curve.area == pytest.approx(0.25 * 0.3 + 0.75 * 0.6)
    half = Curve((0.5, 1.0), (0.2, 0.4))
    assert half.area == pytest.approx(0.3), "a mean score, whatever the width"


def test_dip_is_counted_from_the_start_and_sag_from_the_chord() -> None:
    curve = Curve((0.0, 0.5, 1.0), (0.3, 0.25, 0.9))
    assert curve.dip == pytest.approx(0.05)
    assert curve.sag == pytest.approx(0.6 - 0.25)
    rising = Curve((0.0, 0.5, 1.0), (0.3, 0.8, 0.9))
    assert (rising.dip, rising.sag) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("shares", "scores"),
    [((0.0,), (0.1,)), ((0.0, 0.0), (0.1, 0.2)), ((0.0, 1.0), (0.1,)), ((0.0, 1.5), (0.1, 0.2))],
)
def test_what_is_no_curve_is_refused(shares: tuple[float, ...], scores: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="shares ascend"):
        Curve(shares, scores)


def test_the_mean_of_curves_is_taken_at_each_share() -> None:
    one, two = Curve((0.0, 1.0), (0.2, 0.4)), Curve((0.0, 1.0), (0.4, 0.4))
    assert refresh.mean_curve([one, two]).scores == pytest.approx((0.3, 0.4))
    with pytest.raises(DataError, match="same shares"):
        refresh.mean_curve([one, Curve((0.0, 0.5), (0.2, 0.4))])
    with pytest.raises(DataError, match="one or more"):
        refresh.mean_curve([])


def test_a_mixed_gallery_takes_each_row_from_the_model_whose_turn_it_is() -> None:
    found = refresh.mixed(OLD, NEW, ["gb"])
    assert found.ids == OLD.ids
    np.testing.assert_allclose(found.vectors[3], [0, 1], atol=1e-6)
    np.testing.assert_allclose(found.vectors[2], OLD.vectors[2])
    np.testing.assert_allclose(found.vectors[4], OLD.vectors[4])
    assert "1 of 5 rows by new" in found.made_by


def test_a_mixed_gallery_needs_one_space_and_ids_that_are_there() -> None:
    other = Embeddings(space(2), NEW.ids, NEW.vectors, "elsewhere")
    with pytest.raises(SpaceMismatchError, match="re-embedded rows by elsewhere"):
        refresh.mixed(OLD, other, ["ga"])
    with pytest.raises(DataError, match="1 ids are not in the gallery"):
        refresh.mixed(OLD, NEW, ["ga", "gz"])


def test_a_refresh_curve_on_a_circle_is_that_by_hand() -> None:
    # Query b (90 degrees): c is old at 80, b is old at 180. Re-embedding c frees the first place
    # for nobody nearer than b (both 90 degrees away: a tie against the query); then b is right.
    made = refresh.curve(
        a_task(), NEW, OLD, NEW, ["gc", "gb", "ga"], shares=(0, 1 / 3, 2 / 3, 1), metric="recall"
    )
    assert made.scores == pytest.approx((0.5, 0.5, 1.0, 1.0))
    other = refresh.curve(
        a_task(), NEW, OLD, NEW, ["gb", "gc", "ga"], shares=(0, 1 / 3, 2 / 3, 1), metric="recall"
    )
    assert other.scores == pytest.approx((0.5, 1.0, 1.0, 1.0))
    assert other.area > made.area


def test_the_ends_of_a_curve_are_the_old_and_the_new_gallery_whatever_the_order() -> None:
    for seed in range(3):
        order = refresh.at_random(a_task().gallery_ids, seed)
        assert sorted(order) == sorted(a_task().gallery_ids)
        made = refresh.curve(a_task(), NEW, OLD, NEW, order, shares=(0, 1), metric="recall")
        assert made.scores == pytest.approx((0.5, 1.0))


def test_an_order_of_other_ids_is_refused() -> None:
    with pytest.raises(DataError, match="not the gallery's"):
        refresh.curve(a_task(), NEW, OLD, NEW, ["ga", "gb"])


def test_uncertainty_is_the_mean_move_of_the_nearest_training_pictures() -> None:
    # Pictures near 0 degrees did not move, those near 90 moved by 60 degrees: 1 - cos = 0.5.
    ids = tuple("abcd")
    before = on_circle(0, 5, 90, 95, ids=ids)
    after = on_circle(0, 5, 150, 35, ids=ids)
    gallery = on_circle(2, 92, 45.5, ids=("x", "y", "z"))
    found = refresh.uncertainty(gallery, before, after, neighbours=2)
    assert found == pytest.approx([0.0, 0.5, 0.25], abs=1e-6)
    assert refresh.most_first(gallery.ids, found) == ("y", "z", "x")


def test_equal_uncertainty_keeps_the_order_there_was() -> None:
    assert refresh.most_first(("c", "a", "b"), np.asarray([1.0, 2.0, 1.0])) == ("a", "c", "b")


# -- score scales ---------------------------------------------------------------------------------


def by_sklearn(task: Task, scores: np.ndarray) -> float:
    """mAP of a matrix of scores; nothing is hidden here."""
    right = [[q == g for g in task.truth.gallery_labels] for q in task.truth.query_labels]
    return float(
        np.mean([average_precision_score(r, s) for r, s in zip(right, scores, strict=True)])
    )


def random_task(
    seed: int, noise: float = 1.0, common: float = 1.5, classes: int = 6, each: int = 4
) -> tuple[Task, list[Embeddings]]:
    """Queries, old rows and new rows around class centres; old rows lean towards one direction."""
    rng = np.random.default_rng(seed)
    labels = [f"c{c}" for c in range(classes) for _ in range(2 * each)]
    ids = tuple(f"p{i}" for i in range(len(labels)))
    asked, there = ids[::2], ids[1::2]
    task = Task(
        tuple(range(len(ids))), ids, asked, there, truth(labels[::2], labels[1::2], asked, there)
    )
    centres = rng.normal(size=(classes, 5))
    at = np.repeat(np.arange(classes), 2 * each)

    def around(noise: float, other: float, who: str) -> Embeddings:
        raw = centres[at] + noise * rng.normal(size=(len(ids), 5)) + other * np.eye(5)[0]
        return Embeddings.normalised(space(5), ids, raw, who)

    return task, [around(0.3, 0, "query"), around(noise, common, "old"), around(0.3, 0, "new")]


@given(st.floats(0.2, 5), st.floats(-3, 3), st.integers(0, 5))
def test_corrected_vectors_rank_by_slope_times_cosine_plus_offset(
    slope: float, offset: float, seed: int
) -> None:
    task, (queries, before, after) = random_task(seed)
    order = refresh.at_random(task.gallery_ids, seed)
    older = set(order[10:])
    gallery = refresh.mixed(before.take(task.gallery_ids), after, order[:10])
    asked = queries.take(task.query_ids)
    ours, theirs = refresh.corrected(asked, gallery, older, Correction(slope, offset))
    plain = asked.vectors.astype(np.float64) @ gallery.vectors.T.astype(np.float64)
    wanted = np.where([i in older for i in gallery.ids], slope * plain + offset, plain)
    found = ours.vectors.astype(np.float64) @ theirs.vectors.T.astype(np.float64)
    most = max(1.0, float(np.hypot(slope, offset)))
    np.testing.assert_allclose(found * most * np.sqrt(2), wanted, atol=2e-5 * most)


def odds_by_sklearn(task: Task, queries: Embeddings, gallery: Embeddings) -> tuple[float, float]:
    """Logistic regression on every pair, each told twice with the weights of Platt's targets."""
    ours, theirs = queries.take(task.query_ids).vectors, gallery.take(task.gallery_ids).vectors
    x = (ours @ theirs.T).astype(np.float64).reshape(-1, 1)
    right = (np.asarray(task.truth.query_labels)[:, None] == task.truth.gallery_labels).ravel()
    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    model = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(
        np.concatenate([x, x]),
        np.repeat([1, 0], len(x)),
        np.concatenate([target, 1 - target]),
    )
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def test_a_fitted_correction_brings_equal_odds_of_being_right_to_equal_scores() -> None:
    task, (queries, before, after) = random_task(0)
    made = refresh.fit_correction(task, queries, before, after)
    (a, b), (c, d) = (odds_by_sklearn(task, queries, rows) for rows in (before, after))
    # A cosine s to an old row has log-odds a·s + b, and so has the new cosine that it is moved to.
    for s in (-0.5, 0.0, 0.8):
        assert c * (made.slope * s + made.offset) + d == pytest.approx(a * s + b, rel=1e-3)


def test_a_correction_undoes_a_change_of_scale_that_mixing_suffers_from() -> None:
    # Old rows have a common part: their order is nearly right, their scale is not.
    task, (queries, before, after) = random_task(3, noise=0.3, common=1.5)
    order = refresh.at_random(task.gallery_ids, 1)
    made = refresh.fit_correction(task, queries, before, after)
    shares = (0.0, 0.5, 1.0)
    plain = refresh.curve(task, queries, before, after, order, shares=shares)
    fixed = refresh.curve(task, queries, before, after, order, shares=shares, correction=made)
    assert fixed.scores[1] > plain.scores[1]
    # At both ends there is one kind of row, and a rising correction changes no order.
    assert fixed.scores[0] == pytest.approx(plain.scores[0])
    assert fixed.scores[2] == pytest.approx(plain.scores[2])
    half = refresh.mixed(before.take(task.gallery_ids), after, order[:12])
    cosine = queries.take(task.query_ids).vectors @ half.vectors.T
    assert plain.scores[1] == pytest.approx(by_sklearn(task, cosine), abs=1e-6)
    older = np.isin(half.ids, order[12:])
    moved = np.where(older, made.slope * cosine + made.offset, cosine)
    assert fixed.scores[1] == pytest.approx(by_sklearn(task, moved), abs=1e-6)


def test_rows_that_never_err_have_a_finite_correction() -> None:
    task, (queries, before, after) = random_task(1, noise=0.01, common=0.5, classes=3)
    made = refresh.fit_correction(task, queries, before, after)
    assert 0 < made.slope < 100


def test_rows_that_say_nothing_cannot_be_corrected() -> None:
    task = a_task()
    turned = rows(0, 90, 180, 270, 0)
    with pytest.raises(refresh.NoCorrectionError, match="re-embed instead"):
        refresh.fit_correction(task, NEW, turned, NEW)
    with pytest.raises(DataError, match="no rising correction"):
        Correction(0.0, 0.1)


def test_a_correction_of_another_space_is_refused() -> None:
    other = Embeddings(space(2), NEW.ids, NEW.vectors, "elsewhere")
    with pytest.raises(SpaceMismatchError):
        refresh.corrected(other, NEW, (), Correction(1.0, 0.0))
    assert CIRCLE.same_as(NEW.space)
