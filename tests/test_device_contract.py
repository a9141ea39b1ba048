"""What every kind of device promises, whatever is at its other end."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from coreml_double import write_coreml
from fakes import tiny_answers, tiny_pixels, write_onnx
from pages import ASSETS, MISSING

from hetero import _plugins
from hetero.devices import Device, Link, Plan, formats_of, run
from hetero.devices._protocol import RUNTIMES
from hetero.errors import ConfigError, DeviceError

KINDS = _plugins.names("hetero.devices")
PLAN = Plan(warmup_runs=1, warmup_s=0, min_runs=3, min_s=0, timeout_s=120)

#: Addresses of kinds that need more than "" to be there without a person, and why they are not.
ADDRESSES = {"browser": f"chromium=yes,assets={ASSETS}"}
ABSENT = {"browser": MISSING}


@pytest.fixture(params=[*KINDS, "local:worker=native"])
def device(request):
    """One of each kind; a kind that needs an address has it from a fixture KIND_address."""
    kind, _, address = request.param.partition(":")
    if ABSENT.get(kind):
        pytest.skip(f"there is no such device here: {ABSENT[kind]}")
    with contextlib.suppress(pytest.FixtureLookupError):
        address = address or ADDRESSES.get(kind) or request.getfixturevalue(f"{kind}_address")
    return _plugins.load("hetero.devices", kind).device(address)


@pytest.fixture(autouse=True, scope="module")
def _nothing_stays_open():
    yield
    for kind in KINDS:
        getattr(_plugins.load("hetero.devices", kind), "close_all", int)()


@pytest.fixture
def link(device, tmp_path):
    try:
        with device.connect(tmp_path / "work") as opened:
            yield opened
    except (DeviceError, ConnectionError) as error:
        pytest.skip(f"there is no such device here: {error}")


def test_there_are_devices():
    assert "local" in KINDS


def test_a_device_is_one_and_is_named_after_its_module(device):
    assert isinstance(device, Device)
    assert device.name.partition(":")[0] in KINDS
    assert device.execution in ("native", "emulated", "reference")
    assert device.threads is None or device.threads >= 1


def test_an_address_with_an_unknown_option_is_refused(device):
    kind = device.name.partition(":")[0]
    with pytest.raises(ConfigError, match=kind):
        _plugins.load("hetero.devices", kind).device("no-such-option=1")


def test_a_link_has_the_six_operations(link):
    assert isinstance(link, Link)


def test_a_device_tells_of_itself(link):
    found = link.probe()
    assert {"cpu", "features", "python", "onnxruntime", "litert", "load"} <= set(found)


def test_what_was_put_is_got_back_byte_by_byte(link, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 17)
    link.put(source, "store/some.bin")
    link.get("store/some.bin", target)
    assert target.read_bytes() == source.read_bytes()
    source.write_bytes(b"other")
    link.put(source, "store/some.bin")
    source.write_bytes(b"later")
    link.get("store/some.bin", target)
    assert target.read_bytes() == b"other"


def test_a_file_that_is_there_is_only_replaced_when_asked(link, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for content, again, expected in (
        (b"one", False, b"one"),
        (b"two", False, b"one"),
        (b"two", True, b"two"),
    ):
        source.unlink(missing_ok=True)  # a new file: a device may have linked the one before
        source.write_bytes(content)
        link.put(source, "store/some.bin", again=again)
        link.get("store/some.bin", target)
        assert target.read_bytes() == expected


def test_a_file_that_is_not_there_is_said_to_be_missing(link, tmp_path):
    with pytest.raises(FileNotFoundError):
        link.get("store/none", tmp_path / "target")


def test_a_run_that_never_began_has_an_empty_log_and_stops_without_complaint(link):
    assert link.follow("never", 0) == (b"", False)
    link.stop("never")


def test_a_real_run_gives_the_right_rows_and_the_greeting_of_its_worker(device, link, tmp_path):
    format = formats_of(device)[0]
    pytest.importorskip({"onnx": "onnx", "coreml": "coremltools"}[format])
    if not link.probe()[RUNTIMES[format]]:
        pytest.skip(f"{RUNTIMES[format]} is not installed on this device")
    model = {"onnx": write_onnx, "coreml": write_coreml}[format](tmp_path / "tiny.file")
    pixels = tiny_pixels(3)
    result = run(device, model, format, pixels, folder=tmp_path / "out", plan=PLAN)
    np.testing.assert_allclose(result.outputs, tiny_answers(pixels), rtol=1e-5, atol=1e-2)
    assert len(result.embed_ns) == 3
    assert len(result.latency_ns) >= 3
    assert result.latency_ns.min() > 0
    assert result.peak_memory_bytes > 0
    for fact in ("runtime_version", "cpu", "system", "threads", "provider"):
        assert result.facts[fact], fact
    assert result.facts["execution"] == device.execution
    lines = (result.folder / "log.jsonl").read_text().splitlines()
    order = [json.loads(x)["hetero"] for x in lines]
    assert [x for x in order if x not in ("beat", "telemetry")] == [
        "hello", "ready", "first", "run", "run", "run", "bench", "done",
    ]  # fmt: skip
