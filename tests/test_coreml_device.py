"""Core ML as a device: what can be shown without a Mac, by a double of Apple's own part.

See `coreml_double` for where the double begins: nothing here says anything of Apple's runtime.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from coreml_double import APPLE, put_double, write_coreml
from fakes import DIM, SIZE, tiny_answers, tiny_pixels
from test_worker import COMMAND, FIXED_RUNS, GOLDEN, WORKER, events, normalised, order, start

from hetero import devices
from hetero.devices import Plan, _doctor, _order, coreml, open_device, run
from hetero.errors import BundleError, ConfigError, DeviceError

NO_MAC = platform.system() != "Darwin"
PLAN = Plan(warmup_runs=1, warmup_s=0, min_runs=3, min_s=0, timeout_s=600, heartbeat_s=60)

without_a_mac = pytest.mark.skipif(not NO_MAC, reason="is about machines that are no Mac")
#: What the libraries warn of is theirs; coremltools leaves its folders to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]


def module(path: Path) -> types.ModuleType:
    """The worker's file, imported."""
    spec = importlib.util.spec_from_file_location("the_worker", path)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def worker():
    return module(WORKER)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("coremltools")
    return write_coreml(tmp_path_factory.mktemp("coreml") / "tiny.mlpackage")


@pytest.fixture
def double(package, monkeypatch):
    """coremltools in this process, with the double in the place of Apple's part."""
    if not NO_MAC:
        pytest.skip("on a Mac there is the real one; run: pytest tests/test_device_contract.py")
    from coremltools.models import compute_device, compute_plan, model

    made = types.ModuleType("coremltools.libcoremlpython")
    exec(compile(APPLE, "the double", "exec"), made.__dict__)
    monkeypatch.setitem(sys.modules, "coremltools.libcoremlpython", made)
    for where in (compute_device, compute_plan, model):
        for name in (x for x in vars(made) if x.startswith("_ML") and hasattr(where, x)):
            monkeypatch.setattr(where, name, getattr(made, name))
    return made


# -- without a Mac --------------------------------------------------------------------------------


@without_a_mac
def test_elsewhere_it_is_refused_in_one_line_that_names_what_check_does_instead(tmp_path):
    with (
        pytest.raises(DeviceError, match="runs on macOS only, this is Linux") as caught,
        open_device("coreml").connect(tmp_path),
    ):
        pass
    assert caught.value.exit_code == 4
    assert "reference interpreter" in str(caught.value)
    assert "\n" not in str(caught.value)


@without_a_mac
def test_a_worker_elsewhere_says_that_it_is_no_mac_before_it_imports_anything(worker):
    before = set(sys.modules)
    with pytest.raises(worker.RefusedError, match="Core ML runs on macOS only") as caught:
        worker.import_runtime("coreml")
    assert caught.value.kind == "runtime-missing"
    assert not {x for x in set(sys.modules) - before if x.startswith("coremltools")}


@pytest.mark.parametrize(
    ("address", "accelerator"),
    [("", ""), ("units=all", ""), ("units=cpu_only", "cpu"), ("units=cpu_and_gpu", "gpu"),
     ("units=cpu_and_ne", "ne")],
)  # fmt: skip
def test_compute_units_are_what_the_worker_calls_accelerators(address, accelerator):
    device = coreml.device(address)
    assert device.accelerator == accelerator
    assert devices.formats_of(device) == ("coreml",)
    assert devices.lane_of(device) == devices.HERE


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("units=ane", "units must be one of all, cpu_only, cpu_and_gpu, cpu_and_ne, got 'ane'"),
        ("python=/nowhere/python", "is not a program"),
        ("threads=2", "cannot use 'threads=2'"),
    ],
)
def test_an_address_that_cannot_be_is_refused(address, said):
    with pytest.raises(ConfigError, match=said):
        coreml.device(address)


def test_an_address_and_a_plan_that_ask_for_different_processors_are_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"any")
    plan = dataclasses.replace(PLAN, accelerator="gpu")
    device = coreml.device("units=cpu_and_ne")
    with pytest.raises(ConfigError, match="asks for ne, the plan for gpu"):
        run(device, tmp_path / "m.onnx", "coreml", tiny_pixels(1), folder=tmp_path, plan=plan)


def test_each_kind_of_device_says_which_formats_it_runs():
    assert devices.runnable("coreml") == ("coreml",)
    assert devices.runnable("local") == ("onnx", "tflite")
    assert set(devices.runnable()) == {"onnx", "tflite", "coreml"}


