"""The rules of the replayed plans can fail, each by what it is about and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from toys import toy_images

from benchmarks.planner import PLANS, SIZES, WEEKS, asking, judge, part, section
from hetero.evaluate import task


def point(order: str, app: str, week: int, change: float) -> dict[str, Any]:
    told = {"value": 0.5 + change, "ci": (0.4, 0.6)}
    moved = {"change": change, "change_ci": (change - 0.02, change + 0.02)}
    return {
        "order": order,
        "app": app,
        "week": week,
        "predicted": told | moved,
        "replayed": 0.5 + change,
        "replayed_change": change,
        "predicted_by_half": told | moved,
        "replayed_on_other_half": moved,
    }


def good() -> dict[str, Any]:
    """One seed in which every forecast is right: the first app falls by 4 points, others rise."""
    plans = {}
    for name, (_, apps) in PLANS.items():
        ends = {app: -0.04 if app == "app1" else 0.04 for app, _, _ in apps}
        weeks = range(WEEKS + 1)
        everyone = []
        for week in weeks:
            left = [t * (1 - d) ** week for _, t, d in apps[:-1]]
            shares = [*left, 1 - sum(left)]
            everyone.append(
                0.5 + sum(s * e * week / WEEKS for s, e in zip(shares, ends.values(), strict=True))
            )
        plans[name] = {
            "chosen": "random",
            "outcomes": {app: "fail" if app == "app1" else "pass" for app in ends},
            "everyone": {"random": everyone},
            "points": [
                point("random", app, week, end * week / WEEKS)
                for app, end in ends.items()
                for week in weeks
            ],
        }
    return {"seed": 0, "cpu_s": 60, "queries": 100, "classes": 10, "plans": plans}


def changed(how: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    raw = copy.deepcopy(good())
    how(raw)
    return raw


def off(raw: dict[str, Any]) -> None:
    raw["plans"]["v1 to v2"]["points"][3]["predicted"]["value"] += 0.011


def traffic(raw: dict[str, Any]) -> None:
    raw["plans"]["v1 to v2"]["everyone"]["random"][3] -= 0.011


def verdict(raw: dict[str, Any]) -> None:
    raw["plans"]["v1 to v2"]["outcomes"]["app1"] = "pass"


def unexplained(raw: dict[str, Any]) -> None:
    for p in raw["plans"]["v1 to v2"]["points"]:
        p["predicted_by_half"]["change"] += 0.03


def test_everything_holds_of_forecasts_that_are_right() -> None:
    assert [o.passed for o in judge([good()])] == [True] * 4


@pytest.mark.parametrize(
    ("spoil", "claim"), [(off, "P1"), (traffic, "P2"), (verdict, "P3"), (unexplained, "P4")]
)
def test_each_rule_fails_by_what_it_is_about(
    spoil: Callable[[dict[str, Any]], None], claim: str
) -> None:
    assert [o.id for o in judge([changed(spoil)]) if not o.passed] == [claim]


def test_what_is_said_to_break_and_holds_is_wrong_too() -> None:
    def early(raw: dict[str, Any]) -> None:
        raw["plans"]["v1 to v2"]["outcomes"]["app2"] = "fail"

    found = next(o for o in judge([changed(early)]) if o.id == "P3")
    assert not found.passed
    assert "v1 to v2: app2 fail, replayed +0.0" in found.seen


def test_an_undecided_app_is_not_wrong_and_is_counted() -> None:
    def open_(raw: dict[str, Any]) -> None:
        raw["plans"]["v1 to v2"]["outcomes"]["app1"] = "inconclusive"

    found = next(o for o in judge([changed(open_)]) if o.id == "P3")
    assert found.passed
    assert found.seen.startswith("4 of 5 apps decided")


def test_the_page_shows_forecast_beside_replay() -> None:
    about = {"command": "x", "sample": 0.5, "repeats": 4, "replays": 4}
    raw = {**about, "size": asdict(SIZES["full"]), "seeds": [good()]}
    text = section("emoji", raw)
    assert "4 of 4 hold" in text
    assert "| v1 to v2 | app1 | fail | 50.0 / 50.0 | 49.0 / 49.0 | 48.0 / 48.0 |" in text


def test_half_of_the_classes_ask_and_all_are_searched() -> None:
    images = toy_images(test=6, per_class=4)
    whole, half = task(images, "test"), task(asking(images, 0), "test")
    assert half.gallery_ids == whole.gallery_ids
    assert set(half.truth.query_labels) == set(images.classes("test")[::2])
    other = task(asking(images, 1), "test")
    assert sorted([*half.query_ids, *other.query_ids]) == sorted(whole.query_ids)


def test_a_part_of_a_collection_reads_its_own_pictures() -> None:
    images = toy_images(test=6, per_class=4)
    some = part(images, 3)
    assert set(some.labels) == {c for s in ("train", "val", "test") for c in images.classes(s)[::3]}
    for row in (0, len(some) - 1):
        np.testing.assert_array_equal(some.read(row), images.read(images.ids.index(some.ids[row])))
