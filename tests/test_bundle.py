from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from geometry import space
from hypothesis import example, given
from hypothesis import strategies as st

from hetero import _files, _manifest
from hetero.bundle import MANIFEST, Artifact, Bundle, Model, digest, space_digest
from hetero.errors import BundleError, ConfigError, StorageError
from hetero.preprocess import Preprocess

MODEL = Model(backbone="resnet:width=8", dim=3, parameters=10, macs=100)
SPACE = space(3)


def make(root: Path, seed: int = 0, **changes) -> Bundle:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2, 3)).astype(np.float32)
    arguments = {
        "role": "query",
        "space": SPACE,
        "model": MODEL,
        "preprocess": Preprocess(size_px=8),
        "recipe": {"method": "bct", "epochs": 2, "lr": 0.1, "flip": True},
        "parent": "b" * 64,
        "data": {"source": "emoji", "classes": 7},
        "made_with": {"torch": "2"},
        "tensors": {
            "weights": {"a": rng.normal(size=(4, 3)).astype(np.float32), "n": np.array(3)},
            "probe": {
                "ids": np.frombuffer(b"cat\ndog", np.uint8),
                "pixels": rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8),
                "vectors": rows / np.linalg.norm(rows, axis=1, keepdims=True),
            },
        },
    }
    return Bundle.create(root, **{**arguments, **changes})


def with_file(made: Bundle, name: str = "model.int8.onnx", content: bytes = b"onnx") -> Bundle:
    path = made.root / name
    path.write_bytes(content)
    sha, size = digest(path)
    return made.with_artifact(
        Artifact(path=name, kind="onnx", precision="int8", sha256=sha, size_bytes=size)
    )


def rewrite(root: Path, change) -> None:
    """Change a manifest's content and seal it again, as somebody who means it would."""
    content = json.loads((root / MANIFEST).read_bytes())
    del content["sha256"]
    content = change(content) or content
    (root / MANIFEST).write_text(json.dumps({**content, "sha256": _manifest.seal(content)}))


