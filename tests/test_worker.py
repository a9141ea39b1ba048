"""The far end, in Python and in C, run as it is on a device: one process, one run folder."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import (
    DIM,
    SCALES,
    SIZE,
    ZERO,
    fake_answers,
    put_fake_runtime,
    tiny_answers,
    tiny_codes,
    tiny_pixels,
    write_onnx,
    write_tflite,
)

from hetero.devices import _native
from hetero.devices._protocol import Reader

WORKER = Path(__file__).parent.parent / "devices" / "_worker.py"
GOLDEN = Path(__file__).parent / "golden"
FIXED_RUNS = {"warmup_runs": 1, "warmup_s": 0, "min_runs": 3, "min_s": 0, "max_s": 60, "beat_s": 60}
NO_RUNS = {**FIXED_RUNS, "min_runs": 0}
COMMAND: list[str] = []


def pytest_generate_tests(metafunc):
    """Every test is one of both workers; where a runtime misbehaves, it is a Python module's."""
    kinds = ["python"] if "fake" in metafunc.fixturenames else ["python", "native"]
    metafunc.parametrize("worker", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def worker(request):
    """Which one; `start` runs it."""
    COMMAND[:] = [sys.executable, str(WORKER)]
    if request.param == "native":
        COMMAND[:] = [str(native_worker())]
    return request.param


def native_worker() -> Path:
    """The program that is shipped for this machine."""
    path = _native.FOLDER / f"hetero-worker-{platform.machine()}"
    if sys.platform != "linux" or not path.is_file():
        pytest.skip(f"there is no native worker for {sys.platform} on {platform.machine()}")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def order(run: Path, model: Path, inputs: np.ndarray, runtime: str, plan: dict, **changed) -> Path:
    """A run folder with a job in it."""
    run.mkdir()
    (run / "inputs.bin").write_bytes(inputs.tobytes())
    job = {
        "version": 1,
        "runtime": runtime,
        "model": {"file": str(model), "sha256": sha256(model)},
        "inputs": {
            "file": "inputs.bin",
            "sha256": sha256(run / "inputs.bin"),
            "dtype": inputs.dtype.name,
            "shape": list(inputs.shape),
        },
        "threads": 1,
        "plan": plan,
        **changed,
    }
    (run / "job.json").write_text(json.dumps(job))
    return run


def start(run: Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
    with (run / "stdout.txt").open("ab") as out, (run / "stderr.txt").open("ab") as err:
        return subprocess.Popen(
            [*COMMAND, str(run)],
            env={**os.environ, **_native.libraries(), **(environment or {})},
            stdout=out,
            stderr=err,
        )


def work(run: Path, environment: dict[str, str] | None = None) -> list[dict]:
    """The events of a worker that has ended."""
    start(run, environment).wait(timeout=60)
    return events(run)


def events(run: Path) -> list[dict]:
    return [sent for sent, _ in Reader().feed((run / "log.jsonl").read_bytes())]


def names(found: list[dict]) -> list[str]:
    return [x["hetero"] for x in found if x["hetero"] not in ("telemetry", "beat")]


def outputs(run: Path, dim: int = DIM) -> np.ndarray:
    return np.fromfile(run / "out.bin", "<f4").reshape(-1, dim)


def times(run: Path) -> np.ndarray:
    return np.fromfile(run / "lat.bin", "<i8")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return write_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="module")
def tflite_file(tmp_path_factory, worker):
    pytest.importorskip("ai_edge_litert")
    if worker == "native":
        pytest.importorskip("pymicro_wakeword")
    return write_tflite(tmp_path_factory.mktemp("tflite") / "tiny.tflite")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, onnx_file, worker):
    """A run folder with five rows and three measured runs."""
    run = tmp_path_factory.mktemp("finished") / "run"
    work(order(run, onnx_file, tiny_pixels(5), "onnxruntime", FIXED_RUNS))
    return run


@pytest.fixture
def fake(tmp_path):
    """A model file for the fake runtime, whose content does not matter."""
    path = tmp_path / "any.onnx"
    path.write_bytes(b"any")
    return path


# -- it is one file -------------------------------------------------------------------------------


def test_the_worker_needs_nothing_but_the_standard_library_numpy_and_a_runtime():
    tree = ast.parse(WORKER.read_text(), feature_version=(3, 9))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [x.name for x in node.names] if isinstance(node, ast.Import) else [node.module]
        )
    }
    runtimes = {"onnxruntime", "ai_edge_litert", "coremltools"}
    # In which coremltools takes pictures.
    assert imported - set(sys.stdlib_module_names) == {"numpy", *runtimes, "PIL"}


