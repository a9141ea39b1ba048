"""The host's end, against a device that misbehaves and against workers that are really killed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import (
    HELLO,
    FakeDevice,
    fake_answers,
    line,
    put_fake_runtime,
    raw_files,
    tiny_answers,
    tiny_pixels,
    transcript,
    write_onnx,
    write_tflite,
)
from hypothesis import given
from hypothesis import strategies as st

from hetero.devices import Plan, examine, names, open_device, run, timing
from hetero.devices._doctor import judge
from hetero.devices._protocol import Reader, TornError
from hetero.errors import BundleError, ConfigError, DeviceError, HeteroError, Interrupted

OUTPUTS = np.arange(6, dtype=np.float32).reshape(3, 2)
PIXELS = tiny_pixels(3)
#: Waits in tenths of seconds, so that giving up is quick.
HASTY = Plan(
    warmup_runs=0, warmup_s=0, min_runs=3, min_s=0, max_s=60, timeout_s=20,
    heartbeat_s=0.1, stall_s=0.3, beat_s=0.05, restarts=1, reconnect_s=0.5,
)  # fmt: skip
#: The same for real processes on a loaded machine.
PATIENT = dataclasses.replace(HASTY, heartbeat_s=10, stall_s=60, timeout_s=120, beat_s=2)


@pytest.fixture
def model(tmp_path):
    """A model file for devices and runtimes that do not look into it."""
    path = tmp_path / "any.onnx"
    path.write_bytes(b"any")
    return path


def ask(device, model, folder, plan=HASTY, inputs=PIXELS, **more):
    return run(device, model, "onnx", inputs, folder=folder / "out", plan=plan, **more)


def good(*, runs: int = 3, **changed) -> FakeDevice:
    return FakeDevice([transcript(OUTPUTS, runs, **changed)], raw_files(OUTPUTS, runs))


# -- what comes back ------------------------------------------------------------------------------


def test_outputs_and_every_latency_come_back_as_they_were_written(tmp_path, model):
    result = ask(good(), model, tmp_path)
    np.testing.assert_array_equal(result.outputs, OUTPUTS)
    assert result.latency_ns.tolist() == [100, 101, 102]
    assert result.embed_ns.tolist() == [10, 11, 12]
    assert (result.load_ns, result.first_ns) == (6, 7)
    assert result.facts["runtime_version"] == "9.9"
    assert result.facts["features"] == "dotprod"
    assert result.facts["temperature_max_c"] == "51.5"
    assert result.conditions.switches_per_run == pytest.approx(1.0)
    assert timing(result).p50_ns == 101


def test_raw_files_are_on_disk_before_anything_is_judged(tmp_path, model):
    result = ask(good(), model, tmp_path)
    found = {x.name for x in result.folder.iterdir()}
    assert {"job.json", "out.bin", "lat.bin", "log.jsonl"} <= found


def test_rows_that_are_not_finite_come_back_too(tmp_path, model):
    odd = np.array([[np.nan, 0], [np.inf, 1], [-0.0, 2]], np.float32)
    result = ask(FakeDevice([transcript(odd)], raw_files(odd)), model, tmp_path)
    np.testing.assert_array_equal(result.outputs, odd)


def test_an_emulated_devices_times_are_marked(tmp_path, model):
    device = good()
    device.execution = "emulated"
    assert timing(ask(device, model, tmp_path)).validity == "emulated"


def test_model_and_inputs_go_by_their_hash_and_only_if_they_are_not_there(tmp_path, model):
    device = good()
    ask(device, model, tmp_path)
    job = json.loads((next((tmp_path / "out").glob("fake-*")) / "job.json").read_text())
    hashes = [(f"store/{job[x]['sha256']}", False) for x in ("model", "inputs")]
    sent = [(name.rpartition(".")[0], again) for name, again in device.puts]
    assert sent[:2] == hashes


def test_progress_is_told_event_by_event(tmp_path, model):
    seen = []
    ask(good(), model, tmp_path, on_event=lambda event: seen.append(event["hetero"]))
    assert seen == ["hello", "ready", "first", "run", "run", "run", "bench", "telemetry", "done"]


# -- a log that is hard to read -------------------------------------------------------------------


def test_chatter_between_the_events_is_ignored(tmp_path, model):
    noise = [
        b"INFO: Created XNNPACK delegate\n",
        b'{"level": "warn"}\n',
        b'["hetero"]\n',
        b"\xff\n",
    ]
    noise += [b'{"hetero": 3}\n', b'{"hetero": "done", "rows": \n', line("future", x=1), b"\n"]
    steps = [piece for event in transcript(OUTPUTS) for piece in (*noise, event)]
    plan = dataclasses.replace(HASTY, stall_s=20)
    result = ask(FakeDevice([steps], raw_files(OUTPUTS)), model, tmp_path, plan)
    np.testing.assert_array_equal(result.outputs, OUTPUTS)


@given(st.lists(st.integers(0, 2000), max_size=30), st.randoms())
def test_it_does_not_matter_where_the_log_is_cut(cuts, luck):
    noise = [b"chatter\n", b'{"a": "hetero"}\n', b"\x00\xff\n"]
    log = b"".join(x + luck.choice(noise) for x in transcript(OUTPUTS))
    edges = sorted({0, len(log), *(x for x in cuts if x < len(log))})
    reader = Reader()
    pieces = [log[a:b] for a, b in itertools.pairwise(edges)]
    found = [event for piece in pieces for _, event in reader.feed(piece)]
    assert found == [event for _, event in Reader().feed(log)]
    assert [type(x).__name__ for x in found][-1] == "Done"
    assert reader.offset == len(log)


@given(st.binary(max_size=200), st.integers(0, 10**6))
def test_no_bytes_at_all_break_the_reader(noise, seed):
    log = bytearray(b"".join(transcript(OUTPUTS)))
    luck = random.Random(seed)
    for byte in noise:
        log[luck.randrange(len(log))] = byte
    with contextlib.suppress(TornError):
        list(Reader().feed(bytes(log)))


def test_an_event_without_its_fields_is_named(tmp_path, model):
    device = FakeDevice([[line("hello", **HELLO), line("ready", provider="x", load_ns=-1)]])
    with pytest.raises(DeviceError, match=r"^fake:one: its worker sent 'ready' with a wrong field"):
        ask(device, model, tmp_path)


# -- answers that must not be accepted ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rows": 2}, "after 2 of 3 rows"),
        ({"dim": 4}, "contradicts itself"),
        ({"out_bytes": 20}, "contradicts itself"),
        ({"lat_bytes": 40}, "contradicts itself"),
        ({"out_sha256": "0" * 64}, "out.bin is not what its worker signed"),
        ({"lat_sha256": "0" * 64}, "lat.bin is not what its worker signed"),
        ({"out_sha256": "zz"}, "wrong field 'out_sha256'"),
    ],
)
def test_a_done_that_does_not_fit_is_refused(tmp_path, model, changed, said):
    with pytest.raises(DeviceError, match=said) as caught:
        ask(good(**changed), model, tmp_path)
    assert str(caught.value).startswith("fake:one: ")
    assert caught.value.exit_code == 4


def test_too_few_measured_runs_are_refused(tmp_path, model):
    with pytest.raises(DeviceError, match="measured 1 of 3 runs"):
        ask(good(runs=1), model, tmp_path)


def test_files_shorter_than_signed_are_refused(tmp_path, model):
    device = good()
    device.files["out.bin"] = device.files["out.bin"][:-4]
    with pytest.raises(DeviceError, match="not what its worker signed"):
        ask(device, model, tmp_path)


def test_a_time_of_zero_is_refused(tmp_path, model):
    lat = np.array([10, 11, 12, 100, 0, 102], "<i8").tobytes()
    device = good(lat_sha256=hashlib.sha256(lat).hexdigest())
    device.files["lat.bin"] = lat
    with pytest.raises(DeviceError, match="a time of 0 ns"):
        ask(device, model, tmp_path)


def test_a_done_without_files_is_refused(tmp_path, model):
    device = good()
    device.files = {}
    with pytest.raises(DeviceError, match=r"said it was done, but there is no out\.bin"):
        ask(device, model, tmp_path)


def test_a_done_without_a_greeting_is_refused(tmp_path, model):
    device = FakeDevice([transcript(OUTPUTS)[-1:]], raw_files(OUTPUTS))
    with pytest.raises(DeviceError, match="without having said hello"):
        ask(device, model, tmp_path)


def test_a_copy_torn_on_the_way_is_fetched_again(tmp_path, model):
    device = good()
    whole = device.files["out.bin"]
    device.files["out.bin"] = whole[:-1]
    seen = []

    def mend(name):
        seen.append(name)
        if seen.count("out.bin") == 2:
            device.files["out.bin"] = whole

    device.on_get = mend
    np.testing.assert_array_equal(ask(device, model, tmp_path).outputs, OUTPUTS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"version": 2}, "speaks version 2 of the protocol, this program 1"),
     ({"runtime": "litert"}, "runs litert, the job asked for onnxruntime")],
)  # fmt: skip
def test_another_workers_greeting_is_refused_and_it_is_stopped(tmp_path, model, changed, said):
    device = FakeDevice([[line("hello", **{**HELLO, **changed})]], immortal=True)
    with pytest.raises(DeviceError, match=said):
        ask(device, model, tmp_path)
    assert device.stops == 1


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("model-refused", BundleError, "any.onnx: onnxruntime refuses it: a b"),
        ("input-mismatch", BundleError, "any.onnx: a b"),
        ("runtime-missing", DeviceError, "fake:one: runtime-missing: a b"),
        ("version", DeviceError, "fake:one: version: a b"),
        ("disk-full", DeviceError, "fake:one: its disk is full, at row 0 of 3"),
        ("out-of-memory", DeviceError, "fake:one: out-of-memory: a b"),
        ("run-failed", DeviceError, "fake:one: run-failed: a b"),
        ("something-else", DeviceError, "fake:one: something-else: a b"),
    ],
)
def test_each_error_of_a_worker_has_its_class_and_is_not_tried_again(
    tmp_path, model, kind, error, said
):
    device = FakeDevice([[line("error", kind=kind, text="a\n b")]])
    with pytest.raises(error) as caught:
        ask(device, model, tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert device.started == [True]


def test_a_runtimes_long_story_is_shortened(tmp_path, model):
    device = FakeDevice([[line("error", kind="model-refused", text="word " * 1000)]])
    with pytest.raises(BundleError) as caught:
        ask(device, model, tmp_path)
    assert len(str(caught.value)) < 400


# -- workers that die, hang or say nothing --------------------------------------------------------


def test_a_worker_that_dies_is_started_again_and_goes_on(tmp_path, model):
    dies = transcript(OUTPUTS)[:4]
    device = FakeDevice([dies, transcript(OUTPUTS, start=1)], raw_files(OUTPUTS))
    result = ask(device, model, tmp_path)
    np.testing.assert_array_equal(result.outputs, OUTPUTS)
    assert device.started == [True, False]
    assert result.facts["restarts"] == "1"
    assert timing(result).validity == "noisy"


def test_a_worker_that_dies_too_often_is_told_with_its_last_words(tmp_path, model):
    device = FakeDevice([transcript(OUTPUTS)[:5]] * 2, {"stderr.txt": b"Killed by\n the kernel\n"})
    with pytest.raises(DeviceError) as caught:
        ask(device, model, tmp_path)
    said = str(caught.value)
    assert said.startswith(
        "fake:one: its worker failed 2 times, last at row 2 of 3: its process is"
    )
    assert said.endswith("its last words: Killed by the kernel")
    assert device.started == [True, False]


def test_a_worker_that_never_begins_is_told_after_the_heartbeat(tmp_path, model):
    device = FakeDevice([])
    with pytest.raises(
        DeviceError, match=r"failed 2 times, last at row 0 of 3: .*last words: none"
    ):
        ask(device, model, tmp_path)


def test_a_worker_that_lives_and_says_nothing_is_killed(tmp_path, model):
    plan = dataclasses.replace(HASTY, heartbeat_s=0.03, stall_s=20)
    device = FakeDevice([transcript(OUTPUTS)[:3]] * 2, immortal=True)
    with pytest.raises(DeviceError, match="it said nothing for"):
        ask(device, model, tmp_path, plan)
    assert device.stops == 2


def test_a_worker_that_beats_without_getting_on_is_killed(tmp_path, model):
    beats = [line("beat", phase="embed", rows=0, runs=0)] * 1000
    device = FakeDevice([transcript(OUTPUTS)[:3] + beats] * 2)
    with pytest.raises(DeviceError, match="it lives but did nothing for"):
        ask(device, model, tmp_path)
    assert device.stops == 2


def test_beats_that_count_runs_are_progress(tmp_path, model):
    beats = [line("beat", phase="measure", rows=3, runs=i) for i in range(40)]
    steps = [*transcript(OUTPUTS)[:-1], *beats, transcript(OUTPUTS)[-1]]
    plan = dataclasses.replace(HASTY, stall_s=0.5)  # 40 looks, at least 0.02 s apart
    ask(FakeDevice([steps], raw_files(OUTPUTS)), model, tmp_path, plan)


def test_the_whole_run_has_an_end(tmp_path, model):
    beats = [line("beat", phase="measure", rows=3, runs=i) for i in range(10**4)]
    device = FakeDevice([transcript(OUTPUTS)[:6] + beats])
    with pytest.raises(DeviceError, match=r"not done within 0\.3 s, at row 3 of 3; go on with"):
        ask(device, model, tmp_path, dataclasses.replace(HASTY, timeout_s=0.3))
    assert device.stops == 1


def test_last_words_of_the_worker_before_are_not_the_new_ones(tmp_path, model):
    # It hangs, is told to stop, and says so; the next one does the work.
    late = [None, *transcript(OUTPUTS, start=1)]
    device = FakeDevice([transcript(OUTPUTS)[:4], late], raw_files(OUTPUTS))
    device.immortal = True
    stop = device.stop

    def stop_and_say(name):
        if device.alive:
            device.log += line("stopped", rows=1, runs=0)
        stop(name)

    device.stop = stop_and_say
    result = ask(device, model, tmp_path, dataclasses.replace(HASTY, heartbeat_s=0.03))
    np.testing.assert_array_equal(result.outputs, OUTPUTS)


def test_rows_of_two_runtime_versions_are_not_mixed(tmp_path, model):
    other = line("hello", **{**HELLO, "runtime_version": "10.0"})
    device = FakeDevice([transcript(OUTPUTS)[:4], [other]], raw_files(OUTPUTS))
    with pytest.raises(DeviceError, match=r"changed within the run: 9.9 on Cortex-A76, then 10.0"):
        ask(device, model, tmp_path)


def test_a_file_torn_on_the_device_is_sent_again(tmp_path, model):
    torn = line("error", kind="file-torn", text="x is not what was sent")
    device = FakeDevice([[torn], transcript(OUTPUTS)], raw_files(OUTPUTS))
    np.testing.assert_array_equal(ask(device, model, tmp_path).outputs, OUTPUTS)
    assert [again for name, again in device.puts if name.startswith("store/")] == [
        False, False, True, True,
    ]  # fmt: skip


# -- a way that is cut ----------------------------------------------------------------------------


def test_a_cut_way_is_opened_again_and_nothing_is_lost(tmp_path, model):
    steps = transcript(OUTPUTS)
    steps[3:3] = [ConnectionResetError("cable")]
    steps[6:6] = [BrokenPipeError("pipe")]
    device = FakeDevice([steps], raw_files(OUTPUTS))
    plan = dataclasses.replace(HASTY, reconnect_s=20)
    np.testing.assert_array_equal(ask(device, model, tmp_path, plan).outputs, OUTPUTS)
    assert device.connections == 3
    assert device.started == [True]


def test_a_way_cut_while_starting_does_not_start_two_workers(tmp_path, model):
    device = good()
    device.cut_start = True
    ask(device, model, tmp_path, dataclasses.replace(HASTY, reconnect_s=20))
    assert device.started == [True]


def test_a_way_that_stays_cut_is_given_up(tmp_path, model):
    device = FakeDevice([transcript(OUTPUTS)[:4] + [ConnectionResetError("unplugged")] * 100])
    with pytest.raises(DeviceError, match=r"^fake:one: cannot be reached \(unplugged\), tried for"):
        ask(device, model, tmp_path)
    assert device.stops == 0  # it may go on; the next run with resume fetches what it did


# -- stopping and going on ------------------------------------------------------------------------


def test_ctrl_c_stops_the_worker_and_says_how_to_go_on(tmp_path, model):
    device = FakeDevice([[*transcript(OUTPUTS)[:5], KeyboardInterrupt()]], immortal=True)
    with pytest.raises(
        Interrupted, match=r"fake:one: stopped at row 2 of 3; .* --resume"
    ) as caught:
        ask(device, model, tmp_path)
    assert caught.value.exit_code == 130
    assert device.stops == 1


def test_a_finished_run_is_only_verified_when_resumed(tmp_path, model):
    device = good()
    ask(device, model, tmp_path)
    again = ask(device, model, tmp_path, resume=True)
    np.testing.assert_array_equal(again.outputs, OUTPUTS)
    assert device.started == [True]


def test_a_finished_run_is_measured_anew_when_not_resumed(tmp_path, model):
    device = good()
    device.workers.append(transcript(OUTPUTS))
    ask(device, model, tmp_path)
    ask(device, model, tmp_path)
    assert device.started == [True, True]


def test_a_worker_that_outlived_its_host_is_followed_when_resumed(tmp_path, model):
    device = good()
    device.start("", fresh=True)
    result = ask(device, model, tmp_path, resume=True)
    np.testing.assert_array_equal(result.outputs, OUTPUTS)
    assert device.started == [True]


def test_a_worker_that_outlived_its_host_is_stopped_when_not_resumed(tmp_path, model):
    device = FakeDevice([[b""] * 100, transcript(OUTPUTS)], raw_files(OUTPUTS))
    device.start("", fresh=True)
    ask(device, model, tmp_path)
    assert (device.stops, device.started) == (1, [True, True])


def test_altered_results_are_not_taken_for_a_finished_run(tmp_path, model):
    device = good()
    ask(device, model, tmp_path)
    device.files["out.bin"] = b"\x01" + device.files["out.bin"][1:]
    with pytest.raises(DeviceError, match=r"not what its worker signed.*without --resume"):
        ask(device, model, tmp_path, resume=True)


def test_a_listener_that_fails_does_not_leave_a_worker_behind(tmp_path, model):
    device = FakeDevice([transcript(OUTPUTS)[:5]], immortal=True)

    def fail(event):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(device, model, tmp_path, on_event=fail)
    assert device.stops == 1


# -- arguments ------------------------------------------------------------------------------------


def test_a_format_without_a_runtime_is_refused(tmp_path, model):
    with pytest.raises(ConfigError, match="no runtime for format 'ncnn'; there are onnx, tflite"):
        run(good(), model, "ncnn", PIXELS, folder=tmp_path)


def test_inputs_of_another_dtype_or_without_rows_are_refused(tmp_path, model):
    with pytest.raises(
        ConfigError, match="inputs are float64; a worker takes uint8, int8, float32"
    ):
        ask(good(), model, tmp_path, inputs=PIXELS.astype(np.float64))
    with pytest.raises(ConfigError, match="at least one row"):
        ask(good(), model, tmp_path, inputs=PIXELS[:0])


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"gone\.onnx: cannot be read"):
        ask(good(), tmp_path / "gone.onnx", tmp_path)


def test_inputs_of_the_other_byte_order_and_stride_travel_alike(tmp_path, model):
    plain = np.arange(24, dtype="<f4").reshape(3, 2, 2, 2)
    for inputs in (plain, plain.astype(">f4"), np.asfortranarray(plain)):
        ask(good(), model, tmp_path, inputs=inputs)
    assert [x.read_bytes() for x in (tmp_path / "out" / "store").glob("*.bin")] == [plain.tobytes()]


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(Plan) if f.name not in ("accelerator", "profile")]
)
def test_a_plan_refuses_numbers_that_cannot_be(field):
    with pytest.raises(ConfigError, match=f"plan: {field} must be"):
        Plan(**{field: -1})
    if field.endswith("_s"):
        with pytest.raises(ConfigError, match=f"plan: {field} must be"):
            Plan(**{field: float("nan")})


def test_a_plan_refuses_a_duty_above_1_and_an_accelerator_that_is_no_word():
    for wrong in ({"duty": 1.5}, {"accelerator": "Core ML"}):
        with pytest.raises(ConfigError, match=f"plan: {next(iter(wrong))}"):
            Plan(**wrong)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("lokal", "unknown device 'lokal'; there are .*local"),
        ("local:threads=0", "threads must be a number of at least 1, got '0'"),
        ("local:threads=two", "got 'two'"),
        ("local:cores=2", "cannot use 'cores=2'"),
        ("local:threads=1,threads=2", "cannot use 'threads=2'"),
        ("local:threads", "cannot use 'threads'"),
        ("local:python=/nowhere/python", "is not a program on this machine"),
        ("json:x", "unknown device 'json'"),
        ("os.path:x", "no function device"),
    ],
)
def test_a_spec_that_names_no_device_is_refused(spec, said):
    with pytest.raises(ConfigError, match=said):
        open_device(spec)


def test_opening_a_device_starts_nothing_and_keeps_its_name():
    device = open_device("local:threads=2")
    assert (device.name, device.threads, device.execution) == ("local:threads=2", 2, "native")
    assert "local" in names()


# -- this machine, for real -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return write_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Gives workers on this machine the fake runtime with a fault."""

    def set_fault(**fault):
        for name, value in put_fake_runtime(tmp_path / "fake", **fault).items():
            monkeypatch.setenv(name, value)

    return set_fault


