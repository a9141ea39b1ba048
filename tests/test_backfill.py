"""Forecasts of re-embedding: traffic, cost, ways and outcomes that can be worked out by hand."""

from __future__ import annotations

import itertools
import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hetero import backfill
from hetero.backfill import WEEK_S, Forecast, Plan, Way
from hetero.errors import ConfigError, DataError
from hetero.metrics import Score
from hetero.refresh import Curve
from hetero.render import backfill as render

PLAN = """
weeks = 4
margin = 0.1

[index]
images = 2_000_000
price_per_1000 = 0.04
images_per_s = 100

[[generation]]
bundle = "v1"
share = 0.75

[[generation]]
bundle = "v2"
share = 0.25

[[cohort]]
name = "app 1"
bundle = "phone1"
traffic = 0.5
declines = 0.2

[[cohort]]
bundle = "phone2"
traffic = 0.5
"""


def plan(**changed: Any) -> Plan:
    """One million rows that take two weeks, and two cohorts of the same traffic."""
    return Plan.model_validate(
        {
            "weeks": 4,
            "margin": 0.1,
            "index": {"images": 1_000_000, "images_per_s": 1_000_000 / (2 * WEEK_S)},
            "generation": [{"bundle": "v1", "share": 1.0}, {"bundle": "v2"}],
            "cohort": [{"bundle": "a", "traffic": 0.5}, {"bundle": "b", "traffic": 0.5}],
            **changed,
        }
    )


def alone(**cohort: Any) -> Plan:
    return plan(cohort=[{"bundle": "a", "traffic": 1.0, **cohort}])


RATE = 1_000_000 / (2 * WEEK_S)


def steady(*scores: float, queries: int = 4) -> Way:
    """Every query finds the same, at equal steps of progress."""
    progress = tuple(np.linspace(0, 1, len(scores)).tolist())
    values = np.tile(np.asarray(scores, dtype=np.float64)[:, None], (1, queries))
    return Way(progress, values, tuple("abcdefgh"[:queries]))


def of(made: Plan, *ways: Way, **more: Any) -> backfill.Order:
    (order,) = backfill.forecast(made, RATE, {"random": ways}, **more)
    return order


# -- the plan file --------------------------------------------------------------------------------


def test_a_plan_file_is_read_and_its_folders_are_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    made = backfill.load(path)
    assert made.generations == ("v1", "v2")
    assert made.cohorts == ("app 1", "phone2")
    assert Path(made.generation[0].bundle) == tmp_path / "v1"
    assert Path(made.cohort[1].bundle) == tmp_path / "phone2"
    assert made.cohort[1].floor is None


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("weeks = 4", "weeks = ", "not TOML"),
        ("weeks = 4", 'weeks = "four"', "weeks: "),
        ("weeks = 4", "weeks = 4\ntaste = 1", "taste: "),
        ("weeks = 4", 'metric = "ndcg"', "metric 'ndcg': there are recall_at_1"),
        ("images = 2_000_000", "images = 0", r"index\.images: "),
        ("images_per_s = 100", "images_per_s = inf", r"index\.images_per_s: "),
        ("price_per_1000 = 0.04", "price_per_1000 = nan", r"index\.price_per_1000: "),
        ("share = 0.75", "share = 0.5", "share of all generations: adds up to 0.75, not to 1"),
        ("declines = 0.2", "declines = 1.2", r"cohort\.1\.declines: "),
        ("traffic = 0.5\ndeclines", "traffic = 0.6\ndeclines", "adds up to 1.1"),
        ('bundle = "phone2"', 'bundle = "phone2"\ndeclines = 0.1', "it cannot decline"),
        ('bundle = "v2"', 'bundle = "elsewhere/v1"', "generation 'v1' is there twice"),
        ('bundle = "phone2"', 'name = "app 1"\nbundle = "x"', "cohort 'app 1' is there twice"),
        (
            'share = 0.75\n\n[[generation]]\nbundle = "v2"\nshare = 0.25',
            'share = 0.0\n\n[[generation]]\nbundle = "v2"\nshare = 1.0',
            "all rows are of v2 already",
        ),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line_that_says_where(
    tmp_path: Path, old: str, new: str, match: str
) -> None:
    path = tmp_path / "plan.toml"
    assert old in PLAN
    path.write_text(PLAN.replace(old, new, 1))
    with pytest.raises(ConfigError, match=match) as refused:
        backfill.load(path)
    assert str(refused.value).startswith(str(path))
    if "not TOML" not in match:
        assert "\n" not in str(refused.value)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plan cannot be read"):
        backfill.load(tmp_path / "none.toml")


