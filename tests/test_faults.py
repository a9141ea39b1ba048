"""The benchmark of diagnoses: its app is right where nothing is wrong, its counts add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toys import picture

from hetero.bundle import Probe
from hetero.diagnose import STAGES, canaries
from hetero.preprocess import Preprocess, decode

ROOT = Path(__file__).parent.parent
SPEC = Preprocess(32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def pictures():
    pixels = np.stack(
        [np.asarray(picture(n, n % 2).repeat(2, axis=0).repeat(2, axis=1)) for n in range(8)]
    )
    assert pixels.shape[1:] == (32, 32, 3)
    return canaries(Probe(tuple(f"p{i}" for i in range(8)), pixels, np.zeros((8, 4), "f4")), SPEC)


@pytest.fixture(scope="module")
def faults():
    return pytest.importorskip("benchmarks.faults", reason="needs a checkout")


def test_the_app_without_a_fault_gives_the_pixels_and_the_tensor_of_the_reference(faults):
    from benchmarks.faults.app import right

    app = right(SPEC.size_px, SPEC.mean, SPEC.std)
    for canary in pictures():
        ours = SPEC.pixels(decode(canary.data))
        assert np.abs(app.pixels(canary.data).astype(int) - ours).max() <= 1, canary.name
    pixels = np.stack([app.pixels(c.data) for c in pictures()])
    assert app.input(pixels) == pytest.approx(SPEC.tensor(pixels), abs=1e-5)


def test_every_mistake_moves_pixels_or_tensors_and_one_seed_gives_the_same_ones(faults):
    from benchmarks.faults import mistakes
    from benchmarks.faults.app import right

    app = right(SPEC.size_px, SPEC.mean, SPEC.std)
    some = pictures()
    healthy = np.stack([app.pixels(c.data) for c in some])
    names = [w.name for w in mistakes.faults(np.random.default_rng(5))]
    assert names == [w.name for w in mistakes.faults(np.random.default_rng(5))]
    assert names != [w.name for w in mistakes.faults(np.random.default_rng(6))]
    for wrong in mistakes.faults(np.random.default_rng(5)):
        assert wrong.stage in STAGES
        changed = wrong.change(app)
        pixels = np.stack([changed.pixels(c.data) for c in some])
        same = np.array_equal(changed.input(pixels), app.input(healthy))
        assert not same, wrong.name


def row(true: str, named: str, model: str = "query", verdict: str = "fault"):
    return {
        "model": model,
        "true": true,
        "named": named,
        "fault": f"a fault of {true}",
        "file": "",
        "known": False,
        "refused": False,
        "verdict": verdict,
        "adds_up": True,
    }


def test_only_the_right_stage_named_first_counts_and_alarms_are_of_controls(faults):
    from benchmarks.faults.run import interval, summary

    found = summary(
        [
            *[row("crop", "crop")] * 3,
            row("crop", "resize"),
            row("l2", "", verdict="inconclusive"),
            row("l2", "", "gallery", verdict="healthy"),
        ],
        [row("", "", verdict="healthy"), row("", "colour"), row("", "", verdict="inconclusive")],
    )
    assert (found["right_stage_first"], found["n_faults"], found["share"]) == (3, 6, 0.5)
    assert (found["wrong_stage"], found["inconclusive"], found["called_healthy"]) == (1, 1, 1)
    assert found["by_stage"] == {"crop": [3, 4], "l2": [0, 2]}
    assert found["by_model"] == {"query": [3, 5], "gallery": [0, 1]}
    assert (found["false_alarms"], found["controls_inconclusive"]) == (1, 1)
    # Of 0 of n the exact interval ends at 1 - 0.025^(1/n).
    assert interval(0, 60) == pytest.approx([0, 1 - 0.025 ** (1 / 60)], abs=1e-4)


def test_what_is_published_holds_what_is_promised(faults):
    from benchmarks.faults.run import summary

    path = ROOT / "benchmarks/results/faults.json"
    if not path.exists():
        pytest.skip("python -m benchmarks.faults has not been run")
    raw = json.loads(path.read_text())
    assert {k: raw[k] for k in summary(raw["faults"], raw["controls"])} == summary(
        raw["faults"], raw["controls"]
    )
    assert raw["distinct_faults"] >= 60
    assert raw["n_controls"] >= 60
    assert raw["false_alarms"] == 0
    assert set(raw["by_stage"]) == set(STAGES)