def refused(root: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.load(root)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_was_created_is_what_is_loaded(tmp_path):
    made = make(tmp_path / "q")
    back = Bundle.load(tmp_path / "q")
    assert back == made
    assert (back.role, back.space, back.preprocess) == ("query", SPACE, Preprocess(size_px=8))
    assert back.manifest.recipe == {"method": "bct", "epochs": 2, "lr": 0.1, "flip": True}
    assert back.tensors("weights")["n"] == 3
    assert back.probe().ids == ("cat", "dog")
    assert back.probe().pixels.shape == (2, 8, 8, 3)
    assert back.digest == digest(tmp_path / "q" / "weights.safetensors")[0]


def test_equal_content_gives_equal_bytes(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_an_added_file_is_found_and_replaces_its_like(tmp_path):
    made = with_file(with_file(make(tmp_path)), "other.onnx", b"other")
    back = Bundle.load(tmp_path)
    assert back == made
    assert [f.path for f in back.exported()] == ["other.onnx"]
    assert back.path(back.artifact("onnx", "int8")).read_bytes() == b"other"
    assert [f.path for f in back.without_artifact("onnx", "int8").exported()] == []
    assert Bundle.load(tmp_path).exported() == ()


def test_asking_for_what_is_not_there_lists_what_is(tmp_path):
    with pytest.raises(BundleError, match=r"no tflite fp16 file; there are: weights, probe, onnx"):
        with_file(make(tmp_path)).artifact("tflite", "fp16")


# -- tampering ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    made = with_file(make(root))
    package = root / "model.fp16.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weight.bin").write_bytes(b"weights of a folder")
    (package / "Manifest.json").write_text("{}")
    sha, size = digest(package)
    made.with_artifact(
        Artifact(path=package.name, kind="coreml", precision="fp16", sha256=sha, size_bytes=size)
    )
    Bundle.load(root)
    return root


@pytest.fixture(scope="module")
def tampered(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("tampered") / "bundle"
    shutil.copytree(sound, root)
    yield root
    Bundle.load(root)  # every test has put back what it changed


FILES = (
    MANIFEST,
    "weights.safetensors",
    "probe.safetensors",
    "model.int8.onnx",
    "model.fp16.mlpackage/Data/weight.bin",
    "model.fp16.mlpackage/Manifest.json",
)


@given(st.sampled_from(FILES), st.integers(0), st.integers(0, 7))
def test_one_bit_flipped_anywhere_in_any_file_is_found_and_the_file_named(tampered, name, at, bit):
    path = tampered / name
    raw = path.read_bytes()
    at %= len(raw)
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
    try:
        assert str(tampered / name.split("/")[0]) in refused(tampered)
    finally:
        path.write_bytes(raw)


@pytest.mark.parametrize("mask", [1])
def test_no_byte_of_a_manifest_can_be_another_one(tampered, mask):
    path = tampered / MANIFEST
    raw = path.read_bytes()
    try:
        for at in range(len(raw)):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :])
            with pytest.raises(BundleError, match=MANIFEST):
                Bundle.load(tampered, verify=False)
    finally:
        path.write_bytes(raw)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_named(tampered, name):
    path = tampered / name
    raw = path.read_bytes()
    try:
        for cut in {0, 1, len(raw) // 2, len(raw) - 2}:
            path.write_bytes(raw[:cut])
            assert str(tampered / name.split("/")[0]) in refused(tampered)
    finally:
        path.write_bytes(raw)


def test_the_last_line_break_is_all_that_a_manifest_can_lose(tampered):
    path = tampered / MANIFEST
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    try:
        Bundle.load(tampered)
    finally:
        path.write_bytes(raw)


@pytest.mark.parametrize("name", FILES[1:4])
def test_a_missing_file_is_named(tampered, name):
    path = tampered / name
    raw = path.read_bytes()
    path.unlink()
    try:
        assert refused(tampered) == f"{path}: listed in the manifest but missing"
    finally:
        path.write_bytes(raw)


def test_a_file_too_many_in_an_exported_folder_is_found(tampered):
    extra = tampered / "model.fp16.mlpackage" / "Data" / "more"
    extra.write_bytes(b"")
    try:
        assert "model.fp16.mlpackage: altered" in refused(tampered)
    finally:
        extra.unlink()


def test_two_files_of_a_folder_that_change_places_are_found(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    before = digest(tmp_path)
    (tmp_path / "a").write_bytes(b"2")
    (tmp_path / "b").write_bytes(b"1")
    assert digest(tmp_path) != before


def test_the_hash_of_a_folder_is_what_sha256sum_prints_hashed(sound):
    package = sound / "model.fp16.mlpackage"
    lines = subprocess.run(
        "LC_ALL=C find . -type f | sed 's,^./,,' | LC_ALL=C sort | xargs sha256sum | sha256sum",
        shell=True,
        cwd=package,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert digest(package)[0] == lines.split()[0]


# -- manifests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/passwd", "a\\b", "", ".", "a\0b", "a/.."],
)
def test_a_path_that_could_leave_the_bundle_is_refused(tmp_path, path):
    make(tmp_path / "q")

    def change(content):
        content["files"][0]["path"] = path

    rewrite(tmp_path / "q", change)
    assert "leaves the bundle" in refused(tmp_path / "q")


def test_a_link_that_leaves_the_bundle_is_refused_even_if_its_target_has_the_right_bytes(tmp_path):
    make(tmp_path / "q")
    inside = tmp_path / "q" / "weights.safetensors"
    inside.rename(tmp_path / "outside")
    inside.symlink_to(tmp_path / "outside")
    assert refused(tmp_path / "q") == f"{inside}: leads out of the bundle"


def test_a_link_that_leaves_from_within_an_exported_folder_is_refused(sound, tmp_path):
    root = tmp_path / "q"
    shutil.copytree(sound, root)
    inside = root / "model.fp16.mlpackage" / "Data" / "weight.bin"
    inside.rename(tmp_path / "outside")
    inside.symlink_to(tmp_path / "outside")
    assert "leads out of the bundle" in refused(root)


def test_a_link_to_itself_is_refused(tmp_path):
    make(tmp_path / "q")
    (tmp_path / "q" / "weights.safetensors").unlink()
    (tmp_path / "q" / "weights.safetensors").symlink_to("weights.safetensors")
    assert "weights.safetensors" in refused(tmp_path / "q")


@pytest.mark.parametrize("schema", ["hetero.bundle/0", "hetero.report/1", "", None, 1])
def test_another_schema_is_refused_by_name(tmp_path, schema):
    make(tmp_path / "q")
    rewrite(tmp_path / "q", lambda content: {**content, "schema": schema})
    text = refused(tmp_path / "q")
    assert f"schema {schema!r}, this program reads 'hetero.bundle/1'" in text


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '"x"', "[" * 100_000, "1" * 5_000, "\ud83d", '{"schema": "\\ud800"}'],
    ids=lambda c: c[:10],
)
def test_a_manifest_that_is_not_one_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content.encode(errors="surrogatepass"))
    assert MANIFEST in refused(tmp_path)


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path):
    assert "not a bundle, it has no manifest.json" in refused(tmp_path)
    assert "not a bundle" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "a bundle is a folder; name the folder that it is in" in refused(tmp_path / "file")
    (tmp_path / MANIFEST).mkdir()
    assert "cannot be read" in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"role": "both"}, "first at role"),
        ({"space_name": ""}, "needs a name"),
        ({"space_digest": "0"}, "first at space_digest"),
        ({"model": {**MODEL.model_dump(), "dim": 0}}, "first at model.dim"),
        ({"preprocess": {}}, "preprocess"),
        ({"preprocess": {**Preprocess().to_json(), "size_px": 1}}, "size_px must be"),
        ({"preprocess": {**Preprocess().to_json(), "std": [1, 1, 0]}}, "std"),
        ({"preprocess": {**Preprocess().to_json(), "mean": [10**400, 0, 0]}}, "preprocess"),
        ({"preprocess": {**Preprocess().to_json(), "crop": 1}}, "crop"),
        ({"recipe": {"lr": [1]}}, "first at recipe.lr"),
        ({"surprise": 1}, "first at surprise"),
        ({"files": [{"path": "x"}]}, "first at files.0.kind"),
    ],
)
def test_a_manifest_with_a_mistake_says_where(tmp_path, change, says):
    make(tmp_path)
    rewrite(tmp_path, lambda content: {**content, **change})
    text = refused(tmp_path)
    assert text.startswith(f"{tmp_path / MANIFEST}: ")
    assert says in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "kind", "dim", "mean", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = [
    "schema",
    "role",
    "space_name",
    "space_digest",
    "model",
    "preprocess",
    "recipe",
    "parent",
    "nested",
    "data",
    "files",
    "made_with",
]