def test_cost_counts_the_rows_that_are_not_by_the_last_generation(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    made = backfill.load(path)
    assert made.rows == 1_500_000
    assert made.cost == pytest.approx(60.0)
    # 15,000 seconds of 604,800.
    assert backfill.duration_weeks(made, 100) == pytest.approx(15_000 / 604_800)


def test_who_leaves_a_cohort_is_with_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    made = backfill.load(path)
    np.testing.assert_allclose(made.traffic(0), [0.5, 0.5])
    np.testing.assert_allclose(made.traffic(2), [0.32, 0.68])
    three = plan(
        cohort=[
            {"bundle": "a", "traffic": 0.5, "declines": 1.0},
            {"bundle": "b", "traffic": 0.3, "declines": 0.5},
            {"bundle": "c", "traffic": 0.2},
        ]
    )
    np.testing.assert_allclose(three.traffic(1), [0, 0.15, 0.85])


# -- ways -----------------------------------------------------------------------------------------


def test_between_two_shares_a_query_is_on_the_straight_line() -> None:
    way = Way((0.0, 0.25, 1.0), np.asarray([[0.0, 1.0], [1.0, 0.5], [1.0, 0.0]]), ("a", "b"))
    for progress in (0.0, 0.1, 0.25, 0.7, 1.0):
        expected = [np.interp(progress, way.progress, way.values[:, q]) for q in (0, 1)]
        np.testing.assert_allclose(way.at(progress), expected)


@pytest.mark.parametrize("progress", [(0.0, 0.5), (0.1, 1.0), (0.0, 0.0, 1.0)])
def test_a_way_goes_from_nothing_to_all(progress: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="ascends from 0 to 1"):
        Way(progress, np.zeros((len(progress), 2)), ("a", "b"))
    with pytest.raises(DataError, match="2 shares and 1 queries"):
        Way((0.0, 1.0), np.zeros((2, 2)), ("a",))


def test_asking_all_queries_on_the_way_estimates_nothing() -> None:
    rng = np.random.default_rng(0)
    start, end, between = rng.random(4), rng.random(4), rng.random((2, 4))
    made = backfill.estimated((0, 0.2, 0.6, 1), start, end, between, np.arange(4), tuple("abcd"))
    np.testing.assert_allclose(made.values, [start, *between, end])


def test_the_mean_over_all_samples_is_what_all_queries_find() -> None:
    rng = np.random.default_rng(1)
    start, end, middle = rng.random(5), rng.random(5), rng.random(5)
    found = []
    for some in itertools.combinations(range(5), 2):
        at = np.asarray(some)
        way = backfill.estimated((0, 0.3, 1), start, end, middle[at][None], at, tuple("abcde"))
        # By hand: the line of all, and how far the sample is from its own line.
        line = 0.7 * start + 0.3 * end
        expected = line.mean() + (middle[at] - line[at]).mean()
        assert way.values[1].mean() == pytest.approx(expected)
        found.append(way.values[1].mean())
    assert np.mean(found) == pytest.approx(middle.mean())


def test_a_straight_way_is_known_from_its_ends_whatever_the_sample() -> None:
    rng = np.random.default_rng(2)
    start, end = rng.random(6), rng.random(6)
    line = 0.5 * start + 0.5 * end
    for one in range(6):
        at = np.asarray([one])
        way = backfill.estimated((0, 0.5, 1), start, end, line[at][None], at, tuple("abcdef"))
        assert way.values[1].mean() == pytest.approx(line.mean())


# -- the forecast ---------------------------------------------------------------------------------


def test_times_are_weeks_and_whenever_a_measured_share_is_reached() -> None:
    made = plan(index={"images": 1_000_000, "images_per_s": RATE, "starts_week": 0.5})
    times = dict(backfill.timeline(made, RATE, (0.0, 0.5, 1.0)))
    assert list(times) == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 4])
    assert list(times.values()) == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_a_plan_looks_ahead_until_all_is_re_embedded() -> None:
    times = backfill.timeline(plan(), RATE / 5, (0.0, 1.0))
    assert times[-1] == (10.0, 1.0)
    with pytest.raises(ConfigError, match="take 2,000 weeks"):
        backfill.timeline(plan(), RATE / 1000, (0.0, 1.0))