# -- right answers --------------------------------------------------------------------------------


def test_onnx_rows_are_the_matrix_product(tmp_path, onnx_file):
    pixels = tiny_pixels(3)
    found = work(order(tmp_path / "run", onnx_file, pixels, "onnxruntime", FIXED_RUNS))
    np.testing.assert_allclose(
        outputs(tmp_path / "run"), tiny_answers(pixels), rtol=1e-5, atol=1e-2
    )
    assert names(found)[-1] == "done"
    assert len(times(tmp_path / "run")) == 3 + 3
    assert (times(tmp_path / "run") > 0).all()


def test_tflite_rows_are_the_matrix_product(tmp_path, tflite_file):
    pixels = tiny_pixels(3)
    work(order(tmp_path / "run", tflite_file, pixels, "litert", FIXED_RUNS))
    np.testing.assert_allclose(
        outputs(tmp_path / "run"), tiny_answers(pixels), rtol=1e-5, atol=1e-2
    )


def test_float_inputs_go_to_a_float_model(tmp_path, onnx_file):
    model = write_onnx(tmp_path / "float.onnx", dtype="float32")
    inputs = np.random.default_rng(2).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    work(order(tmp_path / "run", model, inputs, "onnxruntime", NO_RUNS))
    np.testing.assert_allclose(
        outputs(tmp_path / "run"), tiny_answers(inputs), rtol=1e-5, atol=1e-5
    )


def test_int8_outputs_are_dequantised_with_the_files_own_scale(tmp_path, tflite_file):
    model = write_tflite(tmp_path / "int8.tflite", dtype="int8")
    codes = np.random.default_rng(2).integers(-128, 128, (4, SIZE, SIZE, 3)).astype(np.int8)
    work(order(tmp_path / "run", model, codes, "litert", NO_RUNS))
    real = codes.reshape(4, -1).astype(np.float64) @ tiny_codes().T * SCALES[0] * SCALES[1]
    steps = outputs(tmp_path / "run") / SCALES[2]
    np.testing.assert_array_equal(steps, np.rint(steps))
    # What the 8-bit output can hold, to the nearest step.
    held = np.clip(real, (-128 - ZERO) * SCALES[2], (127 - ZERO) * SCALES[2])
    assert np.abs(outputs(tmp_path / "run") - held).max() <= 0.51 * SCALES[2]
    assert np.ptp(held) > 10 * SCALES[2]


def test_a_fixed_batch_is_run_whole_and_its_filling_is_dropped(tmp_path, onnx_file):
    model = write_onnx(tmp_path / "four.onnx", batch=4)
    pixels = tiny_pixels(6)
    found = work(order(tmp_path / "run", model, pixels, "onnxruntime", NO_RUNS))
    np.testing.assert_allclose(
        outputs(tmp_path / "run"), tiny_answers(pixels), rtol=1e-5, atol=1e-2
    )
    assert [(x["i"], x["n"]) for x in found if x["hetero"] == "run"] == [(0, 4), (4, 2)]
    spent = times(tmp_path / "run")
    assert len(spent) == 6
    assert len(set(spent[:4])) == len(set(spent[4:])) == 1


def test_a_plan_without_runs_measures_none(tmp_path, onnx_file):
    found = work(order(tmp_path / "run", onnx_file, tiny_pixels(2), "onnxruntime", NO_RUNS))
    assert "bench" not in names(found)
    assert (found[-1]["runs"], found[-1]["measured"]) == (0, 0)
    assert len(times(tmp_path / "run")) == 2


def test_done_signs_both_files(tmp_path, onnx_file):
    run = order(tmp_path / "run", onnx_file, tiny_pixels(2), "onnxruntime", FIXED_RUNS)
    done = work(run)[-1]
    for name in ("out", "lat"):
        assert done[f"{name}_sha256"] == sha256(run / f"{name}.bin")
        assert done[f"{name}_bytes"] == (run / f"{name}.bin").stat().st_size
    assert done["peak_memory_bytes"] > 1 << 20
    assert not (run / "reserve").exists()


# -- the wire, word by word -----------------------------------------------------------------------


