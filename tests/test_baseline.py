"""A run held to an earlier one: paired query by query, or by what was stored."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from hetero import baseline, cli
from hetero.check import Place
from hetero.errors import BundleError, ConfigError
from hetero.outcomes import FILE, Outcomes
from hetero.report import Limit, Measurement, Report
from hetero.verdict import Evidence

ONNX = Place("local", "onnx", "fp32")
INT8 = Place("local", "onnx", "int8")
FACTS = {"space": "toy@0123", "data": "toy, split checksum 0123456789ab", "role": "query"}
LIMIT = Limit("recall_at_1_lost_to_baseline", at_most=0.02, by="noninferiority")


def a_run(
    recall: Mapping[Place, Sequence[float]],
    kept: bool = True,
    half: float = 0.1,
    ids: Sequence[str] = (),
    **facts: str,
) -> baseline.Run:
    """A run of files whose queries got these recalls, each query of a class of its own."""
    rows, scores = [], {}
    for place, got in recall.items():
        values = np.asarray(got, np.float64)
        found = float(values.mean())
        for name, value in (("recall_at_1", found), ("map", found / 2)):
            m = place.measured(f"heterogeneous_{name}", value, n=len(values))
            rows.append(replace(m, ci=(value - half, value + half)))
        rows.append(place.measured("size", 2.0, "MiB"))
        rows.append(place.measured("latency_p50", 4.0, "ms"))
        scores |= {(place, "recall"): values, (place, "average_precision"): values / 2}
    names = tuple(ids) or tuple(f"q{i}" for i in range(len(values)))
    outcomes = Outcomes(names, tuple(f"class of {x}" for x in names), scores)
    report = Report("toy", tuple(rows), facts={**FACTS, **facts})
    return baseline.Run(report, outcomes if kept else None, "before")


def lost(now: baseline.Run, before: baseline.Run, limit: Limit = LIMIT) -> Measurement:
    rows = baseline.judged(baseline.compared(now, before), [limit])
    (found,) = (m for m in rows if m.name == limit.measurement)
    return found


def stored(run: baseline.Run, folder: Path) -> Path:
    run.report.judged_by([Limit("size", at_most=9)]).save(folder / "report.json")
    if run.outcomes is not None:
        run.outcomes.save(folder / FILE)
    return folder


# -- paired ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "outcome"), [(0, "pass"), (5, "inconclusive"), (20, "fail")])
def test_queries_that_became_wrong_are_judged_by_the_exact_binomial_bounds(
    wrong: int, outcome: str
) -> None:
    before = a_run({ONNX: [1.0] * 300})
    found = lost(a_run({ONNX: [0.0] * wrong + [1.0] * (300 - wrong)}), before)
    assert found.value == wrong / 300
    assert found.evidence is not None
    assert found.decision is not None
    assert found.outcome == outcome
    # One query a class and one kind of loss: Clopper and Pearson are a second opinion.
    high = binomtest(wrong, 300, alternative="less").proportion_ci(0.95, "exact").high
    assert found.decision.high == pytest.approx(high, abs=0.002)
    # Below it is theirs or less: a query could have been gained as well.
    low = binomtest(wrong, 300, alternative="greater").proportion_ci(0.95, "exact").low
    assert low - 0.012 < found.decision.low < low + 0.001


def test_changes_that_cancel_lose_nothing_and_are_still_seen_as_flips() -> None:
    before = a_run({ONNX: [1, 1, 0, 0, 1, 1, 1, 1]})
    rows = baseline.compared(a_run({ONNX: [0, 0, 1, 1, 1, 1, 1, 1]}), before)
    found = {m.name: m.value for m in rows}
    assert found["recall_at_1_lost_to_baseline"] == 0
    assert found["query_negative_flip_rate_to_baseline"] == 2 / 8
    assert found["map_lost_to_baseline"] == 0
    assert found["size_over_baseline"] == found["latency_p50_over_baseline"] == 1


def test_what_is_gained_is_a_negative_loss() -> None:
    assert lost(a_run({ONNX: [1.0] * 8}), a_run({ONNX: [0, 0] + [1] * 6})).value == -2 / 8


def test_queries_are_paired_by_id_not_by_place() -> None:
    before = a_run({ONNX: [1, 0, 1, 1]}, ids=("a", "b", "c", "d"))
    now = a_run({ONNX: [0, 1, 1, 1]}, ids=("b", "a", "d", "c"))
    rows = baseline.compared(now, before)
    assert {m.name: m.value for m in rows}["query_negative_flip_rate_to_baseline"] == 0


def test_only_queries_that_both_were_asked_count() -> None:
    before, now = a_run({ONNX: [1, 1, 1, 1]}), a_run({ONNX: [0, 1, 1, 1]})
    assert before.outcomes is not None
    assert now.outcomes is not None
    for metric in ("recall", "average_precision"):
        before.outcomes.scores[ONNX, metric][3] = math.nan
        now.outcomes.scores[ONNX, metric][2] = math.nan
    found = lost(now, before)
    assert (found.value, found.n) == (1 / 2, 2)


def test_queries_of_one_class_are_not_independent() -> None:
    def run(recall: list[float]) -> baseline.Run:
        made = a_run({ONNX: recall})
        assert made.outcomes is not None
        labels = tuple(f"class {i // 10}" for i in range(len(recall)))
        return replace(made, outcomes=replace(made.outcomes, labels=labels))

    # 300 queries, but of 30 classes: no change in 30 classes is a bound of 1 - 0.05 ** (1 / 30).
    found = lost(run([1.0] * 300), run([1.0] * 300))
    assert found.outcome == "inconclusive"
    assert found.decision is not None
    assert found.decision.high == pytest.approx(1 - 0.05 ** (1 / 30), abs=0.003)


# -- not paired -----------------------------------------------------------------------------------


def test_stored_values_are_compared_by_their_intervals_and_the_report_says_so() -> None:
    before, now = a_run({ONNX: [1] * 6 + [0] * 4}, kept=False), a_run({ONNX: [1, 0] * 5})
    found = lost(now, before)
    assert found.value == pytest.approx(0.1)
    # Two half widths of 0.1 give one of 0.1 * sqrt(2), as variances add up.
    assert found.ci == pytest.approx((0.1 - 0.1414214, 0.1 + 0.1414214), abs=1e-6)
    assert found.outcome == "inconclusive"
    assert found.limit is not None
    assert found.limit.by == "interval"
    assert baseline.UNPAIRED in found.limit.why
    assert baseline.UNPAIRED in baseline.note(now, before)
    assert "query by query" in baseline.note(now, now)


def test_an_interval_that_leans_leans_the_other_way_in_the_difference() -> None:
    # 0.5 (0.4 to 0.9) less 0.5 (0.45 to 0.55): down 0.1 and 0.05, up 0.4 and 0.05.
    found = baseline._difference(
        ONNX,
        "x",
        replace(ONNX.measured("x", 0.5), ci=(0.45, 0.55)),
        replace(ONNX.measured("x", 0.5), ci=(0.4, 0.9)),
    )
    assert found.ci == pytest.approx((-math.hypot(0.1, 0.05), math.hypot(0.4, 0.05)))


@pytest.mark.parametrize(("now", "outcome"), [(0.2, "fail"), (1.0, "pass")])
def test_a_clear_difference_of_stored_values_is_decided(now: float, outcome: str) -> None:
    before = a_run({ONNX: [0.6] * 10}, kept=False, half=0.02)
    assert lost(a_run({ONNX: [now] * 10}, half=0.02), before).outcome == outcome


def test_a_value_without_an_interval_decides_nothing() -> None:
    bare = a_run({ONNX: [1.0] * 9}, kept=False)
    rows = tuple(replace(m, ci=None) for m in bare.report.measurements)
    found = lost(replace(bare, report=replace(bare.report, measurements=rows)), bare)
    assert found.outcome == "inconclusive"
    assert "no interval" in found.doubt


def test_a_run_that_stopped_asking_is_not_compared() -> None:
    before = a_run({ONNX: [1.0] * 300})
    asked = Evidence("sequence", ((0.0, 1, 1),), 1)
    stopped = replace(ONNX.measured("recall_at_1_lost", 0.0), evidence=asked)
    rows = (*before.report.measurements, stopped)
    found = lost(before, replace(before, report=replace(before.report, measurements=rows)))
    assert found.outcome == "inconclusive"
    assert "the baseline stopped asking" in found.doubt


# -- which files ----------------------------------------------------------------------------------


def test_a_file_that_is_gone_leaves_the_gate_undecided_and_a_new_one_does_not() -> None:
    one, two = a_run({ONNX: [1.0] * 300}), a_run({ONNX: [1.0] * 300, INT8: [1.0] * 300})
    gone = baseline.judged(baseline.compared(one, two), [LIMIT])
    assert {(m.precision, m.outcome) for m in gone if m.limit} == {
        ("fp32", "pass"),
        ("int8", "inconclusive"),
    }
    assert all(math.isfinite(m.value) for m in gone if m.limit is None)
    new = baseline.judged(baseline.compared(two, one), [LIMIT])
    assert {(m.precision, m.outcome) for m in new if m.limit} == {("fp32", "pass")}
    assert "1 files are new" in baseline.note(two, one)


def test_a_limit_that_names_nothing_compared_is_an_error() -> None:
    run = a_run({ONNX: [1.0] * 3})
    with pytest.raises(ConfigError, match="taste_over_baseline"):
        baseline.judged(baseline.compared(run, run), [Limit("taste_over_baseline", at_most=1)])


def test_one_s_own_limits_on_a_baseline_stand_in_for_the_built_in_one() -> None:
    own = Limit("size_over_baseline", at_most=1.1)
    other = Limit("cosine_worst", at_least=0.9)
    assert baseline.limits_apart([own, other]) == ((other,), (own,))
    rest, built_in = baseline.limits_apart([other])
    assert rest == (other,)
    assert [x.measurement for x in built_in] == ["recall_at_1_lost_to_baseline"]


# -- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"data": "toy, split checksum ba9876543210"}, "its data is split checksum ba9876543210"),
        ({"space": "other@4567"}, "its gallery space is other@4567, here it is toy@0123"),
        ({"role": "gallery"}, "its bundle role is gallery, here it is query"),
    ],
)
def test_a_baseline_that_asked_another_question_is_refused(
    facts: dict[str, str], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        baseline.must_match(a_run({ONNX: [1.0]}, **facts), FACTS)


def test_the_same_data_at_another_place_is_the_same_data() -> None:
    there = a_run({ONNX: [1.0]}, data="elsewhere/toy, split checksum 0123456789ab")
    baseline.must_match(there, FACTS)


def test_a_report_that_did_not_yet_name_its_role_is_known_by_its_models() -> None:
    old = {k: v for k, v in FACTS.items() if k != "role"}
    run = a_run({ONNX: [1.0]})
    for query, role in (("resnet, weights 1", "gallery"), ("mobilenet, weights 2", "query")):
        models = {"gallery model": "resnet, weights 1", "query model": query}
        before = replace(run, report=replace(run.report, facts={**old, **models}))
        baseline.must_match(before, {**FACTS, "role": role})


def test_a_report_of_another_command_is_no_baseline() -> None:
    run = a_run({ONNX: [1.0]})
    bare = replace(run, report=replace(run.report, facts={}))
    with pytest.raises(ConfigError, match="not a report of `hetero check`"):
        baseline.must_match(bare, FACTS)
    with pytest.raises(ConfigError, match="nothing in it was searched with"):
        baseline.compared(run, replace(run, report=replace(run.report, measurements=())))


# -- files and the command ------------------------------------------------------------------------


def test_outcomes_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = a_run({ONNX: [1.0, 0.0], INT8: [0.5, math.nan]}, ids=('a "b"', "ü\n"))
    made = run.outcomes
    assert made is not None
    made.save(tmp_path / FILE)
    again = Outcomes.load(tmp_path / FILE)
    assert (again.ids, again.labels) == (made.ids, made.labels)
    assert list(again.scores) == list(made.scores)
    for key, values in made.scores.items():
        assert np.array_equal(again.scores[key], values, equal_nan=True)


def test_torn_outcomes_and_those_of_another_run_are_refused(tmp_path: Path) -> None:
    folder = stored(a_run({ONNX: [1.0, 0.0]}), tmp_path / "run")
    other = stored(a_run({ONNX: [1.0, 1.0]}), tmp_path / "other")
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[:-5])
    with pytest.raises(BundleError, match="cannot be read as outcomes"):
        baseline.load(folder)
    (folder / FILE).write_bytes((other / FILE).read_bytes())
    with pytest.raises(BundleError, match="of another run"):
        baseline.load(folder / "report.json")


def report(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["hetero", "report", *map(str, words), "--json"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capfd.readouterr()
    return int(done.value.code or 0), out or err


@pytest.mark.parametrize(("wrong", "code"), [(0, 0), (5, 3), (20, 1)])
def test_a_stored_run_is_held_to_another_without_running_anything(
    wrong: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("junitparser", reason="reports need the extra 'report'")
    monkeypatch.setattr("hetero.render.html.render", lambda *given: "")  # seconds, of others' tests
    before = stored(a_run({ONNX: [1.0] * 300}), tmp_path / "before")
    now = stored(a_run({ONNX: [0.0] * wrong + [1.0] * (300 - wrong)}), tmp_path / "now")
    got, out = report(monkeypatch, capfd, now, "--baseline", before)
    assert got == code
    rows = {m["name"]: m for m in json.loads(out)["measurements"]}
    assert rows["recall_at_1_lost_to_baseline"]["value"] == wrong / 300
    assert rows["size"]["outcome"] == "pass", "what was judged before stays judged"
    text = (now / "report.md").read_text()
    assert "### Against the baseline" in text
    assert f"Baseline: {before}, verdict pass, query by query." in text.replace("\\", "")
    assert 'name="recall_at_1_lost_to_baseline"' in (now / "junit.xml").read_text()
    # Again, and by other limits: what was compared stays, once.
    limits = tmp_path / "limits.toml"
    limits.write_text(
        '[[limit]]\nmeasurement = "recall_at_1_lost_to_baseline"\nat_most = 0.5\n'
        'by = "noninferiority"\n[[limit]]\nmeasurement = "size"\nat_most = 9\n'
    )
    got, out = report(monkeypatch, capfd, now, "--limits", limits)
    assert got == 0
    names = [m["name"] for m in json.loads(out)["measurements"]]
    assert names.count("recall_at_1_lost_to_baseline") == 1
    assert got == report(monkeypatch, capfd, now, "--limits", limits, "--baseline", before)[0]


def test_another_data_set_is_one_line_and_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = stored(a_run({ONNX: [1.0] * 3}), tmp_path / "now")
    before = stored(a_run({ONNX: [1.0] * 3}, data="x, split checksum 1"), tmp_path / "before")
    kept = (now / "report.json").read_bytes()
    code, told = report(monkeypatch, capfd, now, "--baseline", before / "report.json")
    assert code == 2
    assert told.count("\n") == 1
    assert "its data is split checksum 1" in told
    assert (now / "report.json").read_bytes() == kept
    assert report(monkeypatch, capfd, now, "--baseline", tmp_path / "nowhere")[0] == 2
