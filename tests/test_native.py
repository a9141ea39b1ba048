"""The native worker beside the Python one: the same bytes, here and on an emulated ARM core."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exporting import exported
from fakes import tiny_pixels, write_onnx, write_tflite
from test_worker import FIXED_RUNS, NO_RUNS, WORKER, events, native_worker, order, outputs

from hetero.devices import Plan, _native, open_device, run
from hetero.errors import BundleError, ConfigError, DeviceError

PLAN = Plan(warmup_runs=1, warmup_s=0, min_runs=3, min_s=0, max_s=60, timeout_s=300, restarts=1)


def example(format: str, precision: str) -> tuple[Path, np.ndarray]:
    """An exported network and inputs as it takes them."""
    pytest.importorskip({"onnx": "onnxscript", "tflite": "litert_torch"}[format])
    bundle, _ = exported(format)
    item = bundle.artifact(format, precision)
    return bundle.path(item), bundle.inputs(item, bundle.probe().pixels[:12])


def both(tmp_path: Path, model: Path, inputs: np.ndarray, runtime: str) -> list[np.ndarray]:
    """The rows of the Python worker and of the native one for the same job."""
    found = []
    for name, command in (
        ("python", [sys.executable, str(WORKER)]),
        ("native", [str(native_worker())]),
    ):
        folder = order(tmp_path / name, model, inputs, runtime, NO_RUNS)
        call = [*command, str(folder)]
        subprocess.run(call, env={**os.environ, **_native.libraries()}, check=True, timeout=120)
        done = events(folder)[-1]
        assert done["hetero"] == "done", done
        found.append(outputs(folder, done["dim"]))
    return found


# -- the same bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_an_exported_network_gives_the_same_rows_in_both_workers(tmp_path, format, precision):
    pytest.importorskip("pymicro_wakeword" if format == "tflite" else "onnxruntime")
    if (format, precision) == ("tflite", "int8"):
        pytest.skip("int8 codes differ between TensorFlow Lite 2.17.1 and LiteRT 2.3: see devices")
    model, inputs = example(format, precision)
    runtime = {"onnx": "onnxruntime", "tflite": "litert"}[format]
    python, native = both(tmp_path, model, inputs, runtime)
    assert np.ptp(python) > 0
    if format == "onnx":
        np.testing.assert_array_equal(native, python)
    else:  # two versions of the library: other kernels on some processors
        np.testing.assert_allclose(native, python, rtol=0, atol=1e-5)


def test_an_8_bit_output_gives_the_same_bytes_in_both_workers(tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("pymicro_wakeword")
    model = write_tflite(tmp_path / "int8.tflite", dtype="int8")
    codes = np.random.default_rng(2).integers(-128, 128, (4, 4, 4, 3)).astype(np.int8)
    python, native = both(tmp_path, model, codes, "litert")
    np.testing.assert_array_equal(native, python)


@pytest.mark.parametrize("dtype", ["FLOAT16", "DOUBLE"])
def test_other_real_outputs_become_float32_alike(tmp_path, dtype):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = getattr(onnx.TensorProto, dtype)
    cast = onnx.helper.make_node("Cast", ["x"], ["y"], to=kind)
    ends = [
        onnx.helper.make_tensor_value_info(name, to, ["n", 4])
        for name, to in (("x", onnx.TensorProto.FLOAT), ("y", kind))
    ]
    graph = onnx.helper.make_graph([cast], "cast", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save_model(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "c.onnx"
    )
    # Whole, subnormal in half precision, beyond it, and none of these.
    inputs = np.array([[1.5, -3e-6, 7e4, 0.1], [-0.0, 6e-8, -65504, 2**-14]], np.float32)
    inputs = np.vstack([inputs, [[np.inf, np.nan, -np.inf, 1e-30]]]).astype(np.float32)
    python, native = both(tmp_path, tmp_path / "c.onnx", inputs, "onnxruntime")
    np.testing.assert_array_equal(native, python)


def test_both_workers_see_the_same_machine(tmp_path):
    seen = []
    for command in ([sys.executable, str(WORKER)], [str(native_worker())]):
        call = [*command, "--probe", str(tmp_path)]
        more = {**os.environ, **_native.libraries()}
        said = subprocess.run(call, env=more, capture_output=True, text=True, check=True).stdout
        seen.append(json.loads(said.strip().splitlines()[-1]))
    for fact in ("cpu", "cpus", "features", "system", "governor", "onnxruntime"):
        assert seen[0][fact] == seen[1][fact], fact
    assert seen[0]["temperatures_c"].keys() == seen[1]["temperatures_c"].keys()


# -- orders that cannot be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("", "worker-failed", "no JSON"),
        ("{", "worker-failed", "no JSON"),
        ("[1]", "worker-failed", "no version"),
        ('{"version": 1}', "worker-failed", "no runtime"),
        ('{"version": 1, "runtime": "x\\"y"}', "runtime-missing", "no runtime"),
        (
            '{"version": 1, "runtime": "onnxruntime", "plan": {}}',
            "worker-failed",
            "plan.warmup_runs",
        ),
        (
            '{"version": 1, "runtime": "onnxruntime", "plan": 3}',
            "worker-failed",
            "plan.warmup_runs",
        ),
        ('{"version": ' + "[" * 300 + "]" * 300 + "}", "worker-failed", "too long"),
    ],
)
def test_an_order_that_is_none_is_one_error(tmp_path, text, kind, said):
    (tmp_path / "job.json").write_text(text)
    subprocess.run([str(native_worker()), str(tmp_path)], check=True, timeout=60)
    last = events(tmp_path)[-1]
    assert (last["hetero"], last["kind"]) == ("error", kind)
    assert said in last["text"]


def test_a_library_that_is_none_is_told_with_how_to_name_one(tmp_path):
    (tmp_path / "lib.so").write_bytes(b"no library")
    model = tmp_path / "any.onnx"
    model.write_bytes(b"any")
    folder = order(tmp_path / "run", model, tiny_pixels(1), "onnxruntime", NO_RUNS)
    more = {**os.environ, "HETERO_ONNXRUNTIME": str(tmp_path / "lib.so")}
    subprocess.run([str(native_worker()), str(folder)], env=more, check=True, timeout=60)
    last = events(folder)[-1]
    assert last["kind"] == "runtime-missing"
    assert "export HETERO_ONNXRUNTIME=" in last["text"]


def test_a_call_without_a_folder_says_how_it_is_called(tmp_path):
    done = subprocess.run([str(native_worker())], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def compiled(tmp_path: Path, source: str) -> Path:
    """A library that stands in for onnxruntime's."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "fake.c").write_text(source)
    target = tmp_path / "fake.so"
    call = [compiler, "-shared", "-fPIC", "-o", str(target), str(tmp_path / "fake.c")]
    subprocess.run(call, check=True)
    return target