def normalised(found: list[dict]) -> list[dict]:
    """Events without what differs from run to run and from machine to machine."""
    kinds = {int: "<int>", float: "<float>", str: "<str>", list: "<list>", dict: "<dict>"}
    kinds[type(None)] = None
    keep = {
        "hetero",
        "version",
        "worker",
        "runtime",
        "threads",
        "input_dtype",
        "input_shape",
        "dim",
    }
    keep |= {"batch", "start", "runs", "i", "n", "warmup_runs", "rows", "out_bytes", "lat_bytes"}
    keep |= {"measured", "kind"}
    nullable = {"governor", "clock_mhz"}
    return [
        {
            k: event[k] if k in keep else "<any>" if k in nullable else kinds[type(event[k])]
            for k in ["hetero", *sorted(set(event) - {"hetero"})]
        }
        for event in found
    ]


@pytest.mark.parametrize("wire", ["onnx", "tflite", "stopped", "refused", "mismatch", "resumed"])
def test_the_worker_speaks_the_golden_transcript(wire, worker, tmp_path, onnx_file, tflite_file):
    """The Python worker's is written anew, for review, with WRITE_GOLDEN=1 in the environment."""
    run, runtime = tmp_path / "run", "litert" if wire == "tflite" else "onnxruntime"
    pixels = tiny_pixels(3)
    model = {"tflite": tflite_file, "refused": tmp_path / "torn.onnx"}.get(wire, onnx_file)
    if wire == "refused":
        model.write_bytes(onnx_file.read_bytes()[:100])
    if wire == "mismatch":
        pixels = pixels[:, :, :3]
    order(run, model, pixels, runtime, FIXED_RUNS)
    if wire == "stopped":
        (run / "stop").touch()
    found = work(run)
    if wire == "resumed":
        (run / "out.bin").write_bytes((run / "out.bin").read_bytes()[:-1])
        found = work(run)
    lines = "".join(json.dumps(x) + "\n" for x in normalised(found))
    golden = GOLDEN / f"wire_{wire}.jsonl"
    if os.environ.get("WRITE_GOLDEN") and worker == "python":
        golden.write_text(lines)
    assert lines == golden.read_text().replace('"worker": "python"', f'"worker": "{worker}"')


# -- going on where another worker was killed -----------------------------------------------------


