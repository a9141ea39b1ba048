"""From raw latencies to percentiles and a verdict on the measurement."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero.devices import Conditions, summarise
from hetero.devices._timing import judge, spread, sustained_ratio
from hetero.errors import ConfigError


def ns(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@given(st.lists(st.integers(1, 10**12), min_size=2, max_size=200))
def test_percentiles_are_those_of_the_standard_library(values):
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    found = summarise(ns(*values))
    assert found.p50_ns == pytest.approx(cuts[49], rel=1e-9)
    assert found.p90_ns == pytest.approx(cuts[89], rel=1e-9)
    assert (found.runs, found.min_ns) == (len(values), min(values))


def test_percentiles_of_0_to_100_are_themselves():
    found = summarise(np.arange(101, dtype=np.int64))
    assert (found.p50_ns, found.p90_ns, found.min_ns) == (50, 90, 0)


def test_a_99th_percentile_needs_a_thousand_runs():
    assert summarise(np.full(999, 7, np.int64)).p99_ns is None
    latency = np.arange(1, 1002, dtype=np.int64)
    assert summarise(latency).p99_ns == pytest.approx(
        statistics.quantiles(latency.tolist(), n=100, method="inclusive")[98]
    )


def test_throughput_is_runs_by_measured_time():
    assert summarise(ns(500_000_000, 1_500_000_000)).throughput_per_s == pytest.approx(1.0)


def test_the_sustained_ratio_compares_the_last_fifth_with_the_first():
    latency = ns(*[10] * 20, *[1000] * 60, *[13] * 20)
    assert sustained_ratio(latency) == pytest.approx(1.3)
    assert sustained_ratio(latency[::-1]) == pytest.approx(1 / 1.3)
    assert sustained_ratio(latency[:24]) is None


@given(st.integers(2, 1000))
def test_the_unit_of_time_does_not_matter_to_the_ratio(factor):
    latency = np.random.default_rng(3).integers(50, 150, 40)
    assert sustained_ratio(latency * factor) == pytest.approx(sustained_ratio(latency))


def test_no_latency_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match="min_runs or min_s above 0"):
        summarise(ns())


def test_a_quiet_steady_run_is_clean():
    latency = np.full(100, 1000, np.int64)
    found = summarise(latency, Conditions("native", 0.01, 0.99, 0))
    assert (found.validity, found.reason) == ("clean", "")


@pytest.mark.parametrize(
    ("conditions", "ratio", "validity", "reason"),
    [
        (Conditions("emulated", 0.0, 1.0, 0), 1.0, "emulated", "numerics only"),
        (Conditions("reference", 0.0, 1.0, 0), 1.0, "emulated", "numerics only"),
        (Conditions("native", 1.5, 1.0, 0), 1.0, "noisy", "1.5 involuntary context switches"),
        (Conditions("native", 0.0, 0.5, 0), 1.0, "noisy", "50% of the time"),
        (Conditions("native", 0.0, 1.0, 2), 1.0, "noisy", "restarted 2 times"),
        (Conditions("native", 0.0, 1.0, 0), 1.2, "throttled", "1.20 times as long"),
        (Conditions("native", 0.0, 0.5, 0), 1.2, "noisy", "50% of the time"),
        (Conditions("native", None, None, 0), None, "clean", ""),
        (Conditions("native", 1.0, 0.9, 0), 1.15, "clean", ""),
    ],
)
def test_each_disturbance_has_its_word_and_its_reason(conditions, ratio, validity, reason):
    found, why = judge(ratio, conditions)
    assert found == validity
    assert reason in why
    assert bool(why) == (validity != "clean")


def test_spread_is_the_range_of_repeats_by_their_median():
    assert spread([100, 105, 102]) == pytest.approx(5 / 102)
    assert spread([4, 4]) == 0
    for wrong in ([1.0], [0.0, 1.0]):
        with pytest.raises(ConfigError, match="two repeats above 0"):
            spread(wrong)
