"""The part of an export that no format changes: the child process, the comparison, the bundle."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero import export as exports
from hetero.bundle import Artifact, Bundle, Model
from hetero.errors import (
    BundleError,
    ConfigError,
    ExportError,
    HeteroError,
    MissingExtraError,
    StorageError,
)
from hetero.export import ConvertJob, _child, _convert, _parity, _seal, export, export_each
from hetero.export._job import first_line, in_batches
from hetero.export._placing import register
from hetero.preprocess import Preprocess
from hetero.space import Space

N, SIZE, DIM = 12, 8, 4
SPACE = Space("gallery", "ab" * 32, DIM)

#: A format whose files are the probe's vectors, and whose faults an environment variable chooses.
FORMAT = r"""
import json, os, sys, time
from hetero.bundle import Bundle
from hetero.errors import MissingExtraError
EXTRA, SUFFIX, DYNAMIC_BATCH, RUNS_HERE = "fake", ".fake", True, ""

def convert(job):
    fault = os.environ.get("FAULT", "")
    print("chatter of a converter", flush=True)
    if fault == "raises": raise RuntimeError("\x1b[31mno kernel for op 7\x1b[0m\nsee our web site")
    if fault == "dies": os.abort()
    if fault == "exits": sys.exit(7)
    if fault == "hangs": time.sleep(60)
    if fault == "lacks": raise MissingExtraError("fakelib is not installed")
    vectors = Bundle.load(job.bundle, verify=False).probe().vectors.copy()
    if fault == "turned": vectors[5] = -vectors[5]
    if fault == "long": vectors[5] *= 1.1
    if fault == "nan": vectors[5] = float("nan")
    if fault == "short": vectors = vectors[:, :-1]
    texts = dict(job.metadata)
    if fault == "lies": texts["hetero.role"] = "nobody"
    if fault == "last fails" and job.precision == "fp16": raise ValueError("fp16 is too much")
    if fault == "no file": return {}
    job.output.write_text(json.dumps({"texts": texts, "rows": vectors.tolist()}))
    return {"sort": "fake", "batch_was": job.batch}

class Run:
    runtime = "fake 1"
    def __init__(self, path): self.rows = json.loads(path.read_text())["rows"]
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def __call__(self, inputs):
        import numpy as np
        return np.asarray(self.rows, np.float32)

def load(path, threads=1): return Run(path)
def metadata(path): return json.loads(path.read_text())["texts"]
"""
NAME = "fakeformats.plain"


def directions(n: int = N, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, DIM)) + 0.5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def fake_format(tmp_path_factory):
    home = tmp_path_factory.mktemp("path")
    (home / "fakeformats").mkdir()
    (home / "fakeformats" / "__init__.py").touch()
    (home / "fakeformats" / "plain.py").write_text(FORMAT)
    sys.path.insert(0, str(home))
    yield NAME
    sys.path.remove(str(home))


@pytest.fixture
def bundle(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
    ids = "\n".join(f"picture {i}" for i in range(N)).encode()
    return Bundle.create(
        tmp_path / "query",
        role="query",
        space=SPACE,
        model=Model(backbone="none", dim=DIM, parameters=1, macs=1),
        preprocess=Preprocess(size_px=SIZE),
        recipe={},
        tensors={
            "weights": {"w": np.zeros(3, np.float32)},
            "probe": {
                "ids": np.frombuffer(ids, dtype=np.uint8),
                "pixels": pixels,
                "vectors": directions(),
            },
        },
    )


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a bundle but the logs."""
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and "logs" not in p.parts
    }


def job_for(bundle: Bundle, tmp_path: Path, **changes) -> ConvertJob:
    job = ConvertJob(
        bundle=bundle.root,
        output=tmp_path / "model.fp32.fake",
        format=NAME,
        precision="fp32",
        bake=True,
        batch=0,
        size_px=SIZE,
        dim=DIM,
        metadata=exports.metadata_of(bundle, "fp32", True),
    )
    return replace(job, **changes)


# -- the child process --------------------------------------------------------------------------


