from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from hetero.progress import Reporter


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == "", "results go there, not progress"
    return captured.err.splitlines()


def test_without_a_terminal_progress_is_lines_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = Reporter(every_s=0)
    with reporter.bar("train", 4) as bar:
        for loss in (3, 2, 1, 0):
            bar.advance(1, f"loss {loss}")
    said = lines(capsys)
    pattern = r"train: (\d) of 4, \d+ s left  loss (\d)"
    found = [re.fullmatch(pattern, line) for line in said[:-1]]
    assert [m and m.groups() for m in found] == [("1", "3"), ("2", "2"), ("3", "1")]
    assert re.fullmatch(r"train: 4 of 4 in \d+ s  loss 0", said[-1])


def test_lines_come_no_more_often_than_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(every_s=3600).bar("read", 1000) as bar:
        for _ in range(1000):
            bar.advance()
    assert len(lines(capsys)) == 1


def test_a_note_stays_until_the_next_one(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(every_s=0).bar("train", 3) as bar:
        bar.advance(1, "first")
        bar.advance(1)
        bar.advance(1, "last")
    assert [line.partition("  ")[2] for line in lines(capsys)] == ["first", "first", "last"]


def test_a_note_before_any_step_is_no_division_by_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Reporter(every_s=0).bar("train", 3) as bar:
        bar.advance(0, "loading")
    assert lines(capsys)[-1].startswith("train: 0 of 3 in")


def test_what_an_earlier_run_did_counts_as_done_and_not_for_the_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("hetero.progress.time.monotonic", lambda: clock[0])
    with Reporter(every_s=5).bar("train", 100, done=90) as bar:
        for _ in range(2):
            clock[0] += 10
            bar.advance(2)
    # Five seconds a step: eight steps are left after the first two.
    assert lines(capsys) == [
        "train: 92 of 100, 40 s left",
        "train: 94 of 100, 30 s left",
        "train: 94 of 100 in 20 s",
    ]


def test_the_first_steps_of_many_say_nothing_of_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("hetero.progress.time.monotonic", lambda: clock[0])
    with Reporter(every_s=5).bar("read", 1000) as bar:
        for seconds, steps in ((12, 1), (6, 899)):
            clock[0] += seconds
            bar.advance(steps)
    assert lines(capsys)[:2] == ["read: 1 of 1000", "read: 900 of 1000, 2 s left"]


def test_threads_count_together(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(every_s=3600).bar("read", 4000) as bar, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: bar.advance(1), range(4000)))
    assert lines(capsys)[-1].startswith("read: 4000 of 4000")


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True, every_s=0)
    reporter.line("something")
    with reporter.bar("train", 2) as bar:
        bar.advance(1, "a note")
    assert lines(capsys) == []


def test_a_job_that_failed_is_not_reported_as_finished(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        with Reporter(every_s=3600).bar("train", 2) as bar:
            bar.advance()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert lines(capsys) == []


def test_what_looks_like_markup_is_said_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().line("[bold]x[/bold] " + "long " * 60)
    (line,) = lines(capsys)
    assert line.startswith("[bold]x[/bold] long")


def test_on_a_terminal_a_bar_is_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Reporter().bar("train [x]", 8, done=2) as bar:
        bar.advance(3, "loss 1.5")
        bar.advance(1)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "\n".join(lines(capsys)))
    assert "train [x]" in text
    assert "6/8" in text
    assert "loss 1.5" in text


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_on_a_narrow_terminal_counts_and_notes_are_whole(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    note = "loss 19.399  accuracy 0.050  1421 images/s"
    with Reporter().bar("train upgrade (bct+regression)", 1250) as bar:
        bar.advance(1250, note)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "train upgrade (bct+regression)" in last
    assert "1250/1250" in last
    assert note in last
    assert "…" not in last
