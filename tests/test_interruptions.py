"""The harness that kills stages sees what is missing, altered or there twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.interruptions import STAGES, differences, flat, left_by
from hetero import cli
from hetero.errors import BundleError


def written(folder: Path, *, took_s: float) -> Path:
    """What a run might leave: a JSON file, arrays, bytes, and what is no result."""
    (folder / "logs").mkdir(parents=True)
    report = {
        "took": took_s,
        "took_s": took_s / 8,
        "rows": [{"id": "a", "cosine": 0.5}, {"id": "b", "cosine": 0.25}],
    }
    (folder / "report.json").write_text(json.dumps(report))
    save_file({"weight": np.arange(6.0)}, folder / "w.safetensors", {"space": "s", "dim": "2"})
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / ".lock").write_text(str(took_s))
    (folder / "logs" / "1.log").write_text(str(took_s))
    return folder


def test_json_is_compared_value_by_value():
    assert dict(flat({"a": [1, {"b": None}], "c": "x"})) == {
        "/a/0": "1",
        "/a/1/b": "null",
        "/c": '"x"',
    }


def test_measurements_of_time_and_memory_are_left_out_and_move_no_other():
    peak, found = ({"name": n, "value": 0.5, "unit": u} for n, u in (("peak", "MiB"), ("map", "")))
    assert dict(flat([peak, found])) == dict(flat([found]))
    assert dict(flat([found]))["/0/value"] == "0.5"


def test_two_runs_that_differ_in_time_alone_are_the_same(tmp_path):
    first, second, third = (left_by(written(tmp_path / str(n), took_s=n)) for n in range(3))
    assert first["report.json/took"] != second["report.json/took"]
    assert "report.json/took_s" not in first
    assert not any("lock" in key or "logs" in key for key in first)
    assert differences(third, first, second) == []


@pytest.mark.parametrize(
    ("harm", "seen"),
    [
        (
            lambda f: (f / "model.onnx").unlink(),
            ["model.onnx: missing", "model.onnx content: miss"],
        ),
        (lambda f: (f / "model.onnx").write_bytes(b"grap"), ["model.onnx content: "]),
        (lambda f: (f / "again.onnx").write_bytes(b"graph"), ["again.onnx: too much"]),
        (
            lambda f: save_file({"weight": np.zeros(6)}, f / "w.safetensors", {"space": "s"}),
            ["w.safetensors/dim: missing", "w.safetensors/weight: float64"],
        ),
        (
            lambda f: (f / "report.json").write_text('{"took": 1, "rows": [{"id": "a"}]}'),
            ["report.json/rows/0/cosine", "report.json/rows/1/id", "report.json/rows/1/cosine"],
        ),
    ],
    ids=["a file lost", "a file cut", "a file too much", "arrays", "rows lost"],
)
def test_what_was_lost_altered_or_written_twice_is_named(tmp_path, harm, seen):
    first, second = (left_by(written(tmp_path / str(n), took_s=n)) for n in range(2))
    ours = written(tmp_path / "ours", took_s=2)
    harm(ours)
    found = differences(left_by(ours), first, second)
    assert len(found) == len(seen)
    assert all(any(line.startswith(start) for line in found) for start in seen), found


def test_every_stage_names_only_places_that_there_are():
    names = ("data", "gallery", "other", "query", "exported", "vectors", "out")
    for stage in STAGES.values():
        assert "{" not in stage.command.format(**dict.fromkeys(names, "x"))
        assert stage.start in ("", *names)


def by_pydantic() -> None:
    """What is raised where Ctrl-C falls into the making of a class, as it was seen."""
    raise ValueError("Error building 'literal' validator: KeyboardInterrupt:")


def by_cause() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise RuntimeError("a callback failed") from error


def by_context() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise RuntimeError("a callback failed")  # noqa: B904  as libraries do


def by_a_lock() -> None:
    """As Optuna's journal does where Ctrl-C falls between the removal of its lock and the rest."""
    try:
        raise KeyboardInterrupt
    except BaseException:
        Path("search.journal.lock.rename").unlink()


def by_our_own() -> None:
    try:
        by_pydantic()
    except ValueError as error:
        raise BundleError("manifest.json: cannot be read") from error


@pytest.mark.parametrize("ctrl_c", [by_pydantic, by_cause, by_context, by_a_lock, by_our_own])
def test_ctrl_c_that_a_library_made_an_error_of_is_still_ctrl_c(monkeypatch, capsys, ctrl_c):
    monkeypatch.setattr(cli, "app", lambda **_: ctrl_c())
    assert cli._run(None) == 130
    assert capsys.readouterr().err == "hetero: interrupted; what was finished is saved\n"


def test_any_other_error_of_a_library_is_a_fault_of_ours(monkeypatch, capsys):
    def broken(**_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(cli, "app", broken)
    assert cli._run(None) == 4
    assert "unexpected RuntimeError: no such thing; this is a fault of hetero" in (
        capsys.readouterr().err
    )