def test_a_cohort_breaks_when_it_has_lost_more_than_the_margin() -> None:
    order = of(alone(), steady(0.8, 0.74, 0.68, 0.4))
    (cohort,) = order.cohorts
    assert cohort.outcome == "fail"
    assert cohort.breaks is not None
    # It has lost 0.06 a third of the way, 0.09 half way in week 1, and 0.12 two thirds of the way.
    assert cohort.breaks.progress == pytest.approx(2 / 3)
    assert cohort.breaks.week == pytest.approx(4 / 3)
    assert cohort.breaks.change.value == pytest.approx(-0.12)
    assert cohort.worst.score.value == pytest.approx(0.4)
    assert of(alone(), steady(0.8, 0.74, 0.71, 0.75)).cohorts[0].outcome == "pass"


def test_a_floor_is_judged_today_already() -> None:
    below = of(alone(floor=0.9), steady(0.8, 1.0)).cohorts[0]
    assert below.breaks is not None
    assert (below.outcome, below.breaks.week) == ("fail", 0.0)
    assert of(alone(floor=0.75), steady(0.8, 0.76)).cohorts[0].outcome == "pass"
    falls = of(alone(floor=0.75), steady(0.8, 0.78, 0.74)).cohorts[0]
    assert falls.breaks is not None
    assert falls.breaks.progress == pytest.approx(1.0)


def test_where_queries_disagree_a_cohort_may_break() -> None:
    values = np.asarray([[0.5] * 4, [0.0, 1.0, 0.0, 0.9]])
    cohort = of(alone(), Way((0.0, 1.0), values, tuple("abcd"))).cohorts[0]
    assert cohort.outcome == "inconclusive"
    assert cohort.breaks is not None
    # Half way in week 1, when each query has gone half of its way.
    assert cohort.breaks.change.value == pytest.approx(-0.0125)


def test_what_cannot_be_searched_breaks_even_within_the_margin() -> None:
    lost = Way((0.0, 1e-6, 1.0), np.asarray([[0.05] * 2, [0.0] * 2, [0.0] * 2]), ("a", "b"))
    assert of(alone(), lost).cohorts[0].outcome == "pass"
    cohort = of(alone(), lost, reasons=["no common space"]).cohorts[0]
    assert cohort.breaks is not None
    assert (cohort.outcome, cohort.breaks.progress) == ("fail", 1e-6)


def test_all_traffic_is_the_sum_over_cohorts_at_that_time() -> None:
    made = plan(
        cohort=[
            {"bundle": "a", "traffic": 0.6, "declines": 0.5},
            {"bundle": "b", "traffic": 0.4},
        ]
    )
    order = of(made, steady(0.2, 0.4), steady(0.8, 1.0))
    found = dict(order.everyone)
    assert found[0.0].value == pytest.approx(0.6 * 0.2 + 0.4 * 0.8)
    assert found[1.0].value == pytest.approx(0.3 * 0.3 + 0.7 * 0.9)
    assert found[4.0].value == pytest.approx(0.0375 * 0.4 + 0.9625 * 1.0)
    assert [p.traffic for p in order.cohorts[0].points if p.week == 2] == pytest.approx([0.15])


def test_the_area_is_that_of_the_refresh_curve_where_traffic_stands_still() -> None:
    scores = (0.2, 0.7, 0.4, 0.9)
    order = of(alone(), steady(*scores))
    assert order.area.value == pytest.approx(Curve((0, 1 / 3, 2 / 3, 1), scores).area)


