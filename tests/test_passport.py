from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hetero.errors import BundleError
from hetero.passport import Band, Passport, Picture, beside, verify
from hetero.preprocess import Preprocess
from hetero.space import Space

N, DIM = 12, 32
RNG = np.random.default_rng(0)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


VECTORS = unit(RNG.normal(size=(N, DIM)))
FAULT = unit(VECTORS + 0.2 * RNG.normal(size=(N, DIM)))
PASSPORT = Passport(
    Space("gallery", "0123456789abcdef" * 4, DIM),
    Preprocess(size_px=16),
    "a" * 64,
    "model.int8.onnx",
    "b" * 64,
    "onnx",
    "int8",
    "uint8_nhwc",
    tuple(Picture(f"canary-{i:02}.png", bytes([i])) for i in range(N)),
    VECTORS,
    {"upside down": FAULT},
    {"onnxruntime": Band(0.999, 0.9999, 5), "any": Band(0.99, 0.9995, 6)},
)


def moved(amount, seed=1):
    """The vectors moved by this much in directions of their own."""
    return unit(VECTORS + amount * unit(np.random.default_rng(seed).normal(size=(N, DIM))))


def test_a_passport_is_read_back_as_it_was_written(tmp_path):
    PASSPORT.save(tmp_path / "x.passport.json")
    found = Passport.load(tmp_path / "x.passport.json")
    assert np.array_equal(found.vectors, VECTORS)
    assert np.array_equal(found.faults["upside down"], FAULT)
    arrays = {"vectors": VECTORS, "faults": {}}
    assert replace(found, **arrays).__dict__ == replace(PASSPORT, **arrays).__dict__


def test_the_same_vectors_and_slightly_moved_ones_are_the_same():
    assert verify(PASSPORT, VECTORS).ok
    assert verify(PASSPORT, 7.0 * moved(0.01)).ok


def test_each_runtime_has_its_own_band():
    # cos = 1/sqrt(1 + 0.1**2) = 0.995, between the two bands.
    rows = moved(0.1)
    assert verify(PASSPORT, rows, runtime="litert 2").ok
    assert verify(PASSPORT, rows, runtime="onnxruntime 1.32").kind != "same"


def test_a_known_fault_is_named():
    found = verify(PASSPORT, FAULT)
    assert found.kind == "other preprocessing"
    assert "upside down" in found.reason


def test_other_weights_of_the_space_and_another_space_are_told_apart():
    assert verify(PASSPORT, moved(0.8)).kind == "other weights"
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))[0]
    assert verify(PASSPORT, VECTORS @ turn).kind == "other space"
    assert verify(PASSPORT, VECTORS[:, :-1]).kind == "other space"


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_vectors_without_a_direction_are_unusable_and_the_picture_is_named(value):
    rows = VECTORS.copy()
    rows[3] = value
    found = verify(PASSPORT, rows)
    assert (found.kind, found.worst) == ("unusable", "canary-03.png")
    assert verify(PASSPORT, VECTORS[1:]).kind == "unusable"


def test_what_a_file_declares_comes_first_and_is_exact():
    same = {
        "hetero.space_digest": PASSPORT.space.digest,
        "hetero.preprocess_sha256": PASSPORT.preprocess.sha256,
        "hetero.weights_sha256": "a" * 64,
    }
    assert verify(PASSPORT, VECTORS, declared=same).ok
    for key, kind in zip(
        same, ("other space", "other preprocessing", "other weights"), strict=True
    ):
        assert verify(PASSPORT, VECTORS, declared={**same, key: "c" * 64}).kind == kind


def test_mutations_are_found_and_harmless_noise_is_not():
    # Noise within the band never alarms, damage beyond it always does, whatever the direction.
    assert all(verify(PASSPORT, moved(0.1, seed)).ok for seed in range(1, 200))
    assert not any(verify(PASSPORT, moved(0.2, seed)).ok for seed in range(1, 200))


