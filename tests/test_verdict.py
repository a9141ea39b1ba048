from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta as beta_distribution
from scipy.stats import binomtest

from hetero.errors import DataError
from hetero.report import load_limits
from hetero.verdict import Evidence, bound, decide, paired


def whole(*rows: tuple[float, int, int]) -> Evidence:
    return Evidence("classes", rows, max(n for _, n, _ in rows))


# -- evidence -------------------------------------------------------------------------------------


def test_evidence_keeps_sums_and_sizes_of_classes_and_counts_those_alike():
    labels = ["a", "b", "a", "c", "c", "b", "d"]
    found = paired(np.asarray([1.0, 0, 0, 1, 0, -1, 0]), labels)
    # a: 1 of 2; b: -1 of 2; c: 1 of 2; d: 0 of 1
    assert set(found.rows) == {(1.0, 2, 2), (-1.0, 2, 1), (0.0, 1, 1)}
    assert (found.classes, found.queries, found.largest) == (4, 7, 2)
    assert found.estimate == pytest.approx(1 / 7)


def test_a_sequence_weighs_each_class_by_its_size():
    found = Evidence("sequence", ((1.0, 2, 4), (0.0, 1, 6)), 9)
    assert found.estimate == pytest.approx((0.5 * 4 + 0 * 6) / 10)
    assert (found.classes, found.queries) == (2, 3)


def test_evidence_comes_back_from_json_as_it_was():
    for found in (whole((1.0, 3, 2), (-0.5, 2, 1)), Evidence("sequence", ((1.0, 2, 4),), 9)):
        assert Evidence.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("design", "rows", "largest"),
    [
        ("classes", (), 1),
        ("classes", ((2.0, 1, 1),), 1),
        ("classes", ((math.nan, 1, 1),), 1),
        ("classes", ((0.0, 0, 1),), 1),
        ("classes", ((0.0, 2, 1),), 1),
        ("sequence", ((0.0, 3, 2),), 9),
        ("sequence", ((0.0, 1, 10),), 9),
    ],
)
def test_evidence_that_cannot_be_is_refused(design, rows, largest):
    with pytest.raises(DataError):
        Evidence(design, rows, largest)


def test_outcomes_and_labels_of_different_length_are_refused():
    with pytest.raises(DataError):
        paired(np.zeros(3), ["a"])


# -- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "classes"), [(0, 20), (0, 420), (1, 60), (3, 150), (30, 60)])
def test_for_classes_lost_whole_the_bounds_are_those_of_clopper_and_pearson(lost, classes):
    rows = [(5.0, 5, lost), (0.0, 5, classes - lost)]
    rows = [r for r in rows if r[2]]
    exact = binomtest(lost, classes).proportion_ci(0.9, "exact")
    assert bound(rows, 0.05, "high", draws=100_000) == pytest.approx(exact.high, rel=0.02)
    # Gains are possible too, so the lower bound lies below that of a share, which is at least 0.
    assert bound(rows, 0.05, "low", draws=20_000) < exact.low + 1e-9


def test_no_flip_in_few_classes_is_no_certainty():
    assert bound([(0.0, 8, 20)], 0.05, "high") == pytest.approx(1 - 0.05 ** (1 / 20), rel=0.05)
    assert decide(whole((0.0, 8, 20)), 0.02, 0.05, 0.05).outcome == "inconclusive"
    assert decide(whole((0.0, 8, 420)), 0.02, 0.05, 0.05).outcome == "pass"


def test_more_queries_of_the_same_classes_do_not_narrow_the_bound():
    few, many = (bound([(0.0, n, 60)], 0.05, "high") for n in (2, 2000))
    assert few == pytest.approx(many, abs=0.003)


def test_with_many_flips_the_bound_is_the_usual_one_of_classes():
    rng = np.random.default_rng(0)
    sizes = rng.integers(4, 9, 2000)
    sums = rng.binomial(sizes, 0.3) - rng.binomial(sizes, 0.2) * 1.0
    sums = np.clip(sums, -sizes, sizes)
    value = sums.sum() / sizes.sum()
    spread = math.sqrt(((sums - value * sizes) ** 2).sum()) / sizes.sum()
    rows = [(float(s), int(n), 1) for s, n in zip(sums, sizes, strict=True)]
    assert bound(rows, 0.05, "high") == pytest.approx(value + 1.645 * spread, abs=0.2 * spread)
    assert bound(rows, 0.05, "low") == pytest.approx(value - 1.645 * spread, abs=0.2 * spread)


def test_the_bound_equals_a_slow_one_that_draws_a_weight_for_each_class():
    classes = [(1.0, 4)] * 3 + [(-1.0, 5)] * 2 + [(0.0, 6)] * 15
    size = sum(n * n for _, n in classes) / sum(n for _, n in classes)
    rng = np.random.default_rng(3)
    means = []
    for _ in range(20_000):
        w = rng.dirichlet([1.0] * (len(classes) + 1))
        top = sum(a * s for a, (s, _) in zip(w, classes, strict=False)) + w[-1] * size
        means.append(
            top / (sum(a * n for a, (_, n) in zip(w, classes, strict=False)) + w[-1] * size)
        )
    rows = [(1.0, 4, 3), (-1.0, 5, 2), (0.0, 6, 15)]
    assert bound(rows, 0.05, "high", draws=50_000) == pytest.approx(
        np.quantile(means, 0.95), rel=0.03
    )


def test_low_and_high_are_mirrors():
    rows = [(2.0, 4, 3), (-1.0, 5, 2), (0.0, 6, 15)]
    turned = [(-s, n, k) for s, n, k in rows]
    assert bound(rows, 0.1, "low") == -bound(turned, 0.1, "high")