def test_an_export_adds_a_file_with_facts_to_the_bundle(fake_format, bundle):
    said: list[str] = []
    done = export(bundle, fake_format, "fp32", on_line=said.append)
    item = Bundle.load(bundle.root).artifact(fake_format, "fp32")
    assert done.artifact(fake_format, "fp32") == item
    assert (item.path, item.input, item.batch) == ("model.fp32.fake", "uint8_nhwc", 0)
    assert item.facts["cosine_worst"] == pytest.approx(1)
    assert item.facts["neighbour_agreement"] == 1
    assert (item.facts["sort"], item.facts["probes"]) == ("fake", N)
    assert item.facts["compared_with"] == "fake 1"
    assert len(said) == 2
    assert sorted(p.name for p in bundle.root.iterdir()) == [
        "logs", "manifest.json", "model.fp32.fake", "probe.safetensors", "weights.safetensors"
    ]  # fmt: skip


def test_a_converters_chatter_goes_to_the_log(fake_format, bundle, capfd):
    export(bundle, fake_format, "fp32")
    assert "chatter" not in "".join(capfd.readouterr())
    assert "chatter" in (bundle.root / "logs" / f"export-{fake_format}.log").read_text()


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("raises", ExportError, "fp32: RuntimeError: no kernel for op 7; see "),
        ("dies", ExportError, "was ended by SIGABRT"),
        ("exits", ExportError, "ended with exit code 7; its last line was 'chatter of a conv"),
        ("lacks", MissingExtraError, "fp32: fakelib is not installed"),
        ("turned", ExportError, "'picture 5'"),
        ("no file", ExportError, "FileNotFoundError"),
    ],
)
def test_a_failed_export_is_one_line_and_changes_nothing(
    fake_format, bundle, monkeypatch, fault, kind, words
):
    export(bundle, fake_format, "fp32")
    before = contents(bundle.root)
    monkeypatch.setenv("FAULT", fault)
    with pytest.raises(kind) as caught:
        export(bundle, fake_format, "fp32")
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert contents(bundle.root) == before
    Bundle.load(bundle.root)


def test_a_converter_that_hangs_is_stopped(fake_format, bundle, monkeypatch):
    monkeypatch.setenv("FAULT", "hangs")
    begin = time.monotonic()
    with pytest.raises(ExportError, match="stopped after 2 s"):
        export(bundle, fake_format, "fp32", timeout_s=2)
    assert time.monotonic() - begin < 50


def test_precisions_before_the_one_that_fails_stay(fake_format, bundle, monkeypatch):
    monkeypatch.setenv("FAULT", "last fails")
    each = export_each(bundle, fake_format, ("fp32", "fp16"))
    assert next(each).artifact(fake_format, "fp32")
    with pytest.raises(ExportError, match="fp16: ValueError: fp16 is too much"):
        next(each)
    assert [f.precision for f in Bundle.load(bundle.root).exported()] == ["fp32"]


def test_an_altered_file_can_be_exported_anew(fake_format, bundle):
    export(bundle, fake_format, "fp32")
    (bundle.root / "model.fp32.fake").write_text("{}")
    export(Bundle.load(bundle.root, verify=False), fake_format, "fp32")
    Bundle.load(bundle.root)


