"""Is B slower than A: groups of blocks, the interval, what could have been seen, the grade."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from hetero import latency
from hetero.errors import ConfigError
from hetero.latency import Block, compare, detectable_slowdown, median_ratio, orders


def block(arm, *values):
    return Block(arm, np.array(values, np.int64))


def steady(order, a=1000, b=1000):
    """A group without any noise."""
    return [block(arm, *[a if arm == "A" else b] * 20) for arm in order]


def noisy(order, rng, slower=1.0, sigma=0.02, heavy=True):
    """A group on a machine that disturbs every third block, some of them badly."""
    out = []
    for arm in order:
        level = 1e6 * (slower if arm == "B" else 1.0) * math.exp(abs(rng.normal()) * sigma)
        if heavy and rng.random() < 0.3:
            level *= 1 + rng.pareto(3) / 3
        out.append(block(arm, *(level * (1 + rng.exponential(0.05, 8))).astype(int).tolist()))
    return out


def test_the_order_of_each_group_is_drawn_and_repeats_with_its_seed():
    drawn = orders(200, seed=3)
    assert drawn == orders(200, seed=3) != orders(200, seed=4)
    assert set(drawn) == {"ABBA", "BAAB"}
    assert 70 < sum(x == "ABBA" for x in drawn) < 130


def test_fewer_than_six_groups_bear_no_interval():
    assert 2 * 0.5**5 > 0.05 >= 2 * 0.5**6
    for call in (
        lambda: orders(5, 0),
        lambda: median_ratio([1.0] * 5),
        lambda: compare([steady("ABBA")] * 5, 0.05),
    ):
        with pytest.raises(ConfigError, match="at least 6"):
            call()


@pytest.mark.parametrize(("groups", "rank"), [(6, 1), (8, 1), (9, 2), (15, 4), (45, 16)])
def test_the_interval_is_that_of_the_sign_test(groups, rank):
    # By hand: the widest rank from below that is passed by chance in 2.5 % at most.
    below = [sum(math.comb(groups, i) for i in range(k)) / 2**groups for k in range(groups)]
    assert below[rank] <= 0.025 < below[rank + 1]
    ratios = np.random.default_rng(0).permutation(np.linspace(0.9, 1.2, groups))
    found = median_ratio(ratios)
    ordered = sorted(ratios)
    assert (found.low, found.high) == (ordered[rank - 1], ordered[-rank])
    assert found.value == pytest.approx(np.median(ratios))
    assert found.groups == tuple(ratios)


def test_with_many_groups_it_is_close_to_the_bootstrap():
    ratios = np.random.default_rng(1).lognormal(0.1, 0.05, 45)
    found = median_ratio(ratios)
    other = scipy.stats.bootstrap(
        (ratios,), np.median, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.low == pytest.approx(other.low, abs=0.01)
    assert found.high == pytest.approx(other.high, abs=0.01)


def test_ten_per_cent_more_is_seen_and_equal_files_are_equal():
    groups = [steady(o, 1000, 1100) for o in orders(15, 0)]
    found = compare(groups, 0.05)
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == pytest.approx((1.1,) * 3)
    assert found.quiet_ns == found.p50_ns == (1000, 1100)
    assert (found.grade, found.reason) == ("valid", "")
    assert found.detectable == pytest.approx(0.05)
    same = compare([steady(o) for o in orders(15, 0)], 0.05)
    assert (same.ratio.low, same.ratio.high) == (1, 1)


def test_of_a_files_two_blocks_the_quieter_one_counts():
    groups = [steady("ABBA", 1000, 1000) for _ in range(6)]
    for group in groups:
        group[0] = block("A", *[5000] * 20)
        group[1] = block("B", *[3000] * 20)
    assert compare(groups, 0.05).ratio.value == 1


def test_a_few_slow_runs_of_a_block_do_not_count_but_show_in_the_median_latency():
    groups = [steady(o) for o in orders(6, 0)]
    for group in groups:
        for at, b in enumerate(group):
            if b.arm == "B":
                group[at] = block("B", *[1000] * 9, *[2000] * 11)
    found = compare(groups, 0.05)
    assert found.ratio.value == 1
    assert found.median_ratio.value == 2


def test_equal_files_raise_no_more_alarms_than_declared_whatever_the_noise():
    rng, trials, alarms, apart = np.random.default_rng(7), 300, 0, 0
    for seed in range(trials):
        found = compare([noisy(o, rng) for o in orders(9, seed)], 0.0)
        alarms += found.ratio.low > 1
        apart += not found.ratio.low <= 1 <= found.ratio.high
    # Declared: 2.5 % on each side; so many would be seen by chance once in a thousand times.
    assert alarms <= scipy.stats.binom.ppf(0.999, trials, 0.025)
    assert apart <= scipy.stats.binom.ppf(0.999, trials, 0.05)


def test_a_slowdown_is_found_through_the_same_noise():
    rng = np.random.default_rng(8)
    found = [compare([noisy(o, rng, 1.15) for o in orders(15, s)], 0.05) for s in range(40)]
    assert sum(x.ratio.low > 1.05 for x in found) >= 36


def test_the_detectable_slowdown_is_found_in_nine_of_ten():
    rng, groups, sigma, margin = np.random.default_rng(9), 15, 0.03, 0.05
    noise = np.exp(rng.normal(0, sigma, 20_000)).tolist()
    change = detectable_slowdown(noise, groups, margin)
    trials = 4000
    ratios = np.sort((1 + change) * np.exp(rng.normal(0, sigma, (trials, groups))), axis=1)
    assert np.mean(ratios[:, 3] > 1 + margin) == pytest.approx(0.9, abs=0.02)


def test_a_file_that_differs_from_itself_makes_the_run_invalid():
    groups = [steady(o) for o in orders(8, 0)]
    for group in groups:
        group[3] = block(group[3].arm, *[1300] * 20)
        group[2] = block(group[2].arm, *[1300] * 20)
    found = compare(groups, 0.05)
    assert found.grade == "invalid"
    assert "differs from itself by 30.0%" in found.reason
    assert found.same[0].value == pytest.approx(1.3)


def test_a_machine_too_noisy_to_see_anything_makes_the_run_invalid():
    for spread, grade in ((1.02, "valid"), (1.10, "noisy"), (1.6, "invalid")):
        levels = [1000, int(1000 * spread)] * 8
        groups = [steady("ABBA", level, level) for level in levels]
        found = compare(groups, 0.05)
        assert found.grade == grade
        assert ("would not be seen" in found.reason) == (grade != "valid")


def test_an_emulated_run_is_invalid_and_a_disturbed_one_is_noisy():
    groups = [steady(o) for o in orders(6, 0)]
    found = compare(groups, 0.05, disturbed="under-voltage", emulated="emulated device")
    assert (found.grade, found.reason) == ("invalid", "emulated device")
    found = compare(groups, 0.05, disturbed="under-voltage")
    assert (found.grade, found.reason) == ("noisy", "under-voltage")


def test_a_group_of_another_make_and_a_margin_below_0_are_refused():
    with pytest.raises(ConfigError, match="two blocks of A and two of B, got 'ABBB'"):
        compare([steady("ABBB")] * 6, 0.05)
    for margin in (-0.1, math.nan):
        with pytest.raises(ConfigError, match="margin"):
            compare([steady("ABBA")] * 6, margin)


def test_the_six_groups_of_a_quick_run_can_see_a_change():
    assert math.isfinite(detectable_slowdown([1.0], latency.MIN_GROUPS, 0.05))
    assert detectable_slowdown([1.0], latency.MIN_GROUPS - 1, 0.05) == math.inf