def test_two_threads_reach_the_runtime(tmp_path, onnx_file):
    result = ask(open_device("local:threads=2"), onnx_file, tmp_path, PATIENT)
    assert result.facts["threads"] == "2"
    np.testing.assert_allclose(result.outputs, tiny_answers(PIXELS), rtol=1e-5, atol=1e-2)


def test_a_worker_killed_while_embedding_loses_and_doubles_nothing(tmp_path, model, faulty):
    faulty(at=4, do="hang", once=str(tmp_path / "hung"))
    seen = []

    def kill(event):
        seen.append(event)
        if event["hetero"] == "run" and event["i"] == 2:
            os.kill(seen[0]["pid"], signal.SIGKILL)

    pixels = tiny_pixels(7)
    result = ask(open_device("local"), model, tmp_path, PATIENT, pixels, on_event=kill)

    np.testing.assert_array_equal(result.outputs, fake_answers(pixels))
    assert [x["i"] for x in seen if x["hetero"] == "run"] == list(range(7))
    assert [x["start"] for x in seen if x["hetero"] == "first"] == [0, 3]
    # The times of the first three rows are those that the killed worker measured.
    assert result.embed_ns.tolist() == [x["ns"] for x in seen if x["hetero"] == "run"]
    assert result.facts["restarts"] == "1"