def test_equal_evidence_gives_equal_bounds_whatever_the_memory(monkeypatch):
    rows = [(2.0, 4, 3), (0.0, 6, 15)]
    first = bound(rows, 0.05, "high")
    assert bound(rows, 0.05, "high") == first
    monkeypatch.setattr("hetero.verdict._BLOCK", 1000)
    assert bound(rows, 0.05, "high") == pytest.approx(first, rel=0.02)


# -- the decision ---------------------------------------------------------------------------------


def test_pass_is_below_the_margin_fail_above_it_and_the_rest_is_neither():
    clean, bad = whole((0.0, 8, 400)), whole((8.0, 8, 100), (0.0, 8, 300))
    assert decide(clean, 0.02, 0.05, 0.05).outcome == "pass"
    assert decide(bad, 0.02, 0.05, 0.05).outcome == "fail"
    near = decide(whole((1.0, 8, 50), (0.0, 8, 350)), 0.02, 0.05, 0.05)
    assert near.outcome == "inconclusive"
    assert near.low < 0.02 < near.high


def test_a_smaller_alpha_asks_for_more_and_a_smaller_beta_fails_less():
    rows = whole((0.0, 8, 160))
    assert decide(rows, 0.02, 0.05, 0.05).outcome == "pass"
    assert decide(rows, 0.02, 0.01, 0.05).outcome == "inconclusive"
    bad = whole((8.0, 8, 8), (0.0, 8, 150))
    assert decide(bad, 0.02, 0.05, 0.2).outcome == "fail"
    assert decide(bad, 0.02, 0.05, 0.001).outcome == "inconclusive"


def test_what_a_sequence_spent_is_not_there_any_more():
    rows = ((0.0, 8, 160),)
    assert decide(Evidence("classes", rows, 8), 0.02, 0.05, 0.05).outcome == "pass"
    assert decide(Evidence("after_sequence", rows, 8), 0.02, 0.05, 0.05).outcome == "inconclusive"


def test_the_number_of_further_classes_is_enough_and_not_far_too_many():
    found = decide(whole((0.0, 8, 60)), 0.02, 0.05, 0.05)
    assert found.more_classes is not None
    # Without a flip it is known: 1 - alpha ** (1 / C) < margin.
    needed = math.log(0.05) / math.log(1 - 0.02)
    assert needed <= 60 + found.more_classes <= 1.1 * needed
    assert found.more_queries == pytest.approx(8 * found.more_classes, abs=8)
    more = whole((0.0, 8, 60 + found.more_classes + 2))
    assert decide(more, 0.02, 0.05, 0.05).outcome == "pass"


def test_more_of_what_is_too_bad_would_fail_it():
    found = decide(whole((8.0, 8, 3), (0.0, 8, 57)), 0.02, 0.05, 0.05)
    assert found.outcome == "inconclusive"
    factor = 1 + found.more_classes / 60
    more = whole((8.0, 8, math.ceil(3 * factor) + 1), (0.0, 8, math.ceil(57 * factor)))
    assert decide(more, 0.02, 0.05, 0.05).outcome == "fail"


def test_an_estimate_at_the_margin_can_never_be_decided():
    found = decide(whole((1.0, 10, 100), (0.0, 10, 400)), 0.02, 0.05, 0.05)
    assert found.outcome == "inconclusive"
    assert found.more_queries is None
    assert found.more_classes is None


@pytest.mark.parametrize("classes", [20, 150])
@pytest.mark.parametrize("alike", [0.05, 0.5])
def test_files_that_lose_the_margin_pass_and_fail_as_rarely_as_declared(classes, alike):
    margin, trials = (0.2, 300) if classes == 20 else (0.05, 300)
    rng = np.random.default_rng(classes)
    total = 1 / alike - 1
    passed = failed = 0
    for trial in range(trials):
        sizes = rng.integers(3, 9, classes)
        chance = rng.beta(margin * total, (1 - margin) * total, classes)
        sums = rng.binomial(sizes, chance).astype(float)
        rows = [(float(s), int(n), 1) for s, n in zip(sums, sizes, strict=True)]
        passed += bound(rows, 0.05, "high", draws=1000, seed=trial) < margin
        failed += bound(rows, 0.05, "low", draws=1000, seed=trial) > margin
    # 0.05 must not be refuted by the trials.
    assert binomtest(passed, trials, 0.05, alternative="greater").pvalue > 1e-3
    assert binomtest(failed, trials, 0.05, alternative="greater").pvalue > 1e-3


def test_the_clopper_pearson_bound_used_here_is_the_one_of_the_textbook():
    assert binomtest(1, 60).proportion_ci(0.9, "exact").high == pytest.approx(
        beta_distribution.ppf(0.95, 2, 59)
    )


# -- the page and what it rests on ----------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_shows_what_the_result_files_hold():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.verdict", "--page", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_limit_on_the_page_is_one_that_is_read(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "verdict.md").read_text(), re.S)
    (tmp_path / "limits.toml").write_text(block)
    (limit,) = load_limits(tmp_path / "limits.toml")
    assert limit in load_limits()


def test_no_simulated_error_rate_is_above_the_declared_one():
    raw = json.loads((ROOT / "benchmarks" / "results" / "verdict-simulation.json").read_text())
    assert {x["classes"] for x in raw["at_margin"]} == {20, 60, 420}
    for x in raw["at_margin"]:
        assert x["trials"] >= 1000
        assert x["pass"]["hetero"]["ci"][1] <= raw["alpha"]
        assert x["fail"]["ci"][1] <= raw["beta"]
    at_margin = [x for x in raw["sequential"] if x["loss"] == x["margin"]]
    assert at_margin
    for x in at_margin:
        assert x["pass"]["ci"][1] <= raw["alpha"]
        assert x["fail"]["ci"][1] <= raw["beta"]