def test_altered_weights_are_refused(fake_format, bundle):
    path = bundle.path(bundle.artifact("weights"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(BundleError, match="altered"):
        export(bundle, fake_format, "fp32")


def test_what_a_killed_run_left_is_cleared_away(fake_format, bundle):
    (bundle.root / f".export-{fake_format}").mkdir()
    (bundle.root / f".export-{fake_format}" / "rest").touch()
    export(bundle, fake_format, "fp32")
    assert not list(bundle.root.glob(".export*"))


def test_another_form_of_input_takes_the_files_place(fake_format, bundle):
    first = export(bundle, fake_format, "fp32")
    second = export(first, fake_format, "fp32", bake=False, batch=2)
    item = second.artifact(fake_format, "fp32")
    assert (item.path, item.input, item.batch) == ("model-float.fp32.fake", "float32_nchw", 2)
    assert not (bundle.root / "model.fp32.fake").exists()
    assert len(second.exported()) == 1


# -- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "fp64"}, "unknown precision 'fp64'; there are fp32, fp16, int8"),
        ({"format": "onxx"}, "'onxx'; there are coreml, onnx, tflite"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"precision": "int8"}, "int8 needs calibration pictures"),
        (
            {"precision": "int8", "calibration": np.zeros((3, SIZE, SIZE, 3), np.uint8)},
            "with n at least 8",
        ),
        (
            {"precision": "int8", "calibration": np.zeros((9, 10, 10, 3), np.uint8)},
            r"uint8 \(n, 8, 8, 3\) .* got uint8 \(9, 10, 10, 3\)",
        ),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(bundle, changes, words):
    before = contents(bundle.root)
    call = {"format": "onnx", "precision": "fp32", **changes}
    with pytest.raises(ConfigError, match=words):
        export_each(bundle, call.pop("format"), (call.pop("precision"),), **call)
    assert contents(bundle.root) == before
    assert not (bundle.root / "logs").exists()


def test_a_job_comes_back_from_json_as_it_was(bundle, tmp_path):
    job = job_for(bundle, tmp_path, calibration=tmp_path / "c.npy", threads=2)
    assert ConvertJob.from_json(job.to_json()) == job
    assert ConvertJob.from_json(replace(job, calibration=None).to_json()).calibration is None


# -- putting the file in place ------------------------------------------------------------------


@pytest.mark.parametrize("folder", [False, True])
def test_a_full_disk_at_the_last_step_puts_everything_back(bundle, tmp_path, monkeypatch, folder):
    def write(path: Path, text: str) -> Path:
        if folder:
            path.mkdir(parents=True)
            (path / "part").write_text(text)
        else:
            path.write_text(text)
        return path

    def entry(path: Path) -> Artifact:
        sha256, size = exports.digest(path)
        return Artifact(
            path="model.x", kind="onnx", sha256=sha256, size_bytes=size, precision="fp32"
        )

    old = write(bundle.root / "model.x", "old")
    bundle = bundle.with_artifact(entry(old))
    before = contents(bundle.root)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    written = write(scratch / "model.x", "new")
    item = entry(written)
    real = Bundle.with_artifact

    def full(self: Bundle, new: Artifact) -> Bundle:
        if new == item:
            raise StorageError("the disk is full")
        return real(self, new)

    monkeypatch.setattr(Bundle, "with_artifact", full)
    with pytest.raises(StorageError):
        register(bundle, item, written, scratch)
    assert contents(bundle.root) == before
    monkeypatch.undo()
    register(bundle, item, written, scratch)
    assert Bundle.load(bundle.root).artifact("onnx", "fp32") == item


def test_a_bundle_trained_again_meanwhile_gets_no_file(bundle, tmp_path):
    other = Artifact(path="weights.safetensors", kind="weights", sha256="0" * 64, size_bytes=1)
    files = tuple(other if f.kind == "weights" else f for f in bundle.manifest.files)
    stale = Bundle(bundle.root, bundle.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match="changed during the export"):
        register(stale, other, tmp_path / "model", tmp_path)


# -- the comparison -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("turned", r"worst cosine -1 is below 0.99999.*'picture 5', 12 pictures"),
        ("long", r"1 of 12 rows .* not of length 1, first 'picture 5' with 1.1"),
        ("nan", r"1 of 12 rows .* first 'picture 5' with nan"),
        ("short", r"shape \(12, 3\), expected \(12, 4\)"),
        ("lies", r"hetero.role is 'nobody', expected 'query'"),
    ],
)
def test_a_file_that_does_something_else_is_refused(
    fake_format, bundle, tmp_path, monkeypatch, fault, words
):
    monkeypatch.setenv("FAULT", fault)
    with pytest.raises(ExportError, match=words):
        _convert.run(job_for(bundle, tmp_path))