@pytest.mark.parametrize("key", ["space", "vectors", "bands", "weights_sha256", "sha256"])
def test_an_altered_passport_is_refused(key, tmp_path):
    value = PASSPORT.to_json()
    value[key] = "x"
    (tmp_path / "p.json").write_text(json.dumps(value))
    with pytest.raises(BundleError, match="altered"):
        Passport.load(tmp_path / "p.json")


def signed(value):
    from hetero.passport import _seal

    content = {k: v for k, v in value.items() if k != "sha256"}
    return {**content, "sha256": _seal(content)}


@pytest.mark.parametrize(
    "change",
    [
        {"pictures": {"../x.png": ""}},
        {"pictures": {}},
        {"vectors": {"dtype": "float32", "shape": [10**9, 10**9], "base64": ""}},
        {"vectors": {"dtype": "float32", "shape": [N, DIM], "base64": "AAAA"}},
        {"bands": {}},
        {"bands": {"any": {"cosine_least": 1e999, "seen_worst": 1, "variants": 1}}},
        {"file": {"path": "/etc/passwd"}},
        {"preprocess_sha256": "d" * 64},
        {"faults": {"x": "not base64"}},
    ],
)
def test_a_forged_passport_that_does_not_hold_together_is_refused(change, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(signed({**PASSPORT.to_json(), **change})))
    with pytest.raises(BundleError):
        Passport.load(tmp_path / "p.json")


