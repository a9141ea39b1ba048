"""What was measured before: rows, baselines, and what two sessions say of each other."""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import scipy.stats
from typer.testing import CliRunner

from hetero._files import sha256
from hetero.cli import app
from hetero.errors import ConfigError
from hetero.history import Entry, History, session_ratio

ENTRY = Entry(
    kind="measure", subject="query onnx int8", bundle_sha256="b" * 64, file_sha256="f" * 64,
    format="onnx", precision="int8", device="ssh:pi", settings="threads 1", validity="clean",
    reason="", quiet_ns=1e6, p50_ns=1.1e6, conditions={"cpu": "A76"}, raw={"runs": 3},
)  # fmt: skip


def entry(quiet_ms: float = 1.0, **fields) -> Entry:
    return dataclasses.replace(ENTRY, quiet_ns=1e6 * quiet_ms, **fields)


@pytest.fixture
def book(tmp_path):
    return History.open(tmp_path / "deep" / "history.db")


def test_what_was_added_comes_back_with_a_number_and_a_time(book):
    first, second = book.add(ENTRY), book.add(entry(device="local"))
    assert (first.id, second.id) == (1, 2)
    assert first.at.endswith("+00:00")
    assert book.run(1) == first
    assert dataclasses.replace(first, id=0, at="") == ENTRY
    assert book.runs() == (first, second)
    assert book.runs(device="local") == (second,)
    assert History.open(book.path).runs() == (first, second)


def test_a_run_or_a_baseline_that_is_not_there_is_named(book):
    with pytest.raises(ConfigError, match="no run 7"):
        book.run(7)
    with pytest.raises(ConfigError, match="no baseline 'gold'; there are: none"):
        book.baseline("gold")


def test_a_baseline_keeps_its_file_and_one_input_and_notices_when_it_was_altered(book, tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"weights")
    run = book.add(entry(file_sha256=sha256(model)))
    inputs = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    book.keep("gold", run, model, inputs)
    model.unlink()
    kept = book.baseline("gold")
    assert kept.run == run
    assert kept.model.read_bytes() == b"weights"
    np.testing.assert_array_equal(kept.inputs, inputs[:1])
    assert book.baselines() == {"gold": 1}
    kept.model.write_bytes(b"other")
    with pytest.raises(ConfigError, match="not the file that baseline 'gold' measured"):
        book.baseline("gold")
    kept.model.unlink()
    with pytest.raises(ConfigError, match="files are gone"):
        book.baseline("gold")


def test_a_name_given_again_goes_to_the_newer_run(book, tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"weights")
    for _ in range(2):
        book.keep("gold", book.add(ENTRY), model, np.zeros((1, 2, 2, 3), np.uint8))
    assert book.baselines() == {"gold": 2}


def test_a_newer_history_and_a_file_that_is_none_are_refused(tmp_path):
    newer = tmp_path / "newer.db"
    History.open(newer)
    with closing(sqlite3.connect(newer)) as db, db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="version 99"):
        History.open(newer)
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database, but long enough to be looked at" * 30)
    with pytest.raises(ConfigError, match="cannot be used as a history"):
        History.open(other)


def test_the_interval_of_two_sessions_is_that_of_their_spread(book):
    quiet = {"f": (1.00, 1.04, 0.98, 1.01), "g": (2.0, 2.1, 1.9)}
    runs = [
        book.add(entry(ms, file_sha256=name * 64))
        for name, all_ms in quiet.items()
        for ms in all_ms
    ]
    found = session_ratio(runs[0], runs[4], book.runs())
    logs = [np.log(x) for x in quiet.values()]
    pooled = math.sqrt(sum(x.var(ddof=1) * (len(x) - 1) for x in logs) / 5)
    reach = math.exp(scipy.stats.t.ppf(0.975, 5) * pooled * math.sqrt(2))
    assert found.degrees == 5
    assert found.spread == pytest.approx(pooled)
    assert (found.low, found.value, found.high) == pytest.approx((2 / reach, 2.0, 2 * reach))


def test_sessions_of_one_file_raise_no_more_alarms_than_declared():
    rng, alarms, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        runs = [entry(math.exp(rng.normal(0, 0.05)), id=n) for n in range(10)]
        found = session_ratio(runs[8], runs[9], tuple(runs))
        alarms += found.judged(0.0, runs[8], runs[9]) == "fail"
    assert alarms <= scipy.stats.binom.ppf(0.999, trials, 0.025)


def test_what_cannot_be_compared_is_not():
    runs = tuple(entry(id=n) for n in range(8))
    for changed in ({"device": "local"}, {"settings": "threads 4"}, {"kind": "sustained"}):
        with pytest.raises(ConfigError, match="are not compared"):
            session_ratio(runs[0], entry(**changed), runs)
    few = session_ratio(runs[0], runs[1], runs[:3])
    assert (few.low, few.judged(0.05, *runs[:2])) == (None, "inconclusive")
    assert "2 of 5 repeated sessions" in few.why(0.05, *runs[:2])
    broken = entry(9.0, validity="emulated", reason="no times")
    found = session_ratio(runs[0], broken, runs)
    assert found.judged(0.05, runs[0], broken) == "inconclusive"
    assert "invalid: no times" in found.why(0.05, runs[0], broken)


def call(book, *arguments):
    from hetero.errors import HeteroError

    done = CliRunner().invoke(app, ["bench", *arguments, "--history", str(book.path)])
    if isinstance(done.exception, HeteroError):
        raise done.exception
    return done


def test_the_command_compares_stored_runs_and_exits_with_its_verdict(book):
    for ms in (1.0, 1.001, 0.999, 1.0, 1.002, 0.998, 1.0):
        book.add(entry(ms))
    book.add(entry(1.2, file_sha256="g" * 64))
    book.add(entry(1.052, file_sha256="h" * 64, validity="noisy"))
    for other, code, word in (("2", 0, "PASS"), ("8", 1, "FAIL")):
        done = call(book, "compare", "1", other)
        assert (done.exit_code, word in done.stdout) == (code, True), done.stdout
    done = call(book, "compare", "1", "9", "--margin", "0.052", "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["verdict"] == "inconclusive"
    with pytest.raises(ConfigError, match="compare two runs"):
        call(book, "compare", "1")


def test_the_command_lists_runs_and_draws_them(book, tmp_path):
    assert "no runs yet" in call(book, "list").stdout
    book.add(ENTRY)
    book.add(entry(1.3, subject="query onnx <fp32>", validity="noisy"))
    done = call(book, "list", "--plot", str(tmp_path / "p.svg"))
    assert "query onnx int8 on ssh:pi (threads 1): p50 1.1 ms, quiet 1 ms, clean" in done.stdout
    drawn = (tmp_path / "p.svg").read_text()
    assert "query onnx &lt;fp32&gt;" in drawn
    found = json.loads(call(book, "list", "--json").stdout)["runs"]
    assert [r["id"] for r in found] == [1, 2]