def test_a_turn_of_60_degrees_of_one_picture_halves_the_worst_cosine():
    around = np.deg2rad(np.arange(0, 120, 10))
    rows = np.zeros((12, DIM), np.float32)
    rows[:, 0], rows[:, 1] = np.cos(around), np.sin(around)
    turned = rows.copy()
    angle = around[3] + np.pi / 3
    turned[3, :2] = np.cos(angle), np.sin(angle)
    got = _parity.measure(tuple("abcdefghijkl"), rows, turned, SPACE)
    assert got.cosine_worst == pytest.approx(0.5, abs=1e-6)
    assert got.cosine_median == pytest.approx(1)
    assert got.worst_id == "d"
    assert got.max_abs_diff == pytest.approx(float(np.abs(turned - rows).max()))


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5))
def test_all_numbers_of_a_comparison_agree_with_slow_loops(seed, noise):
    right = directions(9, seed)
    rows = right + noise * np.random.default_rng(seed + 1).normal(size=right.shape)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    got = _parity.measure(tuple("abcdefghi"), right, rows, SPACE)

    def cosine(a, b):
        a, b = a.astype(float), b.astype(float)
        return float(sum(a * b) / np.sqrt(sum(a * a) * sum(b * b)))

    plain = [cosine(a, b) for a, b in zip(right, rows, strict=True)]
    mean = right.astype(float).mean(axis=0)
    centred = [cosine(a - mean, b - mean) for a, b in zip(right, rows, strict=True)]
    assert got.cosine_worst == pytest.approx(min(plain), abs=1e-6)
    assert got.cosine_median == pytest.approx(sorted(plain)[4], abs=1e-6)
    assert got.cosine_p1 == pytest.approx(np.percentile(plain, 1), abs=1e-6)
    assert got.centred_cosine_worst == pytest.approx(min(centred), abs=1e-5)
    # 9 pictures, each looks at the 8 others: both see all of them.
    assert got.neighbour_agreement == 1


def test_neighbours_are_those_of_the_search_that_is_meant():
    rng = np.random.default_rng(3)
    right, rows = directions(40, 1), directions(40, 1) + 0.2 * rng.normal(size=(40, DIM))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    got = _parity.measure(tuple(map(str, range(40))), right, rows, SPACE)
    shares = []
    for i in range(40):
        others = [j for j in range(40) if j != i]
        a = sorted(others, key=lambda j: -float(right[i] @ right[j]))[:10]
        b = sorted(others, key=lambda j: -float(rows[i] @ right[j]))[:10]
        shares.append(len(set(a) & set(b)) / 10)
    assert 0.3 < np.mean(shares) < 0.98
    assert got.neighbour_agreement == pytest.approx(np.mean(shares), abs=0.011)


def test_a_probe_of_one_picture_proves_nothing():
    with pytest.raises(BundleError, match="at least 2"):
        _parity.measure(("a",), directions(1), directions(1), SPACE)


def test_each_bound_of_each_gate_is_laid():
    fine = _parity.Parity(1, 1, 1, 1, 0, 1, "a", 9)
    for gate in _parity.GATES.values():
        fine.judge(gate)
        for change, word in (
            ({"cosine_worst": gate.cosine_worst - 1e-6}, "worst cosine"),
            ({"cosine_median": gate.cosine_median - 1e-6}, "median cosine"),
            ({"max_abs_diff": gate.max_abs_diff * 1.001}, "largest difference"),
        ):
            with pytest.raises(ExportError, match=word):
                replace(fine, **change).judge(gate)
        with pytest.raises(ExportError, match="worst cosine"):
            replace(fine, cosine_worst=float("nan")).judge(gate)


# -- small parts --------------------------------------------------------------------------------


@given(st.integers(1, 9), st.sampled_from([0, 1, 2, 4]))
def test_batches_give_every_row_once_in_order(n, batch):
    sizes = []

    def call(part):
        sizes.append(len(part))
        return part[:, :2, 0, 0]

    inputs = np.arange(n * 8, dtype=np.float32).reshape(n, 2, 2, 2)
    got = in_batches(call, inputs, (batch, 2, 2, 2), np.dtype("float32"), "it")
    np.testing.assert_array_equal(got, inputs[:, :2, 0, 0])
    assert not batch or set(sizes) == {batch}