def test_orders_are_compared_by_query_with_the_first_one() -> None:
    rng = np.random.default_rng(3)
    one, other = (Way((0.0, 1.0), rng.random((2, 30)), tuple("abc" * 10)) for _ in range(2))
    lifted = Way(one.progress, one.values + 0.125, one.labels)
    orders = backfill.forecast(alone(), RATE, {"x": [one], "y": [lifted], "z": [other]})
    assert [o.gain.value for o in orders[:2]] == pytest.approx([0, 0.125])
    # The same lift for every query is certain, though the queries themselves differ.
    assert orders[1].gain.ci == pytest.approx((0.125, 0.125))
    assert orders[2].gain.value == pytest.approx((other.values - one.values).mean())
    made = Forecast(alone(), RATE, False, {}, orders)
    assert made.chosen.area.value == max(o.area.value for o in orders)


def test_a_cohort_is_gone_when_a_hundredth_is_left() -> None:
    made = plan(
        cohort=[
            {"bundle": "a", "traffic": 0.5, "declines": 0.2},
            {"bundle": "b", "traffic": 0.005, "declines": 0.2},
            {"bundle": "c", "traffic": 0.495},
        ]
    )
    cohorts = of(made, *[steady(0.5, 0.5)] * 3).cohorts
    assert cohorts[0].gone_week == pytest.approx(math.log(0.02) / math.log(0.8))
    assert made.traffic(cohorts[0].gone_week or 0)[0] == pytest.approx(0.01)
    assert cohorts[1].gone_week == 0
    assert cohorts[2].gone_week is None


def test_ways_of_other_queries_or_too_few_are_refused() -> None:
    with pytest.raises(DataError, match="not about the same queries"):
        of(plan(), steady(0.1, 0.2), steady(0.1, 0.2, queries=3))
    with pytest.raises(DataError, match="one way for each of 2 cohorts"):
        of(plan(), steady(0.1, 0.2))


# -- for people -----------------------------------------------------------------------------------


def a_forecast() -> Forecast:
    made = plan(
        cohort=[
            {"bundle": "a", "name": "[old] app", "traffic": 0.6, "declines": 0.5},
            {"bundle": "b", "traffic": 0.4},
        ]
    )
    ways = {
        "random": [steady(0.8, 0.4), steady(0.8, 0.9)],
        "uncertain first": [steady(0.8, 0.5, 0.4), steady(0.8, 0.9, 0.9)],
    }
    score = Score(0.8, (0.7, 0.9), 4)
    cells = {(c, g): score if g == "v1" else None for c in made.cohorts for g in made.generations}
    return Forecast(made, RATE, True, cells, backfill.forecast(made, RATE, ways))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_forecast_says_what_breaks_when_and_what_it_costs(terminal: bool) -> None:
    out = StringIO()
    console = Console(force_terminal=terminal, no_color=True, width=140, file=out)
    render.show(a_forecast(), console)
    text = out.getvalue()
    assert "BREAKS: [old] app, week 1, 50 % re-embedded, 30 % of the traffic" in text
    assert "below 1 % of the traffic in week 5.9" in text
    assert "1,000,000 of 1,000,000 images: no price, 14.0 days" in text
    assert "as measured here" in text
    assert "no common space" in text
    assert "verdict: fail" in text


def test_a_forecast_is_drawn_the_same_every_time_and_names_each_cohort() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'report'")
    made = render.drawing(a_forecast())
    assert made == render.drawing(a_forecast())
    assert "[old] app" in made
    assert "all traffic" in made


def test_a_forecast_as_json_has_every_point() -> None:
    made = a_forecast().to_json()
    assert (made["outcome"], made["rows"], made["images_per_s_is"]) == (
        "fail",
        1_000_000,
        "measured here",
    )
    first = made["orders"][0]["cohorts"][0]
    assert first["outcome"] == "fail"
    assert {"week", "progress", "traffic", "value", "ci", "change"} <= set(first["points"][0])
    assert first["breaks_week"] == pytest.approx(1.0)