def test_a_worker_killed_while_measuring_keeps_what_it_measured(tmp_path, onnx_file):
    plan = dataclasses.replace(PATIENT, min_runs=50, min_s=0.3)
    seen = []

    def kill(event):
        seen.append(event)
        if event["hetero"] == "bench" and len([x for x in seen if x["hetero"] == "hello"]) == 1:
            os.kill(seen[0]["pid"], signal.SIGKILL)

    device = open_device("local")
    result = ask(device, onnx_file, tmp_path, plan, on_event=kill)
    kept = [x["runs"] for x in seen if x["hetero"] == "first"][-1]
    done = seen[-1]
    assert len(result.latency_ns) == done["runs"] == kept + done["measured"]
    assert result.latency_ns.sum() >= 0.3e9
    np.testing.assert_allclose(result.outputs, tiny_answers(PIXELS), rtol=1e-5, atol=1e-2)


def test_a_worker_is_out_of_reach_of_the_terminals_ctrl_c(tmp_path, model, faulty):
    faulty(at=2, do="hang", once=str(tmp_path / "hung"))
    sessions = []

    def look(event):
        if event["hetero"] == "run" and not sessions:
            (log,) = (tmp_path / "out").glob("*/log.jsonl")
            pid = int((log.parent / "pid").read_text())
            sessions.append((os.getsid(pid), pid))
            os.kill(pid, signal.SIGKILL)

    ask(open_device("local"), model, tmp_path, PATIENT, on_event=look)
    ((session, pid),) = sessions
    assert session == pid != os.getsid(0)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, model, faulty):
    faulty(at="never")
    device, pixels, seen = open_device("local"), tiny_pixels(5), []

    def interrupt(event):
        if event["hetero"] == "bench":
            raise KeyboardInterrupt

    plan = dataclasses.replace(PATIENT, min_s=0.2)
    with pytest.raises(Interrupted):
        ask(device, model, tmp_path, plan, pixels, on_event=interrupt)
    result = ask(device, model, tmp_path, plan, pixels, resume=True, on_event=seen.append)
    np.testing.assert_array_equal(result.outputs, fake_answers(pixels))
    assert [x["start"] for x in seen if x["hetero"] == "first"] == [0, 5]


