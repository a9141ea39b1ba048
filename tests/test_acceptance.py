"""The rules of the acceptance experiments can fail, each by what it is about and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.acceptance.jobs import COMPATIBLE, CONTROLS, NESTED, SIZES, WIDTHS, jobs, query_name
from benchmarks.acceptance.rules import judge

CHANCE = {"recall_at_1": 0.002, "map": 0.005}


def corner(map_: float, recall: float | None = None) -> dict[str, float]:
    return {"recall_at_1": map_ if recall is None else recall, "map": map_}


def job(name: str, heterogeneous: float, own: float) -> dict[str, Any]:
    both = {"heterogeneous": corner(heterogeneous), "own": corner(own)}
    if heterogeneous <= 0.01:
        both["heterogeneous"] = corner(heterogeneous, 0.003)
    return {"scores": {name: both}}


def good() -> dict[str, Any]:
    """One seed in which everything holds."""
    made = {"gallery": job("gallery", 0.4, 0.4), "gallery-plain": job("gallery-plain", 0.1, 0.3)}
    made["independent"] = job("independent", 0.006, 0.15)
    for method in COMPATIBLE:
        made[query_name(method)] = job(query_name(method), 0.2, 0.2)
    for method in CONTROLS:
        made[query_name(method)] = job(query_name(method), 0.006, 0.2)
    for width in WIDTHS:
        name = query_name("csd+regression", width)
        made[name] = job(name, 0.2 + 0.05 * width, 0.2)
    made["head-only"] = job("head-only", 0.1, 0.1)
    for name, score in (
        ("bct-half-rows", 0.13),
        ("bct-half-none", 0.1),
        ("bct-plain-plain", 0.07),
        ("bct-plain-normalised", 0.08),
    ):
        made[name] = job(name, score, score)
    made["nested"] = {
        "scores": {
            f"nested/width-{w:g}": {"heterogeneous": corner(0.2 + 0.05 * w - 0.01)} for w in NESTED
        }
    }
    made[query_name("csd+regression")]["score_scale"] = {
        "same_class_query_gallery": 0.5,
        "same_class_gallery_gallery": 0.55,
        "map_mixed": 0.2,
        "map_mixed_corrected": 0.21,
    }
    return {"jobs": made, "chance": CHANCE, "procrustes": {"map": 0.1}}


def scored(name: str, side: str, map_: float) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        job_name = name.partition("/")[0]
        raw["jobs"][job_name]["scores"][name][side] = corner(map_)

    return change


def shift_the_scale(raw: dict[str, Any]) -> None:
    scale = raw["jobs"]["csd+regression-w0.5"]["score_scale"]
    scale |= {"same_class_query_gallery": 0.3, "map_mixed_corrected": 0.19}


def test_where_everything_holds_every_rule_passes() -> None:
    outcomes = judge([good(), good(), good()])
    assert [o.id for o in outcomes] == [
        *("A1", "A2", "A3", "A4", "A5", "A6", "A10", "A11", "A14", "A27", "A30")
    ]
    assert all(o.passed for o in outcomes), [o for o in outcomes if not o.passed]


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (scored("independent", "heterogeneous", 0.02), {"A1"}),
        (scored("rkd-w0.5", "heterogeneous", 0.02), {"A2"}),
        (scored("pkt-w0.5", "own", 0.04), {"A2"}),
        (scored("ssp-w0.5", "heterogeneous", 0.07), {"A3"}),
        (scored("independent", "own", 0.3), {"A4"}),
        (scored("regression-w0.5", "heterogeneous", 0.3), {"A5"}),
        (scored("head-only", "heterogeneous", 0.21), {"A5"}),
        (scored("csd+regression-w1.5", "heterogeneous", 0.1), {"A6"}),
        (scored("bct-half-none", "heterogeneous", 0.14), {"A10"}),
        (scored("bct-plain-plain", "heterogeneous", 0.3), {"A11"}),
        (lambda raw: raw.update(procrustes={"map": 0.014}), {"A14"}),
        (lambda raw: raw.update(procrustes={"map": 0.3}), {"A14"}),
        (scored("nested/width-1", "heterogeneous", 0.1), {"A27"}),
        (shift_the_scale, {"A30"}),
    ],
)
def test_one_broken_claim_fails_its_own_rule(
    change: Callable[[dict[str, Any]], None], broken: set[str]
) -> None:
    seeds = [good() for _ in range(3)]
    for raw in seeds:
        change(raw)
    assert {o.id for o in judge(seeds) if not o.passed} == broken


def test_one_seed_of_the_wrong_sign_is_enough_to_fail() -> None:
    seeds = [good(), good(), copy.deepcopy(good())]
    scored("bct-half-none", "heterogeneous", 0.131)(seeds[1])
    assert {o.id for o in judge(seeds) if not o.passed} == {"A10"}


@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_job_has_a_name_of_its_own_and_its_gallery_before_it(size: str) -> None:
    names = [j.name for j in jobs(SIZES[size])]
    assert len(set(names)) == len(names)
    for j in jobs(SIZES[size]):
        assert (j.role == "gallery") == (j.gallery == "")
        assert not j.gallery or names.index(j.gallery) < names.index(j.name)