def test_equal_packages_are_sent_as_equal_bytes_whenever_they_were_written(tmp_path):
    for name, when in (("a", 0), ("b", 10**9)):
        folder = tmp_path / f"{name}.mlpackage" / "Data"
        folder.mkdir(parents=True)
        for part in ("model", "weights") if name == "a" else ("weights", "model"):
            (folder / part).write_text(part)
            os.utime(folder / part, (when, when))
    sent = [_order.packed(tmp_path / f"{x}.mlpackage", tmp_path / x) for x in "ab"]
    assert sent[0].name == sent[1].name
    assert sent[0].read_bytes() == sent[1].read_bytes()
    assert sent[0].name.endswith(".mlpackage.zip")


def test_a_package_that_is_not_there_is_no_fault_of_the_device(tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        run(coreml.device(""), tmp_path / "no.mlpackage", "coreml", tiny_pixels(1), folder=tmp_path)


#: In the form of macOS 14 on an M2, as documented; nobody has tried it on a Mac yet.
SYSCTL = """\
hw.model: Mac14,2
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 0
hw.optional.arm.FEAT_FP16: 1
hw.optional.AdvSIMD: 1
machdep.cpu.brand_string: Apple M2
"""


def test_a_mac_is_told_by_model_chip_and_features(worker):
    found = worker.apple(SYSCTL)
    assert found["cpu"] == "Mac14,2, Apple M2"
    assert found["features"] == ["asimd", "dotprod", "fp16", "bf16"]
    assert found["system"].startswith("macOS ")
    assert worker.apple("")["cpu"] == platform.machine()


PROBE = {
    "python": "3.11", "executable": "python", "cpu": "Apple M2", "cpus": 8, "features": ["asimd"],
    "governor": None, "temperatures_c": {}, "load": 0.1, "memory_free_bytes": None,
    "disk_free_bytes": 1 << 40, "onnxruntime": "", "litert": "", "system": "macOS 14.6 arm64",
}  # fmt: skip


def test_the_doctor_asks_for_core_ml_on_a_mac_alone():
    missing = "coremltools does not load (No module); run: python -m pip install coremltools"
    on_a_mac = {**PROBE, "onnxruntime": "1.32", "coreml": "", "coreml_missing": missing}
    found = {name: rest for name, *rest in _doctor.judge(on_a_mac)}
    assert found["coreml"] == [
        "warn",
        "coremltools does not load (No module)",
        "python -m pip install coremltools",
    ]
    assert "coreml" not in [x[0] for x in _doctor.judge({**on_a_mac, "system": "Linux 6 x86_64"})]


def test_a_mac_with_nothing_but_core_ml_is_fit():
    checks = _doctor.judge({**PROBE, "coreml": "macOS 14.6, coremltools 9.0"})
    assert ("coreml", "ok", "macOS 14.6, coremltools 9.0", "") in checks
    assert "fail" not in [status for _, status, _, _ in checks]


# -- the worker's runtime, with the double in Apple's place ---------------------------------------


@pytest.mark.toolchain
def test_a_picture_goes_in_as_rows_columns_and_colours(worker, double, package):
    model, pixels = worker.CoreMl(str(package), 1, "", False), tiny_pixels(3)
    assert (model.dtype, model.shape, model.ends) == ("uint8", [1, SIZE, SIZE, 3], (1, 1))
    rows = np.concatenate([model(pixels[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(rows, tiny_answers(pixels), rtol=1e-5, atol=1e-2)


@pytest.mark.toolchain
def test_floats_go_in_as_they_are(worker, double, tmp_path):
    path = write_coreml(tmp_path / "floats.mlpackage", image=False)
    model = worker.CoreMl(str(path), 1, "", False)
    assert (model.dtype, model.shape) == ("float32", [1, SIZE, SIZE, 3])
    inputs = np.random.default_rng(2).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(model(inputs), tiny_answers(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("accelerator", "provider", "where"),
    [
        ("", "Core ML, ALL", {"cpu": 3}),
        ("cpu", "Core ML, CPU_ONLY", {"cpu": 3}),
        ("gpu", "Core ML, CPU_AND_GPU", {"cpu": 2, "gpu": 1}),
        ("ne", "Core ML, CPU_AND_NE", {"cpu": 2, "ne": 1}),
    ],
)
def test_the_plan_of_core_ml_is_counted_by_processor(
    worker, double, package, accelerator, provider, where
):
    model = worker.CoreMl(str(package), 1, accelerator, False)
    assert (model.provider, model.placement) == (provider, where)


@pytest.mark.toolchain
def test_an_accelerator_that_core_ml_has_not_is_named_with_those_it_has(worker, double, package):
    with pytest.raises(worker.RefusedError, match="no 'npu', it has cpu, gpu, ne"):
        worker.CoreMl(str(package), 1, "npu", False)


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("fault", "said"),
    [({"at": "load"}, "Error compiling model: a made-up failure"), ({"newest": 5}, "version")],
)
def test_a_package_that_core_ml_refuses_is_refused_with_its_words(
    worker, double, package, fault, said
):
    double.FAULT.update(fault)
    with pytest.raises(worker.RefusedError, match=said), worker.refused("model-refused"):  # noqa: PT012
        model = worker.CoreMl(str(package), 1, "", False)
        model(tiny_pixels(1))


@pytest.mark.toolchain
def test_where_there_is_no_plan_nothing_is_claimed(worker, double, package):
    double.FAULT["at"] = "plan"
    assert worker.CoreMl(str(package), 1, "ne", False).placement == {}


# -- whole runs, with the double in Apple's place -------------------------------------------------


@pytest.fixture
def pretended(monkeypatch, tmp_path_factory, package):
    """This machine as a Mac: `coreml` connects, and its worker finds the double."""
    if not NO_MAC:
        pytest.skip("on a Mac there is the real one; run: pytest tests/test_device_contract.py")
    monkeypatch.setattr(coreml, "elsewhere", str)

    def put(**fault):
        for name, text in put_double(tmp_path_factory.mktemp("double"), **fault).items():
            monkeypatch.setenv(name, text)

    put()
    return put


@pytest.mark.slow
@pytest.mark.toolchain
def test_a_whole_run_gives_rows_placement_and_the_facts_of_core_ml(pretended, package, tmp_path):
    pixels, device = tiny_pixels(3), open_device("coreml:units=cpu_and_ne")
    result = run(device, package, "coreml", pixels, folder=tmp_path, plan=PLAN)
    np.testing.assert_allclose(result.outputs, tiny_answers(pixels), rtol=1e-5, atol=1e-2)
    assert (len(result.embed_ns), len(result.latency_ns)) == (3, 3)
    assert result.placement == {"cpu": 2, "ne": 1}
    assert result.facts["runtime"] == "coreml"
    assert "coremltools 9" in result.facts["runtime_version"]
    assert result.facts["provider"] == "Core ML, CPU_AND_NE"
    assert result.facts["threads"] == "0"
    # Our thread waits for another processor: its share of ours is no sign of noise.
    assert result.conditions.cpu_share is None
    assert result.profile_missing == ""
    assert not (result.folder / "model.mlpackage").exists()
    (sent,) = (tmp_path / "store").glob("*.mlpackage.zip")
    assert json.loads((result.folder / "job.json").read_text())["model"]["file"].endswith(sent.name)


@pytest.mark.slow
@pytest.mark.toolchain
def test_a_package_that_core_ml_refuses_is_the_fault_of_the_file(pretended, package, tmp_path):
    pretended(at="load")
    with pytest.raises(BundleError, match=r"tiny.mlpackage: coreml refuses it: .*made-up failure"):
        run(open_device("coreml"), package, "coreml", tiny_pixels(1), folder=tmp_path, plan=PLAN)


@pytest.mark.slow
@pytest.mark.toolchain
def test_the_worker_speaks_the_golden_transcript_of_core_ml(pretended, package, tmp_path):
    """It is written anew, for review, with WRITE_GOLDEN=1 in the environment."""
    before = list(COMMAND)
    COMMAND[:] = [sys.executable, str(WORKER)]
    try:
        sent = _order.packed(package, tmp_path)
        folder = order(
            tmp_path / "run", sent, tiny_pixels(3), "coreml", FIXED_RUNS, accelerator="ne"
        )
        start(folder).wait(timeout=600)
    finally:
        COMMAND[:] = before
    # It takes its time to import: there may be beats, or none.
    found = [x for x in events(folder) if x["hetero"] != "beat"]
    lines = "".join(json.dumps(x) + "\n" for x in normalised(found))
    golden = GOLDEN / "wire_coreml.jsonl"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text(lines)
    assert lines == golden.read_text()
    assert np.fromfile(folder / "out.bin", "<f4").shape == (3 * DIM,)
