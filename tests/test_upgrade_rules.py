"""The rules of the upgrade study can fail, each by what it is about and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.upgrades import SIZES, judge, section


def cell(query: str, gallery: str, kind: str, value: float, difference: float) -> dict[str, Any]:
    judged = {"value": value, "difference": difference, "outcome": "pass"}
    return {"query": query, "gallery": gallery, "kind": kind, "map": judged, "recall_at_1": judged}


def matrix(crossed: float) -> dict[str, Any]:
    """The old model has 0.20 in its index, the new one 0.30 in its own."""
    return {
        "queries": ["v1", "v2"],
        "galleries": ["v1", "v2"],
        "average_compatibility": {"map": float(crossed > 0.2)},
        "update_gain": {"map": {"v1": (crossed - 0.2) / 0.1}},
        "tax": {"map": {"value": 0.01}},
        "unconstrained": {"map": {"value": 0.31}},
        "cells": [
            cell("v1", "v1", "own", 0.2, 0.0),
            cell("v2", "v1", "newer query", crossed, crossed - 0.2),
            cell("v2", "v2", "own", 0.3, 0.0),
        ],
    }


def curve(*scores: float, area: float) -> dict[str, Any]:
    chord = (scores[0] + scores[2]) / 2
    return {
        "shares": [0.0, 0.5, 1.0],
        "scores": list(scores),
        "area": area,
        "dip": max(0.0, scores[0] - min(scores)),
        "sag": max(0.0, chord - scores[1]),
    }


def good() -> dict[str, Any]:
    """One seed in which everything holds."""

    def point(influence: float, regression: float, own: float) -> dict[str, Any]:
        name = f"influence-{influence:g}-regression-{regression:g}"
        weights = {"influence": influence, "regression": regression}
        return {"name": name, **weights, "crossed": 0.21, "own": own}

    return {
        "seed": 0,
        "cpu_s": 60,
        "chance": {"map": 0.005, "recall_at_1": 0.002},
        "sweep": {
            "points": [point(1, 0, 0.3), point(0, 10, 0.25), point(1, 10, 0.28)],
            "chosen": "influence-1-regression-10",
            "before": 0.2,
            "free": 0.31,
        },
        "verdict": matrix(0.22),
        "chains": {"v3": matrix(0.19), "v3-chain": matrix(0.22)},
        "refresh": {
            "curves": {
                "random": curve(0.22, 0.25, 0.3, area=0.255),
                "random, corrected": curve(0.22, 0.26, 0.3, area=0.26),
                "uncertain first": curve(0.22, 0.26, 0.3, area=0.262),
                "control": curve(0.01, 0.1, 0.3, area=0.12),
            }
        },
        "scale": {"old rows": 0.4, "new rows": 0.6},
        "mapped": {"plain": {"map": 0.22}, "with side information": {"map": 0.25}},
    }


def changed(*where: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        for key in where[:-1]:
            raw = raw[key]
        raw[where[-1]] = to

    return change


def test_where_everything_holds_every_rule_passes() -> None:
    outcomes = judge([good(), good(), good()], full=True)
    assert [o.id for o in outcomes] == [
        *("A7", "A8", "A9", "A12a", "A12b", "A12c", "A13", "A15", "A30")
    ]
    assert all(o.passed for o in outcomes), [o for o in outcomes if not o.passed]
    named = next(o for o in outcomes if o.id == "A13")
    assert "seed 0: v2 in v1" in named.seen, "the plain chain's miss is named"


CURVES = ("refresh", "curves")


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (changed("verdict", to=matrix(0.19)), {"A7"}),
        (changed("verdict", "tax", "map", "value", to=0.06), {"A8"}),
        (changed("sweep", "points", 0, "own", to=0.2), {"A9"}),
        (changed(*CURVES, "random", "dip", to=0.02), {"A12a"}),
        (changed(*CURVES, "random", "scores", to=[0.3, 0.25, 0.22]), {"A12a"}),
        (changed(*CURVES, "control", "sag", to=0.005), {"A12b"}),
        (changed(*CURVES, "uncertain first", "area", to=0.25), {"A12c"}),
        (changed("chains", "v3-chain", to=matrix(0.2)), {"A13"}),
        (changed("mapped", "with side information", "map", to=0.19), {"A15"}),
        (changed("mapped", "with side information", "map", to=0.32), {"A15"}),
        (
            changed(*CURVES, "random, corrected", "scores", to=[0.22, 0.24, 0.3]),
            {"A30"},
        ),
    ],
)
def test_one_broken_claim_fails_its_own_rule(
    change: Callable[[dict[str, Any]], None], broken: set[str]
) -> None:
    seeds = [good() for _ in range(3)]
    for raw in seeds:
        change(raw)
    assert {o.id for o in judge(seeds, full=True) if not o.passed} == broken


def test_one_seed_of_the_wrong_sign_is_enough_to_fail() -> None:
    seeds = [good(), good(), copy.deepcopy(good())]
    changed("verdict", to=matrix(0.2))(seeds[1])
    assert {o.id for o in judge(seeds, full=True) if not o.passed} == {"A7"}


def test_the_quick_form_asks_for_less_and_not_for_nothing() -> None:
    near = good()
    changed("verdict", to=matrix(0.15))(near)
    outcomes = {o.id: o.passed for o in judge([near], full=False)}
    assert outcomes["A7"]
    assert "A12c" not in outcomes
    far = good()
    changed("verdict", to=matrix(0.13))(far)
    assert not {o.id: o.passed for o in judge([far], full=False)}["A7"]


def test_scores_on_one_scale_need_no_correction() -> None:
    raw = good()
    del raw["refresh"]["curves"]["random, corrected"]
    assert not judge([raw], full=True)[-1].passed
    raw["scale"] = {"old rows": 0.55, "new rows": 0.6}
    assert judge([raw], full=True)[-1].passed


def test_the_section_shows_each_rule_point_and_curve() -> None:
    raw = {
        "command": "python -m benchmarks.upgrades emoji",
        "size": asdict(SIZES["full"]),
        "seeds": [good(), good()],
    }
    text = section("emoji", raw)
    assert "emoji, 9 of 9 hold" in text
    assert "| influence 1 regression 10 | **21.0** / **21.0** | **28.0** / **28.0** |" in text
    assert "| uncertain first | 22.0 | 26.0 | 30.0 | 26.2 |" in text
