"""Runs over time: what counts as worse, what does not, and the page of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from sample_report import DEVICE, failing, passing, runs_over_time

from hetero import timeline
from hetero.errors import ConfigError
from hetero.progress import Reporter
from hetero.report import Measurement, Report
from hetero.timeline import Run

AT = (DEVICE, "onnx", "int8")
SHA = "ab" * 32


def run(
    day: int, *, recall: float = 0.7, half: float = 0.02, ms: float = 10.0, mib: float = 1.0,
    sha: str = SHA, data: str = "emoji", more: tuple[Measurement, ...] = (),
) -> Run:  # fmt: skip
    rows = (
        Measurement(
            "heterogeneous_recall_at_1", recall, "", *AT, ci=(recall - half, recall + half), n=100
        ),
        Measurement("latency_p50", ms, "ms", *AT),
        Measurement("size", mib, "MiB", *AT),
        *more,
    )
    facts = {f"onnx int8 on {DEVICE}": f"SHA-256 {sha}, runtime x", "data": data}
    return Run(f"run{day}", f"2026-01-{day:02}T00:00:00+00:00", Report("a model", rows, facts))


def changes(*runs: Run) -> dict[str, str]:
    """Of the last run against the one before, by name of the measurement."""
    (story,) = timeline.stories(runs)
    before = len(runs) - 1
    return {x.name: x.change for x in story.newest if x.against == before}


@pytest.mark.parametrize(
    ("recall", "change"),
    [(0.7, "same"), (0.661, "same"), (0.659, "worse"), (0.739, "same"), (0.741, "better")],
)
def test_recall_has_changed_where_the_two_intervals_are_apart(recall, change):
    # 0.68 to 0.72 before; with half a width of 0.02 they touch at 0.66 and at 0.74.
    found = changes(run(1), run(2, recall=recall))
    assert found["heterogeneous_recall_at_1"] == change


def test_recall_on_other_pictures_is_not_compared():
    found = changes(run(1), run(2, recall=0.2, data="photographs"))
    assert found["heterogeneous_recall_at_1"] == "undecided"


def test_a_file_that_grew_by_more_than_one_per_cent_is_worse():
    assert changes(run(1), run(2, mib=1.009))["size"] == "same"
    assert changes(run(1), run(2, mib=1.011))["size"] == "worse"
    assert changes(run(1), run(2, mib=0.5))["size"] == "better"


def test_a_slow_down_is_undecided_until_it_is_known_how_sessions_differ():
    assert changes(run(1), run(2, ms=10.4))["latency_p50"] == "same"
    assert changes(run(1), run(2, ms=15.0))["latency_p50"] == "undecided"
    # Seven sessions of one file, a per cent apart: then half as slow again is no accident.
    quiet = [run(day, ms=10 + 0.1 * (day % 2)) for day in range(1, 8)]
    assert changes(*quiet, run(8, ms=15.0, sha="cd" * 32))["latency_p50"] == "worse"
    assert changes(*quiet, run(8, ms=5.0, sha="cd" * 32))["latency_p50"] == "better"


def test_small_steps_add_up_against_the_first_run():
    steps = [run(day, mib=1.009**day) for day in range(1, 5)]
    (story,) = timeline.stories(steps)
    assert [(x.against, x.change) for x in story.newest if x.name == "size"] == [
        (3, "same"),
        (1, "worse"),
    ]


def test_an_outcome_that_fell_is_worse_and_one_that_rose_is_better():
    good = replace(run(1), report=replace(passing(), subject="x"))
    bad = replace(run(2), report=replace(failing(), subject="x"))
    (story,) = timeline.stories([good, bad])
    fell = {(x.name, x.change) for line in story.lines for p in line.points for x in p.remarks}
    assert ("outcome", "worse") in fell
    again = replace(bad, at="2025-12-31T00:00:00+00:00")
    (story,) = timeline.stories([good, again])
    rose = {(x.name, x.change) for line in story.lines for p in line.points for x in p.remarks}
    assert ("outcome", "better") in rose


def test_a_file_that_is_gone_leaves_the_last_run_undecided():
    other = Measurement("size", 1.0, "MiB", DEVICE, "onnx", "fp16")
    (story,) = timeline.stories([run(1, more=(other,)), run(2)])
    assert story.gone == ((DEVICE, "onnx", "fp16"),)
    assert story.change == "undecided"


def test_exit_codes_are_those_of_everywhere():
    def code(*runs: Run) -> int:
        return timeline.exit_code(timeline.stories(runs))

    assert code(run(1), run(2)) == 0
    assert code(run(1), run(2, mib=2)) == 1
    assert code(run(1), run(2, mib=2, data="other")) == 1  # worse outweighs what is open
    assert code(run(1)) == 3
    assert code() == 3


def test_the_page_the_terminal_and_the_json_say_the_same(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from hetero.cli.report import report

    runs_over_time(tmp_path / "runs")
    (tmp_path / "runs" / "foreign").mkdir()
    (tmp_path / "runs" / "foreign" / "report.json").write_text("{}")
    with pytest.raises(typer.Exit) as left:
        report([tmp_path / "runs"], history=True, output=tmp_path / "told", quiet=False)
    assert left.value.exit_code == 1
    said = capsys.readouterr()
    assert "passed over" in said.err
    assert "foreign" in said.err
    assert "regression: TFLite int8" in said.out
    assert "Recall@1 51.2 % (49.2 to 53.2), was 70.8 % (68.8 to 72.8) in run 2" in said.out
    numbers = json.loads((tmp_path / "told" / "history.json").read_text())
    assert [x["change"] for x in numbers["stories"]] == ["worse"]
    assert [r["verdict"] for r in numbers["stories"][0]["runs"]] == ["pass", "pass", "fail"]
    page = (tmp_path / "told" / "history.html").read_text()
    assert '<a href="../runs/3/report.html">' in page
    assert "▼ regression since run 2" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    for wrong in (
        {"folder": [tmp_path / "told"], "history": True},
        {"folder": [tmp_path, tmp_path]},
        {"folder": None},
        {"folder": [tmp_path], "output": tmp_path},
        {"folder": [tmp_path], "history": True, "limits": Path("limits.toml")},
    ):
        with pytest.raises(ConfigError):
            report(**wrong)


def test_on_a_narrow_terminal_no_line_is_longer_than_it(tmp_path):
    from rich.console import Console

    from hetero.render import timeline as rendering
    from hetero.stages import reviewing

    runs_over_time(tmp_path)
    told = reviewing.review([tmp_path], tmp_path, reporter=Reporter(quiet=True))
    for width in (60, 80):
        text = io.StringIO()
        console = Console(file=text, width=width, force_terminal=True, color_system=None)
        rendering.show(told, console)
        assert max(map(len, text.getvalue().splitlines())) <= width
        assert "regression" in text.getvalue()
