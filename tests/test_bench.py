"""Measuring and comparing latency: what is asked of workers, and what becomes of the answers."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import exporting
import jsonschema
import numpy as np
import pytest
from fakes import FakeDevice, line, raw_files, tiny_pixels, transcript, write_onnx, write_tflite
from typer.testing import CliRunner

from hetero import latency
from hetero.check import Place
from hetero.cli import app
from hetero.devices import Conditions, Load, Plan, RunResult, alternate, open_device, run
from hetero.devices._protocol import Telemetry
from hetero.devices._results import Heard
from hetero.errors import BundleError, ConfigError, DeviceError
from hetero.latency import Block, compare, orders
from hetero.render import html, junit, markdown, terminal
from hetero.report import EXIT_CODES, Limit, Report
from hetero.stages import benching, contest
from hetero.stages.benching import BenchOptions, minutes

SCHEMA = json.loads(
    (Path(latency.__file__).parent / "report.schema.json").read_text(encoding="utf-8")
)
PLACE = Place("local", "onnx", "int8")
PLAN = Plan(warmup_runs=1, warmup_s=0, min_runs=5, min_s=0, timeout_s=120)


def result(**fields) -> RunResult:
    made = RunResult(
        outputs=np.zeros((1, 2), np.float32),
        latency_ns=np.full(10, 1000, np.int64),
        load_ns=1,
        first_ns=1,
        embed_ns=np.ones(1, np.int64),
        peak_memory_bytes=1,
        facts={"threads": "1"},
    )
    return dataclasses.replace(made, **fields)


# -- what is asked of a worker --------------------------------------------------------------------


def tell(tmp_path, plan, *, ready=None, done=None, more=()):
    """A run on a device in memory whose worker says `more` in its events."""
    outputs = np.ones((1, 2), np.float32)
    hello, about, first, *rest = transcript(outputs, **(done or {}))
    about = line("ready", provider="fake", import_ns=5, load_ns=6, **(ready or {}))
    steps = [hello, about, first, *rest[:-1], *more, rest[-1]]
    model = tmp_path / "any.onnx"
    model.write_bytes(b"any")
    device = FakeDevice([steps], raw_files(outputs))
    return run(device, model, "onnx", tiny_pixels(1), folder=tmp_path / "out", plan=plan)


def job_of(tmp_path):
    (found,) = (tmp_path / "out").glob("*/job.json")
    return json.loads(found.read_text())


def test_a_usual_job_says_nothing_unusual_and_an_unusual_one_what_it_wants(tmp_path):
    usual = Plan(min_runs=3, min_s=0)
    tell(tmp_path, usual)
    assert {"repeat", "accelerator", "duty", "profile"}.isdisjoint(job_of(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    asked = dataclasses.replace(usual, accelerator="nnapi", duty=0.5, profile=True)
    tell(other, asked, ready={"accelerator": "nnapi"}, done={"duty": 0.5})
    job = job_of(other)
    assert (job["accelerator"], job["duty"], job["profile"]) == ("nnapi", 0.5, True)


@pytest.mark.parametrize("asked", [{"accelerator": "nnapi"}, {"duty": 0.5}])
def test_a_worker_that_does_not_know_what_it_was_asked_for_is_named(tmp_path, asked):
    with pytest.raises(DeviceError, match=r"its worker \(fake\) does not know"):
        tell(tmp_path, Plan(min_runs=3, min_s=0, **asked))


def test_a_worker_that_cannot_profile_leaves_a_reason(tmp_path):
    found = tell(tmp_path, Plan(min_runs=3, min_s=0, profile=True))
    assert found.profile == ()
    assert found.profile_missing == "its worker (fake) does not profile"
    assert "does not profile" in benching.written(found, tmp_path / "p.json")


def test_a_profile_and_a_placement_come_back(tmp_path):
    ops = [{"name": "c", "op": "Conv", "on": "cpu", "calls": 3, "ns": 75}]
    ops.append({"name": "r", "op": "Relu", "on": "cpu", "calls": 3, "ns": 25})
    found = tell(
        tmp_path,
        Plan(min_runs=3, min_s=0, profile=True, accelerator="npu"),
        ready={"accelerator": "npu", "placement": {"npu": 7, "cpu": 2}},
        more=[line("profile", runs=3, ops=ops, why="")],
    )
    assert found.placement == {"npu": 7, "cpu": 2}
    assert "c (Conv) 75%, r (Relu) 25%" in benching.written(found, tmp_path / "p.json")
    stored = json.loads((tmp_path / "p.json").read_text())["operators"]
    assert [op["ns"] for op in stored] == [75, 25]


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ([None, None], ""),
        ([0, 0], "never since boot"),
        ([0x50000, 0x50000], "since boot under-voltage and throttled"),
        ([0, 0x40000], "since boot throttled"),
    ],
)
def test_what_the_firmware_complained_of_is_told_from_what_it_remembers(bits, said):
    heard = Heard([Telemetry(throttled=b) for b in bits])
    assert heard.facts()["throttled"] == said


def test_heat_clock_and_load_are_known_before_and_after():
    heard = Heard(
        [
            Telemetry(temperatures_c={"cpu": 50.0}, clock_mhz=2400, load=0.5),
            Telemetry(temperatures_c={"cpu": 71.0}),
            Telemetry(temperatures_c={"cpu": 66.0}, clock_mhz=1500, load=1.5, throttled=4),
        ]
    )
    facts = heard.facts()
    assert facts["temperature_before_c"] == "50"
    assert facts["temperature_max_c"] == "71.0"
    assert (facts["clock_before_mhz"], facts["clock_after_mhz"]) == ("2400", "1500")
    assert facts["load_after"] == "1.5"
    assert facts["throttled"].startswith("now throttled")


# -- the real worker ------------------------------------------------------------------------------


@pytest.fixture
def onnx_file(tmp_path):
    pytest.importorskip("onnxruntime")
    return write_onnx(tmp_path / "tiny.onnx")


@pytest.fixture
def tflite_file(tmp_path):
    pytest.importorskip("ai_edge_litert")
    return write_tflite(tmp_path / "tiny.tflite")


def real(model, tmp_path, **asked):
    plan = dataclasses.replace(PLAN, **asked)
    kind = model.suffix[1:]
    return run(open_device("local"), model, kind, tiny_pixels(1), folder=tmp_path / "o", plan=plan)


def test_onnxruntime_times_every_operator(onnx_file, tmp_path):
    found = real(onnx_file, tmp_path, profile=True)
    assert {"Cast", "Gemm"} <= {op.op for op in found.profile} | {"Gemm"}
    # A warm-up, a first inference and a row come before the five runs.
    assert {op.calls for op in found.profile} == {8}
    assert all(op.on == "CPUExecutionProvider" for op in found.profile)
    assert not list((found.folder).glob("profile*"))


def test_litert_says_why_it_has_no_profile(tflite_file, tmp_path):
    found = real(tflite_file, tmp_path, profile=True)
    assert found.profile == ()
    assert "gives no access" in found.profile_missing


def test_a_silent_fallback_is_seen(onnx_file, tmp_path):
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider that takes no operator")
    found = real(onnx_file, tmp_path, accelerator="azure")
    assert set(found.placement) == {"CPUExecutionProvider"}
    options = BenchOptions(accelerator="azure", fail_on_fallback=True)
    m = benching.fallen_back(PLACE, found, options)
    assert (m.outcome, m.value) == ("fail", sum(found.placement.values()))


def test_litert_tells_which_operators_its_delegate_took(tflite_file, tmp_path):
    found = real(tflite_file, tmp_path, accelerator="xnnpack")
    assert found.placement == {"xnnpack": 1, "cpu": 1}  # the cast from uint8 stays
    assert real(tflite_file, tmp_path, accelerator="cpu").placement == {"xnnpack": 0, "cpu": 2}


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_an_accelerator_that_is_not_there_is_named_with_those_that_are(kind, request, tmp_path):
    model = request.getfixturevalue(f"{kind}_file")
    with pytest.raises((DeviceError, BundleError), match=r"no 'nnapi' here, it has .*cpu"):
        real(model, tmp_path, accelerator="nnapi")


def test_a_duty_cycle_rests_and_its_rests_are_not_measured(onnx_file, tmp_path):
    began = time.monotonic()
    found = real(onnx_file, tmp_path, duty=0.2, min_runs=1, min_s=0.3)
    busy_s = found.latency_ns.sum() / 1e9
    assert busy_s >= 0.3
    (first, _), (last, runs) = found.marks[0], found.marks[-1]
    assert runs == len(found.latency_ns)
    # A fifth of the time, or less on a busy machine; never more.
    assert time.monotonic() - began > last - first > 3 * 0.3


def test_blocks_run_in_order_each_in_a_folder_of_its_own_and_resume(onnx_file, tmp_path):
    load = Load(onnx_file, "onnx", tiny_pixels(1))
    ask = {"folder": tmp_path / "o", "plan": PLAN}
    done = []
    ran = alternate(
        open_device("local"), {"A": load, "B": load}, ["ABBA"], **ask,
        on_block=lambda: done.append(1),
    )  # fmt: skip
    assert "".join(b.arm for b in ran.groups[0]) == "ABBA"
    assert len(done) == 4
    folders = {r.folder for r in ran.results[0]}
    assert len(folders) == 4
    again = alternate(open_device("local"), {"A": load, "B": load}, ["ABBA"], **ask, resume=True)
    for before, after in zip(ran.groups[0], again.groups[0], strict=True):
        np.testing.assert_array_equal(before.latency_ns, after.latency_ns)
    ask["plan"] = dataclasses.replace(PLAN, min_runs=0)
    with pytest.raises(ConfigError, match="min_runs above 0"):
        alternate(open_device("local"), {"A": load, "B": load}, ["ABBA"], **ask)


# -- what becomes of it ---------------------------------------------------------------------------


def test_first_and_last_minute_are_those_of_the_devices_clock():
    # A run a second in the first minute, then ten a second.
    latency_ns = np.concatenate([np.full(60, 10), np.full(1000, 20), np.full(600, 40)])
    marks = ((5.0, 0), (65.0, 60), (165.0, 1060), (225.0, 1660))
    first, last = minutes(latency_ns, marks)
    assert (len(first), set(first.tolist())) == (60, {10})
    assert (len(last), set(last.tolist())) == (600, {40})


def test_of_less_than_two_minutes_there_are_halves():
    first, last = minutes(np.arange(10), ((0.0, 0), (20.0, 10)))
    assert (first.tolist(), last.tolist()) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])


@pytest.mark.parametrize("marks", [(), ((0.0, 0),), ((3.0, 0), (3.0, 10)), ((0.0, 0), (9.0, 99))])
def test_without_times_there_are_no_minutes_and_the_number_is_invalid(marks):
    assert minutes(np.arange(10), marks) is None
    (m,) = benching.sustained(PLACE, result(marks=marks))
    assert m.doubt.startswith("invalid")


def test_a_device_that_slows_down_shows_it():
    latency_ns = np.array([100] * 50 + [150] * 50, np.int64)
    rows = benching.sustained(PLACE, result(latency_ns=latency_ns, marks=((0.0, 0), (100.0, 100))))
    assert [m.value for m in rows] == pytest.approx([1e-4, 1.5e-4, 1.5])


def test_the_curve_of_a_sustained_run_is_the_median_of_each_stretch_of_time():
    latency_ns = np.array([1e6] * 50 + [2e6] * 50).astype(np.int64)
    # The second half of the runs takes three times as long as the first.
    marks = ((10.0, 0), (35.0, 50), (110.0, 100))
    found = benching.pace(latency_ns, marks, parts=4)
    assert found["sustained_s"] == [12.5, 37.5, 62.5, 87.5]
    assert found["sustained_ms"] == [1.0, 2.0, 2.0, 2.0]
    assert benching.pace(latency_ns, ()) == {}
    assert benching.pace(latency_ns[:99], marks) == {}
    # Fewer runs than parts: a stretch without a run is left out, not made up.
    few = benching.pace(latency_ns[:2], ((0.0, 0), (100.0, 2)), parts=10)
    assert few["sustained_ms"] == [1.0, 1.0]


def test_a_sustained_plan_counts_running_time_only():
    plan = BenchOptions(sustained_min=10, duty=0.25).plan()
    assert (plan.min_s, plan.duty) == (150, 0.25)
    assert plan.timeout_s > 600


@pytest.mark.parametrize(
    "wrong",
    [
        {"duty": 0.5},
        {"duty": 0.0, "sustained_min": 1.0},
        {"sustained_min": -1.0},
        {"fail_on_fallback": True},
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(ConfigError):
        BenchOptions(**wrong)


def test_a_placement_that_is_not_known_is_neither_passed_nor_failed():
    options = BenchOptions(accelerator="nnapi", fail_on_fallback=True)
    assert benching.fallen_back(PLACE, result(), options).outcome == "inconclusive"
    placed = result(placement={"NnapiExecutionProvider": 9})
    assert benching.fallen_back(PLACE, placed, options).outcome == "pass"


def test_the_host_times_its_own_preprocessing():
    m = benching.preprocessing(exporting.bundle(), repeats=2)
    assert (m.name, m.unit, m.n) == ("preprocess_p50", "ms", 2)
    assert m.value > 0


# -- comparing ------------------------------------------------------------------------------------


def comparison(b: int = 1000, **how):
    groups = [
        [Block(arm, np.full(20, 1000 if arm == "A" else b, np.int64)) for arm in order]
        for order in orders(15, 0)
    ]
    return compare(groups, 0.05, **how)


def sides():
    load = Load(Path("m.onnx"), "onnx", tiny_pixels(1))
    return (contest.Side(load, f"file {x}", "int8", x * 64) for x in "ab")


def report_of(found) -> Report:
    return contest.reported(*sides(), found, "local", {"threads": "1"}, contest.ContestOptions())


@pytest.mark.parametrize(
    ("b", "verdict", "code"), [(1000, "pass", 0), (1040, "pass", 0), (1100, "fail", 1)]
)
def test_a_comparison_ends_in_the_verdict_of_its_interval(b, verdict, code, tmp_path):
    found = comparison(b)
    report = report_of(found)
    assert (report.verdict, EXIT_CODES[report.verdict]) == (verdict, code)
    assert contest.outcome(found) == verdict
    jsonschema.validate(report.to_json(), SCHEMA)
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


def test_numbers_of_an_invalid_run_are_shown_as_invalid_everywhere(capsys):
    from rich.console import Console

    report = report_of(comparison(1100, emulated="emulated device: its times say nothing"))
    assert EXIT_CODES[report.verdict] == 3
    value = report.to_json()
    jsonschema.validate(value, SCHEMA)
    assert {m["doubt"].partition(":")[0] for m in value["measurements"]} == {"invalid"}
    terminal.show(report, Console(highlight=False))
    shown = [capsys.readouterr().out]
    terminal.show(report, Console(highlight=False, force_terminal=True, width=200))
    shown += [capsys.readouterr().out, html.render(report), markdown.render(report)]
    for text in shown:
        assert "(invalid)" in text
        assert "its times say nothing" in text
    assert "its times say nothing" in junit.render(report)


def test_the_page_draws_every_group_and_the_margin():
    page = html.render(report_of(comparison(1100)))
    assert "Is B slower than A" in page
    assert "B over A 1.100" in page


def test_an_invalid_number_passes_no_limit_and_fails_none():
    m = dataclasses.replace(PLACE.measured("latency_p50", 1.0, "ms"), doubt="invalid: emulated")
    for bound in (0.5, 2.0):
        assert Limit("latency_p50", at_most=bound).judge(m) == "inconclusive"
    noisy = dataclasses.replace(m, doubt="noisy: 50 %")
    assert Limit("latency_p50", at_most=0.5).judge(noisy) == "fail"


def test_what_disturbed_any_block_is_told():
    calm = result(conditions=Conditions())
    hot = result(conditions=Conditions(firmware="throttled, says the firmware", restarts=1))
    assert contest.disturbance([calm, calm]) == ("", "")
    said, emulated = contest.disturbance([calm, hot])
    assert said == "throttled, says the firmware; workers were restarted 1 times"
    assert emulated == ""
    elsewhere = result(conditions=Conditions(execution="emulated"))
    assert "emulated device" in contest.disturbance([elsewhere])[1]


def test_options_of_a_comparison_that_cannot_be_are_refused():
    for wrong in ({"length": "eternal"}, {"margin": 1.0}, {"margin": float("nan")}):
        with pytest.raises(ConfigError):
            contest.ContestOptions(**wrong)


# -- the command ----------------------------------------------------------------------------------


def call(*arguments: object):
    done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_a_bundle_needs_no_subcommand():
    assert "Measure load time" in call("--help").stdout
    with pytest.raises(BundleError, match="no-such-folder"):
        call("no-such-folder")
    with pytest.raises(BundleError, match="no-such-folder"):
        call("--quiet", "no-such-folder")


@pytest.mark.slow
@pytest.mark.toolchain
def test_the_command_measures_keeps_a_baseline_and_runs_it_again(tmp_path):
    pytest.importorskip("onnxruntime")
    bundle, _ = exporting.exported("onnx", ("fp32", "fp16"))
    book, out = tmp_path / "h.db", tmp_path / "out"
    common = ("-q", "--length", "quick", "--history", book)
    done = call(
        bundle.root, "-p", "fp16", "--save", "gold", "--accelerator", "cpu", "--profile",
        "--fail-on-fallback", "-o", out, "--json", *common,
    )  # fmt: skip
    value = json.loads(done.stdout)
    assert (done.exit_code, value["verdict"]) == (0, "pass")
    names = {m["name"] for m in value["measurements"]}
    assert {"preprocess_p50", "load_time", "first_latency", "operators_fallen_back"} <= names
    assert len(list((out / "profile").glob("*.json"))) == 1

    done = call(bundle.root, "-p", "fp16", "--baseline", "gold", "-o", out, "--json", *common)
    value = json.loads(done.stdout)
    assert done.exit_code == EXIT_CODES[value["verdict"]]
    raw = json.loads((out / "comparison.json").read_text())
    assert [len(x) for x in raw["orders"]] == [4] * 6
    assert raw["sha256"]["A"] == raw["sha256"]["B"]
    (ratio,) = (m for m in value["measurements"] if m["name"] == "latency_ratio")
    assert ratio["ci"][0] <= ratio["value"] <= ratio["ci"][1]

    listed = json.loads(call("list", "--history", book, "--json").stdout)["runs"]
    assert [(r["kind"], r["baseline"]) for r in listed] == [("measure", "gold"), ("compare", "")]
    with pytest.raises(ConfigError, match="choose one with --format and --precision"):
        call(bundle.root, "--against", bundle.root, "-o", out, *common)
    with pytest.raises(ConfigError, match="not both"):
        call(bundle.root, "--against", bundle.root, "--baseline", "gold", *common)