def test_a_runtime_that_crashes_on_a_model_is_told_as_the_models_fault(tmp_path, monkeypatch):
    native_worker()
    source = """
#include <stdlib.h>
#include <stdint.h>
static void *ok(void) { return 0; }
static void *crash(void) { abort(); }
static void *table[120];
static const void *api(uint32_t v) {
  (void)v;
  for (int i = 0; i < 120; i++) table[i] = (void *)ok;
  table[7] = (void *)crash;
  return table;
}
static const char *version(void) { return "9.9"; }
static const struct { const void *a, *b; } base = {(void *)api, (void *)version};
const void *OrtGetApiBase(void) { return &base; }
"""
    library = compiled(tmp_path, source)
    monkeypatch.setattr(_native, "libraries", lambda: {"HETERO_ONNXRUNTIME": str(library)})
    (tmp_path / "any.onnx").write_bytes(b"any")
    with pytest.raises(BundleError, match=r"any\.onnx: onnxruntime 9\.9 crashes on it \(Aborted\)"):
        run(
            open_device("local:worker=native"), tmp_path / "any.onnx", "onnx", tiny_pixels(2),
            folder=tmp_path / "out", plan=PLAN,
        )  # fmt: skip


def test_a_full_disk_is_said_and_what_was_measured_stays(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, small = write_onnx(tmp_path / "tiny.onnx"), tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        folder = order(small / "run", model, tiny_pixels(900), "onnxruntime", FIXED_RUNS)
        call, more = [str(native_worker()), str(folder)], {**os.environ, **_native.libraries()}
        subprocess.run(call, env=more, check=True, timeout=60)
        last = events(folder)[-1]
        assert (last["hetero"], last["kind"]) == ("error", "disk-full")
        rows = [x["i"] for x in events(folder) if x["hetero"] == "run"]
        assert rows == list(range(len(rows)))
        assert len(rows) > 100
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_worker_is_chosen_by_name():
    native_worker()
    assert open_device("local:worker=native").name == "local:worker=native"
    for address in ("worker=rust", "worker=native,python=python3"):
        with pytest.raises(ConfigError, match="worker must be python or native"):
            open_device(f"local:{address}")
    with pytest.raises(ConfigError, match="no native worker for m68k; there are aarch64, x86_64"):
        _native.program("m68k")


# -- what is shipped ------------------------------------------------------------------------------


@pytest.mark.toolchain
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_programs_that_are_shipped_are_those_that_the_sources_give(tmp_path, machine):
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs the compiler ziglang; run: pip install ziglang")
    call = [
        sys.executable,
        "-c",
        "import build, pathlib, sys; build.build(pathlib.Path(sys.argv[1]), sys.argv[2])",
    ]
    more = {**os.environ, "PYTHONPATH": str(_native.FOLDER), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([*call, str(tmp_path), machine], env=more, check=True, capture_output=True)
    built = (tmp_path / f"hetero-worker-{machine}").read_bytes()
    assert built == _native.program(machine).read_bytes(), (
        "run: python devices/native/build.py, with the ziglang of constraints.txt"
    )


def test_the_programs_are_small():
    sizes = {x.name: x.stat().st_size for x in _native.FOLDER.glob("hetero-worker-*")}
    assert len(sizes) == 2
    assert max(sizes.values()) < 100_000


# -- on another processor -------------------------------------------------------------------------

#: Of a Raspberry Pi 5; onnxruntime crashes where it finds no ARM core.
CPUINFO = (
    "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp "
    "cpuid asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n"
)


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """A command that runs the bundle's worker on an emulated Cortex-A76; nothing else is there."""
    if platform.machine() == "aarch64":
        pytest.skip("this machine is one")
    try:
        files, emulator = _native.bundle("aarch64"), _native.emulator()
    except (ConfigError, DeviceError) as error:
        pytest.skip(f"no ARM64 bundle to be had: {error}")
    root = tmp_path_factory.mktemp("arm")
    _native.copy(files, root / "bundle")
    cpus = root / "sys/devices/system/cpu"
    for path, text in (
        (root / "proc/cpuinfo", CPUINFO),
        *((cpus / name, "0\n") for name in ("possible", "present", "online")),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    at = root / "bundle"
    loader = [str(at / _native.LOADERS["aarch64"]), "--library-path", str(at)]
    return [
        str(emulator),
        "-cpu",
        "cortex-a76",
        "-L",
        str(root),
        *loader,
        str(at / _native.PROGRAM),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "precision", "limit"),
    [("onnx", "fp32", 1e-6), ("onnx", "int8", 3e-3), ("tflite", "fp32", 1e-6)],
)
def test_the_bundle_runs_on_arm_and_agrees_with_this_machine(
    tmp_path, arm, format, precision, limit
):
    """int8 in ONNX saturates in 16 bits on a processor without VNNI, so this machine may be off."""
    pytest.importorskip("onnxruntime" if format == "onnx" else "ai_edge_litert")
    model, inputs = example(format, precision)
    inputs, runtime = inputs[:4], {"onnx": "onnxruntime", "tflite": "litert"}[format]
    here, there = (order(tmp_path / x, model, inputs, runtime, NO_RUNS) for x in ("here", "there"))
    subprocess.run([sys.executable, str(WORKER), str(here)], check=True, timeout=120)
    subprocess.run([*arm, str(there)], check=True, timeout=500)
    done = events(there)
    assert done[-1]["hetero"] == "done", done[-1]
    assert done[0]["cpu"] == "Cortex-A76"
    assert "dotprod" in done[0]["features"]
    a, b = (outputs(x, done[-1]["dim"]).astype(np.float64) for x in (here, there))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert 1 - cosines.min() <= limit
