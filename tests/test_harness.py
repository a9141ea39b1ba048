"""The faults of the device harness: their table, and that none goes unnoticed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KINDS = ("local", "ssh", "adb", "browser")


@pytest.fixture(scope="module")
def faults():
    return pytest.importorskip("benchmarks.harness.faults", reason="needs a checkout")


def test_there_are_faults_for_every_kind_of_device_and_none_is_listed_twice(faults):
    assert len({f.name for f in faults.FAULTS}) == len(faults.FAULTS) >= 25
    by_kind = Counter(kind for f in faults.FAULTS for kind in f.kinds)
    assert set(by_kind) == set(KINDS)
    assert min(by_kind.values()) >= 10


def by_name(faults, name):
    (found,) = (f for f in faults.FAULTS if f.name.startswith(name))
    return found


@pytest.mark.parametrize(
    ("name", "outcome", "codes"),
    [
        ("Worker killed within a row", "survived", []),
        ("A 'done' that claims fewer rows", "reported", [4]),
    ],
)
def test_a_fault_is_played_and_its_rows_are_counted(faults, name, outcome, codes):
    row = faults.play(by_name(faults, name), "local")
    assert (row["outcome"], row["exit_codes"], row["errors"][1:]) == (outcome, codes, [])
    assert (row["rows"], row["rows_lost"], row["rows_duplicated"]) == (12, 0, 0)


def test_a_fault_that_nobody_notices_does_not_pass_for_a_reported_one(faults):
    def nothing(scene):
        scene.refused()

    row = faults.play(faults.Fault("Nothing at all", ("local",), "reported", nothing), "local")
    assert row["outcome"] == "failed"
    assert "it was not noticed" in row["errors"][0]
    assert row["rows_lost"] == 12


def test_rows_that_are_wrong_or_measured_twice_are_counted(faults):
    from dataclasses import replace

    def spoiled(scene):
        result = scene.run()
        log = result.folder / "log.jsonl"
        (row,) = (x for x in log.read_text().splitlines() if '"i": 3,' in x)
        log.write_text(f"{log.read_text()}{row}\n")
        outputs = result.outputs.copy()
        outputs[5] += 1
        return replace(result, outputs=outputs)

    row = faults.play(faults.Fault("Spoiled", ("local",), "survived", spoiled), "local")
    assert (row["rows_lost"], row["rows_duplicated"]) == (1, 1)


def test_what_is_published_keeps_every_promise_and_tells_nothing_of_this_machine(faults):
    path = ROOT / "benchmarks/results/harness-faults.json"
    text = path.read_text()
    found = json.loads(text)
    assert found["summary"]["faults"] >= 25
    assert {x["kind"] for x in found["faults"]} == set(KINDS)
    for row in found["faults"]:
        assert row["outcome"] == row["promised"], row["fault"]
        assert row["rows_lost"] == row["rows_duplicated"] == 0
        assert bool(row["errors"]) == (row["outcome"] == "reported")
        assert set(row["exit_codes"]) <= {2, 3, 4, 130}
    for word in ("/tmp/", "/work", "/root", "/home"):
        assert word not in text