#: A host in a process of its own, which is killed. Arguments: repository, model, folder.
HOST = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from pathlib import Path
from fakes import tiny_pixels
from hetero.devices import open_device, run
from test_devices import PATIENT
model, folder = map(Path, sys.argv[2:])
run(open_device("local"), model, "onnx", tiny_pixels(4), folder=folder, plan=PATIENT)
"""


def test_a_worker_outlives_its_host_and_the_next_host_follows_it(tmp_path, model, faulty):
    faulty(at=3, do="hang", once=str(tmp_path / "hung"))
    folder, root = tmp_path / "out", Path(__file__).parent.parent
    host = subprocess.Popen([sys.executable, "-c", HOST, str(root), str(model), str(folder)])
    try:
        until(lambda: (tmp_path / "hung").exists())
    finally:
        host.kill()
        host.wait()
    (log,) = folder.glob("*/log.jsonl")
    orphan = next(sent["pid"] for sent, _ in Reader().feed(log.read_bytes()))
    os.kill(orphan, 0)  # it lives
    seen = []

    def release(event):
        seen.append(event)
        if event["hetero"] == "run" and event["i"] == 1:
            os.kill(orphan, signal.SIGKILL)

    result = ask(
        open_device("local"),
        model,
        tmp_path,
        PATIENT,
        tiny_pixels(4),
        resume=True,
        on_event=release,
    )
    np.testing.assert_array_equal(result.outputs, fake_answers(tiny_pixels(4)))
    greetings = [x["pid"] for x in seen if x["hetero"] == "hello"]
    assert greetings[0] == orphan
    assert len(greetings) == 2
    assert [x["start"] for x in seen if x["hetero"] == "first"] == [0, 2]


def until(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_hung_runtime_is_killed_and_tried_again(tmp_path, model, faulty):
    faulty(at=2, do="hang", once=str(tmp_path / "hung"))
    plan = dataclasses.replace(PATIENT, stall_s=1)
    result = ask(open_device("local"), model, tmp_path, plan)
    np.testing.assert_array_equal(result.outputs, fake_answers(PIXELS))
    assert result.facts["restarts"] == "1"


def test_a_runtime_that_crashes_on_a_model_is_told_as_the_models_fault(tmp_path, model, faulty):
    faulty(at="load", do="crash")
    with pytest.raises(BundleError, match=r"any\.onnx: onnxruntime .* crashes on it \(Aborted\)"):
        ask(open_device("local"), model, tmp_path, PATIENT)


def test_a_runtime_that_crashes_later_is_told_as_the_devices(tmp_path, model, faulty):
    faulty(at=2, do="crash")
    with pytest.raises(
        DeviceError, match=r"^local: its worker failed 2 times, .*last words: Fatal error: Aborted"
    ):
        ask(open_device("local"), model, tmp_path, PATIENT)


def test_a_runtime_that_is_missing_is_told_with_what_to_install(tmp_path, model, faulty):
    faulty(at="import")
    with pytest.raises(DeviceError, match=r"^local: runtime-missing: .*-m pip install onnxruntime"):
        ask(open_device("local"), model, tmp_path, PATIENT)


def test_a_truncated_model_is_one_line_with_its_own_name(tmp_path, onnx_file):
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(onnx_file.read_bytes()[:-50])
    with pytest.raises(BundleError) as caught:
        ask(open_device("local"), torn, tmp_path, PATIENT)
    assert str(caught.value).startswith(f"{torn}: onnxruntime refuses it: ")
    assert "store/" not in str(caught.value)


def test_a_truncated_tflite_model_is_one_line_with_its_own_name(tmp_path):
    pytest.importorskip("ai_edge_litert")
    torn = tmp_path / "torn.tflite"
    torn.write_bytes(write_tflite(tmp_path / "tiny.tflite").read_bytes()[:-50])
    with pytest.raises(BundleError, match=r"torn\.tflite: litert refuses it: "):
        run(open_device("local"), torn, "tflite", PIXELS, folder=tmp_path / "out", plan=PATIENT)


def test_a_stored_model_that_was_altered_is_replaced(tmp_path, model, faulty):
    faulty(at="never")
    device = open_device("local")
    ask(device, model, tmp_path, PATIENT)
    (stored,) = (tmp_path / "out" / "store").glob("*.onnx")
    stored.unlink()
    stored.write_bytes(b"yna")
    result = ask(device, model, tmp_path, PATIENT)
    assert result.facts["restarts"] == "1"
    assert stored.read_bytes() == model.read_bytes() == b"any"


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, model, faulty):
    small = tmp_path / "out"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=136k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        faulty(at="never")
        # Worker, inputs, outputs and log of 400 rows need more than there is with the ballast in.
        pixels, ballast = tiny_pixels(400), small / "ballast"
        ballast.write_bytes(bytes(32 << 10))
        device = open_device("local")
        with pytest.raises(HeteroError, match="disk is full") as caught:
            ask(device, model, tmp_path, PATIENT, pixels)
        assert isinstance(caught.value, DeviceError)
        assert "\n" not in str(caught.value)
        ballast.unlink()
        result = ask(device, model, tmp_path, PATIENT, pixels, resume=True)
        np.testing.assert_array_equal(result.outputs, fake_answers(pixels))
        assert result.facts["restarts"] != "0"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_another_python_is_used_and_named_when_it_cannot(tmp_path, model):
    useless = tmp_path / "python"
    useless.write_text("#!/bin/sh\necho no python here >&2\nexit 3\n")
    useless.chmod(0o755)
    device = open_device(f"local:python={useless}")
    plan = dataclasses.replace(HASTY, heartbeat_s=1)
    with pytest.raises(DeviceError, match="last words: no python here"):
        ask(device, model, tmp_path, plan)
    with (
        device.connect(tmp_path) as link,
        pytest.raises(DeviceError, match="exit code 3, it said: no"),
    ):
        link.probe()


# -- is the device fit for it ---------------------------------------------------------------------


def test_this_machine_is_examined_and_named_as_it_is():
    found = {name: (status, detail) for name, status, detail, _ in examine(open_device("local"))}
    assert found["python"][0] == "ok"
    assert f"{os.cpu_count()} cores" in found["processor"][1]
    assert set(found) >= {
        "onnxruntime",
        "litert",
        "governor",
        "temperature",
        "load",
        "memory",
        "disk",
    }


def test_a_device_out_of_reach_is_one_failed_check():
    ((what, status, detail, fix),) = examine(FakeDevice())
    assert (what, status) == ("device", "fail")
    assert detail == "fake:one: does not exist"
    assert fix


FACTS = {
    "python": "3.11.2", "executable": "python3", "onnxruntime": "1.32.0", "litert": "2.3.0",
    "cpu": "Cortex-A76", "cpus": 4, "features": ["asimd", "dotprod"], "governor": "performance",
    "temperatures_c": {"cpu-thermal": 50.0}, "load": 0.1, "memory_free_bytes": 4 << 30,
    "disk_free_bytes": 20 << 30,
}  # fmt: skip


def test_a_fit_device_passes_every_check():
    checks = judge(FACTS)
    assert {status for _, status, _, _ in checks} == {"ok"}
    assert [fix for *_, fix in checks] == [""] * len(checks)


@pytest.mark.parametrize(
    ("changed", "what", "status"),
    [
        ({"litert": "", "litert_missing": "none; run: pip install x"}, "litert", "warn"),
        ({"litert": "", "litert_missing": "none; run: pip install x", "onnxruntime": "",
          "onnxruntime_missing": "none; run: pip install y"}, "onnxruntime", "fail"),
        ({"features": ["avx2"]}, "processor", "warn"),
        ({"features": ["avx2", "avx_vnni"]}, "processor", "ok"),
        ({"governor": "ondemand"}, "governor", "warn"),
        ({"governor": None}, "governor", "ok"),
        ({"temperatures_c": {"a": 20, "soc": 80.0}}, "temperature", "warn"),
        ({"temperatures_c": {}}, "temperature", "ok"),
        ({"load": 3.0}, "load", "warn"),
        ({"memory_free_bytes": 200 << 20}, "memory", "warn"),
        ({"memory_free_bytes": 20 << 20}, "memory", "fail"),
        ({"memory_free_bytes": None}, "memory", "ok"),
        ({"disk_free_bytes": 50 << 20}, "disk", "fail"),
    ],
)  # fmt: skip
def test_each_weakness_is_named_with_what_to_do(changed, what, status):
    found = {name: (status, fix) for name, status, _, fix in judge({**FACTS, **changed})}
    assert found[what][0] == status
    assert bool(found[what][1]) == (status != "ok")