@given(st.data())
def test_no_manifest_whatever_gives_anything_but_a_bundle_or_a_bundle_error(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "fuzz"
    if not root.exists():
        with_file(make(root))
    content = json.loads((root / MANIFEST).read_bytes())
    del content["sha256"]
    key = data.draw(st.sampled_from(KEYS))
    inside = content[key]
    if isinstance(inside, list) and inside and data.draw(st.booleans()):
        inside = inside[data.draw(st.integers(0, len(inside) - 1))]
    if isinstance(inside, dict) and inside and data.draw(st.booleans()):
        inside[data.draw(st.sampled_from([*inside, "x"]))] = data.draw(JSON)
    else:
        content[key] = data.draw(JSON)
    other = root.parent / "fuzzed"
    shutil.copytree(root, other, dirs_exist_ok=True)
    (other / MANIFEST).write_bytes(
        json.dumps({**content, "sha256": _manifest.seal(content)}).encode(errors="surrogatepass")
    )
    try:
        loaded = Bundle.load(other)
    except BundleError:
        return
    assert (loaded.space.dim, loaded.preprocess.size_px) >= (1, 8)


@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf{}")
def test_no_bytes_whatever_give_anything_but_a_bundle_error(tmp_path_factory, raw):
    root = tmp_path_factory.getbasetemp() / "bytes"
    root.mkdir(exist_ok=True)
    (root / MANIFEST).write_bytes(raw)
    assert MANIFEST in refused(root)


@pytest.mark.parametrize(
    "probe",
    [
        {},
        {"ids": np.frombuffer(b"\xff", np.uint8)},
        {"ids": np.frombuffer(b"a", np.uint8), "pixels": np.zeros((1, 8, 8, 3), np.uint8)},
        {
            "ids": np.frombuffer(b"a\nb", np.uint8),
            "pixels": np.zeros((1, 8, 8, 3), np.uint8),
            "vectors": np.zeros((1, 3), np.float32),
        },
        {
            "ids": np.frombuffer(b"a", np.uint8),
            "pixels": np.zeros((1, 8, 8, 3), np.float32),
            "vectors": np.zeros((1, 3), np.float32),
        },
    ],
    ids=["empty", "not text", "no vectors", "two ids for one row", "float pixels"],
)
def test_a_probe_that_is_not_one_is_refused(tmp_path, probe):
    made = make(tmp_path, tensors={"probe": probe})
    with pytest.raises(BundleError, match=r"probe\.safetensors"):
        made.probe()


# -- writing ------------------------------------------------------------------------------------


def contents(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.iterdir()}


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_disk_that_fills_while_a_bundle_is_written_leaves_the_last_one_whole(
    tmp_path, monkeypatch, moment
):
    make(tmp_path, seed=0)
    before = contents(tmp_path)
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == moment:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        make(tmp_path, seed=1)
    assert contents(tmp_path) == before
    Bundle.load(tmp_path)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "tiny"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this root may not mount: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full_is_said_and_costs_nothing(tiny_disk):
    root = tiny_disk / "bundle"
    make(root)
    before = contents(root)
    much = {"weights": {"a": np.zeros(50_000, np.float32)}}
    with pytest.raises(StorageError, match="the disk is full; free some space"):
        make(root, tensors=much)
    assert contents(root) == before
    Bundle.load(root)


def test_a_folder_that_may_not_be_written_is_said_and_stays_as_it_is(tmp_path):
    root = tmp_path / "q"
    made = make(root)
    before = contents(root)
    root.chmod(0o500)
    if os.access(root, os.W_OK):
        root.chmod(0o700)
        pytest.skip("this user may write anywhere; a read-only file system stands in below")
    try:
        with pytest.raises(ConfigError, match="no permission to write"):
            made.without_artifact("probe", "")
    finally:
        root.chmod(0o700)
    assert contents(root) == before


def test_a_file_system_that_may_not_be_written_is_said(tiny_disk):
    made = make(tiny_disk / "q")
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(ConfigError, match="no permission to write"):
        made.without_artifact("probe", "")
    assert Bundle.load(tiny_disk / "q") == made


def test_a_space_is_another_if_weights_preprocessing_or_dimension_are():
    same = space_digest("a" * 64, Preprocess(), 8)
    assert same == space_digest("a" * 64, Preprocess(), 8)
    others = {
        same,
        space_digest("b" * 64, Preprocess(), 8),
        space_digest("a" * 64, Preprocess(size_px=64), 8),
        space_digest("a" * 64, Preprocess(), 9),
    }
    assert len(others) == 4