@pytest.mark.parametrize(
    ("out_bytes", "lat_bytes", "start_row", "runs"),
    [
        (0, 0, 0, 0),
        (7, 0, 0, 0),  # within the first row
        (2 * 4 * DIM, 1 * 8, 1, 0),  # a row without its time
        (2 * 4 * DIM + 19, 2 * 8, 2, 0),  # within a row
        (5 * 4 * DIM, 4 * 8 + 7, 4, 0),  # within a time
        (5 * 4 * DIM, 5 * 8, 5, 0),  # all rows, nothing measured
        (5 * 4 * DIM, 7 * 8 + 3, 5, 2),  # within a measurement
        (5 * 4 * DIM, 8 * 8, 5, 3),  # everything but the last word
        (4 * 4 * DIM, 8 * 8, 4, 0),  # a row is lost, so what came after it is not trusted
    ],
)
def test_a_worker_goes_on_at_the_first_row_that_is_not_there(
    tmp_path, finished, out_bytes, lat_bytes, start_row, runs
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    whole, before = (run / "out.bin").read_bytes(), times(run)
    (run / "out.bin").write_bytes(whole[:out_bytes])
    (run / "lat.bin").write_bytes(before.tobytes()[:lat_bytes])
    log = (run / "log.jsonl").read_bytes()
    (run / "log.jsonl").write_bytes(log[: log.index(b'"run"') + 9])  # killed within a line

    found = work(run)

    assert (run / "out.bin").read_bytes() == whole
    kept = start_row + runs
    np.testing.assert_array_equal(times(run)[:kept], before[:kept])
    assert len(times(run)) == 5 + 3
    first = [x for x in found if x["hetero"] == "first"][-1]
    assert (first["start"], first["runs"]) == (start_row, runs)
    assert [x["i"] for x in found if x["hetero"] == "run"] == list(range(start_row, 5))
    assert [x["hetero"] for x in found].count("hello") == 2
    assert found[-1]["hetero"] == "done"
    assert found[-1]["measured"] == 3 - runs


def test_a_fixed_batch_goes_on_at_a_whole_batch(tmp_path, onnx_file):
    pixels = tiny_pixels(6)
    model = write_onnx(tmp_path / "four.onnx", batch=4)
    run = order(tmp_path / "run", model, pixels, "onnxruntime", NO_RUNS)
    work(run)
    os.truncate(run / "out.bin", 5 * 4 * DIM)
    found = work(run)
    assert [x["start"] for x in found if x["hetero"] == "first"] == [0, 4]
    np.testing.assert_allclose(outputs(run), tiny_answers(pixels), rtol=1e-5, atol=1e-2)


def test_two_workers_never_share_a_folder(tmp_path, fake):
    hang = put_fake_runtime(tmp_path / "fake", at=2, do="hang")
    run = order(tmp_path / "run", fake, tiny_pixels(3), "onnxruntime", NO_RUNS)
    first = start(run, hang)
    try:
        wait_for(run, '"i": 0')
        assert work(run, hang)[-1]["kind"] == "busy"
        assert int((run / "pid").read_text()) == first.pid
    finally:
        first.kill()
        first.wait()


def wait_for(run: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    log = run / "log.jsonl"
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, f"no {text} in the log"
        time.sleep(0.01)


# -- stopping, living, telling --------------------------------------------------------------------


def test_a_stop_file_ends_the_work_between_two_rows(tmp_path, fake):
    wait = put_fake_runtime(tmp_path / "fake", at="never", do="hang")
    run = order(tmp_path / "run", fake, tiny_pixels(3), "onnxruntime", {**FIXED_RUNS, "min_s": 60})
    worker = start(run, wait)
    wait_for(run, '"bench"')
    (run / "stop").touch()
    worker.wait(timeout=30)
    last = events(run)[-1]
    assert (last["hetero"], last["rows"]) == ("stopped", 3)
    assert last["runs"] == len(times(run)) - 3
    (run / "stop").unlink()


def test_a_worker_beats_while_its_runtime_hangs(tmp_path, fake):
    hang = put_fake_runtime(tmp_path / "fake", at=2, do="hang")
    plan = {**NO_RUNS, "beat_s": 0.05}
    run = order(tmp_path / "run", fake, tiny_pixels(3), "onnxruntime", plan)
    worker = start(run, hang)
    try:
        wait_for(run, '"phase": "embed", "rows": 1')
    finally:
        worker.kill()
        worker.wait()


def test_chatter_of_a_runtime_stays_out_of_the_log(tmp_path, fake):
    calm = put_fake_runtime(tmp_path / "fake")
    run = order(tmp_path / "run", fake, tiny_pixels(2), "onnxruntime", NO_RUNS)
    work(run, calm)
    assert "chatter" not in (run / "log.jsonl").read_text()
    assert "chatter on stdout" in (run / "stdout.txt").read_text()
    assert "chatter on stderr" in (run / "stderr.txt").read_text()
    np.testing.assert_array_equal(outputs(run, 3), fake_answers(tiny_pixels(2)))


def test_onnxruntime_leaves_nothing_in_the_home_folder(tmp_path, onnx_file):
    home = tmp_path / "home"
    home.mkdir()
    run = order(tmp_path / "run", onnx_file, tiny_pixels(1), "onnxruntime", NO_RUNS)
    caches = {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "ORT_DISABLE_TELEMETRY": "0",
    }
    assert work(run, caches)[-1]["hetero"] == "done"
    assert list(home.rglob("*")) == []


def test_probe_tells_of_the_machine_on_one_marked_line(tmp_path):
    call, more = [*COMMAND, "--probe", str(tmp_path)], {**os.environ, **_native.libraries()}
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=more)
    lines = done.stdout.splitlines()
    (found,) = [json.loads(x) for x in lines if '"hetero"' in x]
    assert found["hetero"] == "probe"
    assert found["cpus"] == os.cpu_count()
    assert found["disk_free_bytes"] > 0


# -- every foreseen error has its kind ------------------------------------------------------------


def test_a_torn_onnx_file_is_refused_by_its_runtime(tmp_path, onnx_file):
    (tmp_path / "torn.onnx").write_bytes(onnx_file.read_bytes()[:-50])
    run = order(tmp_path / "run", tmp_path / "torn.onnx", tiny_pixels(1), "onnxruntime", NO_RUNS)
    assert work(run)[-1]["kind"] == "model-refused"


def test_a_torn_tflite_file_is_refused_by_its_runtime(tmp_path, tflite_file):
    (tmp_path / "torn.tflite").write_bytes(tflite_file.read_bytes()[:-50])
    run = order(tmp_path / "run", tmp_path / "torn.tflite", tiny_pixels(1), "litert", NO_RUNS)
    assert work(run)[-1]["kind"] == "model-refused"


def test_a_model_with_two_outputs_is_refused(tmp_path, onnx_file):
    model = write_onnx(tmp_path / "two.onnx", outputs=2)
    last = work(order(tmp_path / "run", model, tiny_pixels(1), "onnxruntime", NO_RUNS))[-1]
    assert (last["kind"], "2 outputs" in last["text"]) == ("model-refused", True)


def test_a_model_whose_output_is_no_row_is_refused(tmp_path, onnx_file):
    model = write_onnx(tmp_path / "map.onnx", flat=False)
    last = work(order(tmp_path / "run", model, tiny_pixels(1), "onnxruntime", NO_RUNS))[-1]
    assert last["kind"] == "model-refused"
    assert f"[1, {SIZE}, {SIZE}, 3], expected float32 [1, dim]" in last["text"]


@pytest.mark.parametrize(
    "inputs",
    [tiny_pixels(2).astype(np.float32), tiny_pixels(2)[:, :3], tiny_pixels(2).reshape(2, -1)],
)
def test_inputs_that_do_not_fit_are_named_beside_what_would(tmp_path, onnx_file, inputs):
    last = work(order(tmp_path / "run", onnx_file, inputs, "onnxruntime", NO_RUNS))[-1]
    assert last["kind"] == "input-mismatch"
    assert f"uint8 [None, {SIZE}, {SIZE}, 3]" in last["text"]
    assert f"{inputs.dtype.name} {[1, *inputs.shape[1:]]}" in last["text"]


def test_int8_inputs_do_not_go_to_a_uint8_model(tmp_path, tflite_file):
    inputs = tiny_pixels(1).astype(np.int8)
    last = work(order(tmp_path / "run", tflite_file, inputs, "litert", NO_RUNS))[-1]
    assert last["kind"] == "input-mismatch"


def test_a_runtime_that_does_not_load_is_told_from_a_model_that_does_not(tmp_path, fake):
    broken = put_fake_runtime(tmp_path / "fake", at="import")
    last = work(order(tmp_path / "run", fake, tiny_pixels(1), "onnxruntime", NO_RUNS), broken)[-1]
    assert last["kind"] == "runtime-missing"
    assert "GLIBC_9.99" in last["text"]
    assert "-m pip install onnxruntime" in last["text"]


@pytest.mark.parametrize("what", ["model", "inputs"])
def test_a_file_that_is_not_what_was_sent_is_not_used(tmp_path, fake, what):
    calm = put_fake_runtime(tmp_path / "fake")
    run = order(tmp_path / "run", fake, tiny_pixels(1), "onnxruntime", NO_RUNS)
    job = json.loads((run / "job.json").read_text())
    job[what]["sha256"] = "0" * 64
    (run / "job.json").write_text(json.dumps(job))
    assert work(run, calm)[-1]["kind"] == "file-torn"
    assert rows_kept(run) == 0


def rows_kept(run: Path) -> int:
    """Bytes of rows and times in a run folder."""
    return sum((run / x).stat().st_size for x in ("out.bin", "lat.bin") if (run / x).exists())


def test_rows_of_inputs_with_a_turned_bit_are_thrown_away_and_computed_anew(tmp_path, fake):
    calm, pixels = put_fake_runtime(tmp_path / "fake"), tiny_pixels(5)
    run = order(tmp_path / "run", fake, pixels, "onnxruntime", NO_RUNS)
    stored = run / json.loads((run / "job.json").read_text())["inputs"]["file"]
    whole = stored.read_bytes()
    stored.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert work(run, calm)[-1]["kind"] == "file-torn"
    assert rows_kept(run) == 0
    stored.write_bytes(whole)
    events = work(run, calm)
    assert [e["start"] for e in events if e["hetero"] == "first"][-1] == 0
    assert events[-1]["hetero"] == "done"
    other = order(tmp_path / "other", fake, pixels, "onnxruntime", NO_RUNS)
    work(other, calm)
    assert (run / "out.bin").read_bytes() == (other / "out.bin").read_bytes()


def test_a_job_of_another_version_is_not_guessed_at(tmp_path, fake):
    run = order(tmp_path / "run", fake, tiny_pixels(1), "onnxruntime", NO_RUNS, version=2)
    assert work(run)[-1]["kind"] == "version"


@pytest.mark.parametrize(
    ("at", "do", "kind"),
    [("load", "fail", "model-refused"), (0, "fail", "model-refused"), (2, "fail", "run-failed"),
     ("load", "memory", "out-of-memory"), (2, "memory", "out-of-memory")],
)  # fmt: skip
def test_a_failing_runtime_is_told_by_where_it_failed(tmp_path, fake, at, do, kind):
    fault = put_fake_runtime(tmp_path / "fake", at=at, do=do)
    last = work(order(tmp_path / "run", fake, tiny_pixels(3), "onnxruntime", NO_RUNS), fault)[-1]
    assert last["kind"] == kind
    assert "\n" not in last["text"]