def test_a_missing_passport_and_what_is_no_json_are_one_line(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name in ("none.json", "deep.json", "."):
        with pytest.raises(BundleError) as caught:
            Passport.load(tmp_path / name)
        assert "\n" not in str(caught.value)


# -- with a real bundle --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    from exporting import exported

    from hetero.stages import snippeting

    bundle, _ = exported("onnx", ("fp32",))
    return bundle, snippeting.write_passport(bundle)


@pytest.mark.toolchain
def test_a_file_s_own_vectors_are_within_its_band_and_faults_are_named(made):
    from hetero import export
    from hetero.stages import snippeting

    bundle, (path,) = made
    item = bundle.artifact("onnx", "fp32")
    assert path == beside(bundle.path(item))
    passport = Passport.load(path)
    rgbs = [rgb for _, rgb in snippeting.canaries(bundle)]
    pixels = np.stack([bundle.preprocess.pixels(rgb) for rgb in rgbs])
    declared = export.module("onnx").metadata(bundle.path(item))
    with export.load(bundle.path(item), "onnx") as runner:
        assert verify(passport, runner(pixels), runtime=runner.runtime, declared=declared).ok
        found = verify(passport, runner(np.ascontiguousarray(pixels[..., ::-1])))
        assert found.kind == "other preprocessing"
        assert "red and blue" in found.reason


@pytest.mark.toolchain
def test_inspect_shows_the_passport_and_refuses_that_of_another_file(made, tmp_path):
    import shutil

    from hetero.stages.inspecting import inspect

    bundle, (path,) = made
    model = bundle.path(bundle.artifact("onnx", "fp32"))
    shown = inspect(model)
    assert shown["passport_space"].startswith(bundle.space.id)
    assert shown["passport_canaries"] == 8
    assert inspect(path)["passport_bands"] == shown["passport_bands"]
    assert inspect(bundle.root)["passports"] == {model.name: str(path)}
    shutil.copy(model, tmp_path / "m.onnx")
    other = replace(Passport.load(path), file_sha256="c" * 64)
    other.save(beside(tmp_path / "m.onnx"))
    with pytest.raises(BundleError, match="its passport says"):
        inspect(tmp_path / "m.onnx")


@pytest.mark.toolchain
def test_the_snippet_command_writes_what_its_own_self_check_accepts(made, tmp_path):
    import subprocess
    import sys

    from hetero.stages import snippeting

    bundle, _ = made
    item = snippeting.find(bundle, "onnx:fp32")
    files = snippeting.snippet(bundle, item, ("python",), tmp_path)
    assert (tmp_path / "embed.py") in files
    done = subprocess.run(
        [sys.executable, "embed.py", str(bundle.path(item))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("canaries agree, space")
    wrong = bundle.root / "weights.safetensors"
    done = subprocess.run(
        [sys.executable, "embed.py", str(wrong)], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 1


# -- as exports leave them, as `check` finds them ------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    from exporting import copy_of_bundle

    from hetero.progress import Reporter
    from hetero.stages.exporting import export_all

    return export_all(
        copy_of_bundle(tmp_path_factory.mktemp("exported") / "bundle"),
        ("onnx",),
        ("fp32",),
        images=None,
        bake=True,
        batch=None,
        resume=False,
        reporter=Reporter(quiet=True),
        whole=True,
    )


def options():
    from hetero.stages.running import CheckOptions

    return CheckOptions(limits=None, thorough="quick", resume=False, command="")


@pytest.mark.toolchain
def test_every_exported_file_has_its_passport_and_check_takes_it(exported):
    from hetero.stages.running import chosen

    (item,) = exported.exported()
    assert Passport.load(beside(exported.path(item))).file_sha256 == item.sha256
    assert chosen(exported, options()) == (item,)


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights_sha256": "d" * 64}, "other weights: hetero.weights_sha256 is dddddddddddd"),
        ({"preprocess": Preprocess(size_px=9)}, "other preprocessing: hetero.preprocess_sha256"),
        ({"space": Space("other", "e" * 64, 8)}, "other space: hetero.space_digest is eeee"),
        ({"file_sha256": "f" * 64}, "its passport says ffff"),
    ],
)
def test_check_refuses_a_file_whose_passport_is_of_something_else(exported, change, words):
    from hetero.stages.running import chosen

    (item,) = exported.exported()
    path = beside(exported.path(item))
    kept = path.read_bytes()
    found = Passport.load(path)
    if "space" in change:
        change = {"space": replace(change["space"], dim=found.space.dim)}
    try:
        replace(found, **change).save(path)
        with pytest.raises(BundleError, match=words):
            chosen(exported, options())
    finally:
        path.write_bytes(kept)


@pytest.mark.toolchain
def test_the_file_with_the_whole_path_gives_what_preprocessing_outside_gives(exported):
    from PIL import Image

    from hetero import export
    from hetero.export import _onnx_whole

    (item,) = exported.exported()
    raw = (exported.root / "whole.fp32.onnx").read_bytes()
    rgb = np.random.default_rng(0).integers(0, 256, (91, 57, 3), dtype=np.uint8)
    rgb = np.asarray(Image.fromarray(rgb).resize((57, 91), Image.Resampling.BICUBIC))
    with export.load(exported.path(item), "onnx") as runner:
        right = runner(exported.preprocess.pixels(rgb)[None])
    assert np.abs(_onnx_whole.run(raw, [rgb]) - right).max() < 1e-6


@pytest.mark.toolchain
def test_a_whole_path_that_departs_is_not_written(exported, monkeypatch):
    from hetero.errors import ExportError
    from hetero.export import _onnx_whole
    from hetero.stages.exporting import write_whole

    (item,) = exported.exported()
    before = (exported.root / "whole.fp32.onnx").read_bytes()
    made = _onnx_whole.whole_image
    # The filter of another preprocessing.
    monkeypatch.setattr(
        _onnx_whole, "whole_image", lambda raw, spec: made(raw, replace(spec, resize="box"))
    )
    with pytest.raises(ExportError, match="with the whole path inside, vectors differ"):
        write_whole(exported, item)
    assert (exported.root / "whole.fp32.onnx").read_bytes() == before


@pytest.mark.toolchain
def test_the_whole_path_is_refused_where_it_cannot_be(exported):
    from hetero.errors import ConfigError
    from hetero.progress import Reporter
    from hetero.stages.exporting import export_all

    for formats, bake in ((("tflite",), True), (("onnx",), False)):
        with pytest.raises(ConfigError, match="add the format onnx"):
            export_all(
                exported,
                formats,
                ("fp32",),
                images=None,
                bake=bake,
                batch=None,
                resume=False,
                reporter=Reporter(quiet=True),
                whole=True,
            )
