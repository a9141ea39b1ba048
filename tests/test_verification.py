from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import det_curve, roc_curve

from hetero import Embeddings, Space, Truth
from hetero.errors import DataError
from hetero.verification import at_threshold, mean_cosines, tpr_at_fpr

SPACE = Space("toy", "0" * 64, 8)


def collection(seed: int, count: int = 60) -> tuple[Embeddings, Embeddings, Truth]:
    rng = np.random.default_rng(seed)
    labels = [f"c{i % 10}" for i in range(count)]
    groups = [f"g{i % 7}" for i in range(count)]
    centres = rng.normal(size=(10, 8))
    made = []
    for side in ("q", "g"):
        raw = np.stack([centres[i % 10] for i in range(count)]) + rng.normal(size=(count, 8))
        ids = [f"{side}{i}" for i in range(count)]
        made.append(Embeddings.normalised(SPACE, ids, raw, side))
    return *made, Truth(tuple(labels), tuple(groups), tuple(labels), tuple(groups))


def pairs_by_loop(q: Embeddings, g: Embeddings, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    right, cosine = [], []
    for i in range(len(q)):
        for j in range(len(g)):
            if truth.query_groups[i] != truth.gallery_groups[j]:
                right.append(truth.query_labels[i] == truth.gallery_labels[j])
                cosine.append(q.vectors[i] @ g.vectors[j])
    return np.asarray(right), np.asarray(cosine)


@pytest.mark.parametrize("fpr", [0.0, 0.001, 0.01, 0.1, 0.37, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_tpr_at_fpr_is_the_best_point_of_the_roc_curve_that_keeps_to_it(
    seed: int, fpr: float
) -> None:
    q, g, truth = collection(seed)
    right, cosine = pairs_by_loop(q, g, truth)
    false, true, _ = roc_curve(right, cosine, drop_intermediate=False)
    found = tpr_at_fpr(q, g, truth, fpr)
    assert found.tpr.value == pytest.approx(true[false <= fpr + 1e-12].max())
    assert found.fpr <= fpr + 1e-12
    assert (found.same, found.other) == (right.sum(), (~right).sum())
    assert found.tpr.n == right.sum()


def test_fnmr_at_fmr_is_that_of_the_det_curve() -> None:
    q, g, truth = collection(3)
    right, cosine = pairs_by_loop(q, g, truth)
    fmr, fnmr, _ = det_curve(right, cosine)
    found = tpr_at_fpr(q, g, truth, 0.05)
    assert found.fnmr == pytest.approx(fnmr[fmr <= 0.05].min())


def test_everything_gets_through_where_every_pair_may() -> None:
    found = tpr_at_fpr(*collection(0), 1.0)
    assert (found.tpr.value, found.fpr) == (1.0, 1.0)


def test_equal_cosines_are_let_through_together_or_not_at_all() -> None:
    # A collapsed model: one cosine for all pairs, so nothing below an FPR of 1 passes anything.
    q, g, truth = collection(0)
    same = Embeddings.normalised(SPACE, q.ids, np.ones((len(q), 8)), "collapsed")
    found = tpr_at_fpr(same, Embeddings.normalised(SPACE, g.ids, np.ones((60, 8)), "c"), truth, 0.5)
    assert (found.tpr.value, found.fpr) == (0.0, 0.0)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.4, 0.99])
def test_rates_at_a_threshold_are_shares_of_pairs(threshold: float) -> None:
    q, g, truth = collection(2)
    right, cosine = pairs_by_loop(q, g, truth)
    found = at_threshold(q, g, truth, threshold)
    assert found.tpr.value == pytest.approx((cosine[right] >= threshold).mean())
    assert found.fpr == pytest.approx((cosine[~right] >= threshold).mean())


def test_mean_cosines_are_those_of_the_visible_pairs() -> None:
    q, g, truth = collection(4)
    right, cosine = pairs_by_loop(q, g, truth)
    assert mean_cosines(q, g, truth) == pytest.approx(
        (cosine[right].mean(), cosine[~right].mean()), abs=1e-6
    )


def test_the_interval_is_resampled_by_class() -> None:
    q, g, truth = collection(5)
    score = tpr_at_fpr(q, g, truth, 0.1).tpr
    assert score.ci is not None
    assert score.ci[0] < score.value < score.ci[1]
    # 3,000 independent pairs would give about +-2 points; ten classes cannot.
    assert score.ci[1] - score.ci[0] > 0.04


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import hetero.verification as module
    from hetero.retrieval import blocks

    q, g, truth = collection(6)
    whole = tpr_at_fpr(q, g, truth, 0.02)
    monkeypatch.setattr(module, "blocks", lambda q, g, t: blocks(q, g, t, block_mib=0.0005))
    assert tpr_at_fpr(q, g, truth, 0.02) == whole


def test_a_share_that_is_none_and_pairs_of_one_kind_are_refused() -> None:
    q, g, truth = collection(0)
    with pytest.raises(DataError, match=r"a share from 0 to 1, got 1\.5"):
        tpr_at_fpr(q, g, truth, 1.5)
    one = ("x",) * 60
    alone = Truth(one, truth.query_groups, one, truth.gallery_groups)
    with pytest.raises(DataError, match="0 different-class pairs"):
        tpr_at_fpr(q, g, alone, 0.1)
    with pytest.raises(DataError, match="0 different-class pairs"):
        mean_cosines(q, g, alone)