@pytest.mark.parametrize("shape", [(0, 2, 2, 2), (3, 2, 2, 1), (2, 2, 2)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"it takes float32 pictures of shape \('n', 2, 2, 2\)"):
        in_batches(lambda x: x, np.zeros(shape, np.float32), (0, 2, 2, 2), np.dtype("f4"), "it")
    with pytest.raises(ConfigError, match="got uint8"):
        in_batches(lambda x: x, np.zeros((1, 2, 2, 2), "u1"), (0, 2, 2, 2), np.dtype("f4"), "it")


def test_an_errors_line_is_of_the_error_inside():
    outer = RuntimeError("step 1 of 3 failed")
    outer.__cause__ = ValueError("\n  deep \x1b[1mcause\x1b[0m\nadvice")
    assert first_line(outer) == "ValueError: deep cause"
    assert first_line(KeyError()) == "KeyError"


BLOB = _seal.seal(b"head" + _seal.BLANK.encode() + bytes(range(256)))


def test_a_seal_is_the_hash_of_the_file_with_a_blank_seal(tmp_path):
    (tmp_path / "m").write_bytes(BLOB)
    assert _seal.read(tmp_path / "m", "a") == BLOB
    blank = b"head" + _seal.BLANK.encode() + bytes(range(256))
    assert hashlib.sha256(blank).hexdigest().encode() in BLOB


@given(st.integers(0, len(BLOB) - 1), st.integers(0, 7))
def test_any_flipped_bit_breaks_the_seal(tmp_path_factory, at, bit):
    path = tmp_path_factory.mktemp("seal") / "m"
    changed = bytearray(BLOB)
    changed[at] ^= 1 << bit
    path.write_bytes(changed)
    with pytest.raises(BundleError) as caught:
        _seal.read(path, "a")
    assert str(path) in str(caught.value)


@given(st.integers(0, len(BLOB) - 1))
def test_any_cut_breaks_the_seal(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("seal") / "m"
    path.write_bytes(BLOB[:length])
    with pytest.raises(BundleError):
        _seal.read(path, "a")


def test_the_child_finds_what_we_find_and_not_the_working_folder(
    fake_format, bundle, tmp_path, monkeypatch
):
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    assert export(bundle, fake_format, "fp32").exported()


def test_a_giving_up_caller_leaves_no_child_and_no_scratch(fake_format, bundle, monkeypatch):
    started = []
    real = _child.subprocess.Popen

    def popen(*args, **kwargs):
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(_child.subprocess, "Popen", popen)
    each = export_each(bundle, fake_format, ("fp32", "fp16"))
    next(each)
    each.close()
    assert started[0].poll() is not None
    assert not list(bundle.root.glob(".export*"))


#: Exports into the bundle of its first argument.
EXPORTING = """
import sys
from pathlib import Path
from hetero.bundle import Bundle
from hetero.export import export
export(Bundle.load(Path(sys.argv[1])), "fakeformats.plain", "fp32")
"""


def test_a_killed_export_takes_its_converter_with_it(fake_format, bundle):
    psutil = pytest.importorskip("psutil", reason="looks at processes")
    environment = {**os.environ, "FAULT": "hangs", "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", EXPORTING, str(bundle.root)], env=environment)
    try:
        end = time.monotonic() + 60
        while not any("chatter" in log.read_text() for log in bundle.root.glob("logs/*")):
            assert parent.poll() is None, "the export has ended"
            assert time.monotonic() < end, "no conversion began"
            time.sleep(0.05)
        children = psutil.Process(parent.pid).children()
        assert children
    finally:
        parent.kill()
        parent.wait()
    _, left = psutil.wait_procs(children, timeout=20)  # they would hang for 60 s
    assert not left


def test_results_that_are_errors_keep_their_class(tmp_path, bundle):
    job = job_for(bundle, tmp_path)
    for kind in (ConfigError, BundleError, ExportError, StorageError):
        value = {"error": kind.__name__, "message": "why", "ours": True}
        _child.result_of(job).write_text(json.dumps(value))
        with pytest.raises(HeteroError) as caught:
            _child._result(job, 0, tmp_path / "log")
        assert type(caught.value) is kind


def test_an_environment_given_to_the_child_quiets_and_pins_it(monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    made = _child._environment(3)
    assert made["KEPT"] == "1"
    assert made["ORT_DISABLE_TELEMETRY"] == "1"
    assert {made[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} == {"3"}
    assert all(os.path.isabs(p) for p in made["PYTHONPATH"].split(os.pathsep) if p)
