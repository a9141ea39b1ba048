"""What every export format promises, whatever it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

import exporting  # noqa: E402

from hetero import _plugins  # noqa: E402
from hetero import export as exports  # noqa: E402
from hetero.bundle import Bundle  # noqa: E402
from hetero.errors import BundleError, ConfigError, MissingExtraError  # noqa: E402
from hetero.export import Runner  # noqa: E402

FORMATS = _plugins.names("hetero.export")


@pytest.fixture(params=FORMATS)
def variant(request):
    return exports.module(request.param)


def made(format: str) -> tuple[Bundle, Path]:
    """A bundle with this format's float file; one that other tests use too, where there is one."""
    some = () if format in ("onnx", "tflite") else (("fp32",),)
    try:
        bundle, _ = exporting.exported(format, *some)
    except MissingExtraError as error:
        pytest.skip(str(error))
    return bundle, bundle.path(bundle.artifact(format, "fp32"))


@pytest.fixture(params=FORMATS)
def file(request):
    bundle, path = made(request.param)
    return exports.module(request.param), bundle, path


def spoilt(path: Path, to: Path, change) -> Path:
    """A copy of a file, or of a folder with its largest file changed."""
    copy = to / path.name
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    parts = [copy] if copy.is_file() else [p for p in copy.rglob("*") if p.is_file()]
    victim = max(parts, key=lambda p: p.stat().st_size)
    victim.write_bytes(change(victim.read_bytes()))
    return copy


def test_there_are_the_three_formats():
    assert {"onnx", "tflite", "coreml"} <= set(FORMATS)
    assert exports.formats() == FORMATS


def test_a_format_says_what_it_is(variant):
    assert variant.SUFFIX.startswith(".")
    assert isinstance(variant.DYNAMIC_BATCH, bool)
    assert isinstance(variant.RUNS_HERE, str)
    assert isinstance(variant.EXTRA, str)
    assert variant.__doc__


def test_its_file_gives_the_probes_vectors(file):
    variant, bundle, path = file
    probe = bundle.probe()
    item = bundle.artifact(variant.__name__.rpartition(".")[2], "fp32")
    with variant.load(path) as runner:
        assert isinstance(runner, Runner)
        assert runner.runtime
        rows = runner(bundle.inputs(item, probe.pixels))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, probe.vectors, atol=1e-4)


def test_it_takes_any_number_of_pictures_and_changes_none(file):
    variant, bundle, path = file
    probe = bundle.probe()
    with variant.load(path) as runner:
        for n in (1, 5):
            given = probe.pixels[:n].copy()
            rows = runner(given)
            np.testing.assert_allclose(rows, probe.vectors[:n], atol=1e-4)
            np.testing.assert_array_equal(given, probe.pixels[:n])


def test_its_metadata_is_what_the_bundle_says(file):
    variant, bundle, path = file
    assert variant.metadata(path) == exports.metadata_of(bundle, "fp32", True)
    assert variant.metadata(path)["hetero.space_id"] == "gallery@0123456789ab"


def test_its_file_is_listed_and_whole(file):
    variant, bundle, path = file
    item = bundle.artifact(variant.__name__.rpartition(".")[2], "fp32")
    assert (item.sha256, item.size_bytes) == exports.digest(path)
    assert path.name == f"model.fp32{variant.SUFFIX}"
    assert item.batch == (0 if variant.DYNAMIC_BATCH else 1)
    bundle.verify()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda raw: b"", id="empty"),
        pytest.param(lambda raw: raw[:7], id="beginning"),
        pytest.param(lambda raw: raw[: len(raw) // 2], id="half"),
        pytest.param(lambda raw: raw[:-1], id="all but a byte"),
        pytest.param(lambda raw: raw + b"\0", id="a byte more"),
        pytest.param(lambda raw: b"\x89PNG\r\n\x1a\n" + raw[8:], id="a picture"),
        pytest.param(
            lambda raw: (
                raw[: len(raw) * 2 // 3]
                + bytes([raw[len(raw) * 2 // 3] ^ 4])
                + raw[len(raw) * 2 // 3 + 1 :]
            ),
            id="a bit",
        ),
    ],
)
def test_a_spoilt_file_is_refused_in_one_line(file, tmp_path, change):
    variant, _, path = file
    copy = spoilt(path, tmp_path, change)
    with pytest.raises(BundleError) as caught:
        variant.load(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_in_one_line(variant, tmp_path):
    for call in (variant.load, variant.metadata):
        with pytest.raises(BundleError, match="gone"):
            call(tmp_path / f"gone{variant.SUFFIX}")


def test_another_formats_file_is_refused(file, tmp_path):
    variant, _, _ = file
    path = tmp_path / f"model{variant.SUFFIX}"
    path.write_bytes(b"PK\x03\x04" + bytes(500))
    for call in (variant.load, variant.metadata):
        with pytest.raises(BundleError):
            call(path)


def test_pictures_of_another_size_are_refused(file):
    variant, _, path = file
    with variant.load(path) as runner, pytest.raises(ConfigError, match="takes uint8"):
        runner(np.zeros((1, 8, 8, 3), np.uint8))
    with variant.load(path) as runner, pytest.raises(ConfigError, match="got float32"):
        runner(np.zeros((1, exporting.SIZE, exporting.SIZE, 3), np.float32))
