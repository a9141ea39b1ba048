"""Phones by the real adb client, against a double of adbd; what adb and Android say, recorded."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from adbd import Adbd
from fakes import tiny_answers, tiny_pixels, write_onnx, write_tflite
from sshd import Proxy

# The promises of every device, held by a phone too: with the fixtures `device` and `link` of here.
from test_device_contract import (
    test_a_device_is_one_and_is_named_after_its_module,  # noqa: F401
    test_a_device_tells_of_itself,  # noqa: F401
    test_a_file_that_is_not_there_is_said_to_be_missing,  # noqa: F401
    test_a_file_that_is_there_is_only_replaced_when_asked,  # noqa: F401
    test_a_link_has_the_six_operations,  # noqa: F401
    test_a_real_run_gives_the_right_rows_and_the_greeting_of_its_worker,  # noqa: F401
    test_a_run_that_never_began_has_an_empty_log_and_stops_without_complaint,  # noqa: F401
    test_an_address_with_an_unknown_option_is_refused,  # noqa: F401
    test_what_was_put_is_got_back_byte_by_byte,  # noqa: F401
)

from hetero.devices import Plan, _android, _native, examine, open_device, run
from hetero.devices._doctor import judge
from hetero.errors import ConfigError, DeviceError

PLAN = Plan(
    warmup_runs=1, warmup_s=0, min_runs=3, min_s=0, max_s=60, timeout_s=300, reconnect_s=120
)
#: Where a real adbd listens whose phone sees our temporary folders, or "" for the double.
REAL = os.environ.get("HETERO_ADBD", "")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An adb server of our own, with keys of its own."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed; on Debian: apt-get install adb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("ANDROID_SERIAL", raising=False)
        yield
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What is /data/local/tmp/hetero on a phone; the bundle goes there once."""
    return tmp_path_factory.mktemp("phone")


class RealPhone:
    """A real adbd in the double's place, as `benchmarks.harness.adbd` builds it; a proxy cuts."""

    def __init__(self, port):
        self.proxy = Proxy(port)

    def start(self):
        if self.proxy.down:
            self.proxy.down = False
        else:
            self.proxy.__enter__()

    def stop(self):
        self.proxy.down = True
        self.proxy.cut()

    def cut_now(self):
        self.proxy.cut()

    port = property(lambda self: self.proxy.port)
    connections = property(lambda self: self.proxy.connections)

    def __setattr__(self, name, value):
        if name == "cuts":
            # Behind the greeting, which the double does not count.
            self.proxy.budgets = [(None, 200 + n) for n in value]
        elif name == "proxy":
            super().__setattr__(name, value)
        else:
            pytest.skip(f"only the double can be told to be {name}")


@pytest.fixture
def phone(server, folder):
    """A phone that runs its commands here."""
    if sys.platform != "linux":
        pytest.skip("the native worker is for Linux")
    adbd = RealPhone(int(REAL)) if REAL else Adbd()
    adbd.start()
    yield adbd
    adbd.stop()
    subprocess.run(["adb", "disconnect"], check=False, capture_output=True, timeout=60)


@pytest.fixture
def device(phone, folder):
    return open_device(f"adb:127.0.0.1:{phone.port},folder={folder}")


@pytest.fixture
def link(device, tmp_path):
    with device.connect(tmp_path / "work") as opened:
        yield opened


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    pytest.importorskip("onnx")
    if "HETERO_ONNXRUNTIME" not in _native.libraries():
        pytest.skip("onnxruntime's library is not installed")
    return write_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx")


def ask(device, model, folder, pixels, *, plan=PLAN, **more):
    return run(device, model, "onnx", pixels, folder=folder / "out", plan=plan, **more)


# -- a run ----------------------------------------------------------------------------------------


def test_tflite_runs_there_too(device, tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("pymicro_wakeword")
    model, pixels = write_tflite(tmp_path / "tiny.tflite"), tiny_pixels(3)
    result = run(device, model, "tflite", pixels, folder=tmp_path / "out", plan=PLAN)
    np.testing.assert_allclose(result.outputs, tiny_answers(pixels), rtol=1e-5, atol=1e-2)
    assert result.facts["worker"] == "native"


def test_the_bundle_goes_over_once(device, folder, tmp_path):
    with device.connect(tmp_path / "one"):
        pass
    (bundle,) = folder.glob("bundle-*")
    before = (bundle / "libc.so.6").stat().st_mtime_ns
    with device.connect(tmp_path / "two"):
        pass
    assert list(folder.glob("bundle-*")) == [bundle]
    assert (bundle / "libc.so.6").stat().st_mtime_ns == before


def test_a_slow_phone_is_waited_for(phone, device, tmp_path, onnx_file):
    phone.delay_s = 0.02
    pixels = tiny_pixels(3)
    result = ask(device, onnx_file, tmp_path, pixels)
    np.testing.assert_allclose(result.outputs, tiny_answers(pixels), rtol=1e-5, atol=1e-2)


# -- a way that is cut ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_way_cut_again_and_again_loses_and_doubles_nothing(
    phone, device, tmp_path, onnx_file, seed
):
    with device.connect(tmp_path / "before"):
        pass  # the bundle is there, so that the cuts fall into the run
    luck = random.Random(seed)
    phone.cut_now()
    # From within the first header to well into the run.
    phone.cuts = [luck.randrange(1, 5000) for _ in range(8)]
    before, seen, pixels = phone.connections, [], tiny_pixels(9)
    result = ask(device, onnx_file, tmp_path, pixels, on_event=seen.append)
    assert phone.connections - before >= 5
    np.testing.assert_allclose(result.outputs, tiny_answers(pixels), rtol=1e-5, atol=1e-2)
    assert [x["i"] for x in seen if x["hetero"] == "run"] == list(range(9))
    assert [x["hetero"] for x in seen].count("hello") == 1
    assert result.embed_ns.tolist() == [x["ns"] for x in seen if x["hetero"] == "run"]


@pytest.mark.parametrize("at", [1, 24, 40, 90, 200, 400])
def test_an_answer_cut_at_any_byte_is_never_taken_for_a_whole_one(phone, device, tmp_path, at):
    with device.connect(tmp_path / "before"):
        pass
    phone.cut_now()
    subprocess.run(["adb", "disconnect"], check=False, capture_output=True, timeout=60)
    phone.cuts = [10**9, at]
    with device.connect(tmp_path / "work") as link:
        source = tmp_path / "source"
        source.write_bytes(random.Random(at).randbytes(5000))
        link.put(source, "store/some.bin")
        phone.cut_now()
        with pytest.raises(ConnectionError):
            link.get("store/some.bin", tmp_path / "target")
        assert not (tmp_path / "target").exists()


def test_a_phone_that_goes_away_is_no_failed_model_and_its_run_goes_on_later(
    phone, device, tmp_path, onnx_file
):
    pixels, seen = tiny_pixels(6), []

    def pull(event):
        if event["hetero"] == "ready":
            phone.stop()

    hasty = dataclasses.replace(PLAN, reconnect_s=1)
    with pytest.raises(DeviceError, match=r"cannot be reached .*--resume") as caught:
        ask(device, onnx_file, tmp_path, pixels, plan=hasty, on_event=pull)
    assert caught.value.exit_code == 4
    phone.start()
    again = open_device(device.name)
    result = ask(again, onnx_file, tmp_path, pixels, resume=True, on_event=seen.append)
    np.testing.assert_allclose(result.outputs, tiny_answers(pixels), rtol=1e-5, atol=1e-2)
    assert [x["i"] for x in seen if x["hetero"] == "run"] == list(range(6))


def test_a_worker_killed_there_is_started_again_and_goes_on(device, tmp_path, onnx_file):
    seen = []

    def kill(event):
        seen.append(event)
        greeted = [x for x in seen if x["hetero"] == "hello"]
        if event["hetero"] == "bench" and len(greeted) == 1:
            os.kill(greeted[0]["pid"], 9)

    plan, pixels = dataclasses.replace(PLAN, min_s=2.0), tiny_pixels(3)
    result = ask(device, onnx_file, tmp_path, pixels, plan=plan, on_event=kill)
    assert result.facts["restarts"] == "1"
    assert [x["start"] for x in seen if x["hetero"] == "first"] == [0, 3]
    np.testing.assert_allclose(result.outputs, tiny_answers(pixels), rtol=1e-5, atol=1e-2)


def test_a_full_phone_is_told_as_one(device, folder, tmp_path):
    if REAL:
        pytest.skip("what is mounted here is not seen on the phone, which has mounts of its own")
    store = folder / "store-full"
    store.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(store)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    source = tmp_path / "source"
    source.write_bytes(bytes(200_000))
    try:
        with (
            device.connect(tmp_path / "work") as link,
            pytest.raises(DeviceError, match="its storage is full; free some"),
        ):
            link.put(source, "store-full/some.bin")
        assert not (store / "some.bin").exists()
    finally:
        subprocess.run(["umount", str(store)], check=True)


# -- a phone that cannot be used ------------------------------------------------------------------


def test_a_phone_that_does_not_trust_this_computer_is_told_with_the_cure(phone, device, tmp_path):
    phone.trusting = False
    with (
        pytest.raises(DeviceError, match="allow USB debugging") as caught,
        device.connect(tmp_path),
    ):
        pass
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_a_phone_that_is_not_there_is_told_at_once_with_the_cure(server, tmp_path):
    device = open_device(f"adb:127.0.0.1:{free_port()}")
    with (
        pytest.raises(DeviceError, match=r"nothing answers there; .*adb pair"),
        device.connect(tmp_path),
    ):
        pass
    ((what, status, detail, _),) = examine(open_device("adb"))
    assert (what, status) == ("device", "fail")
    assert "no phone is connected" in detail


def test_adb_that_is_not_installed_is_told_with_what_to_install(tmp_path):
    device = open_device("adb:adb=/nowhere/adb")
    with (
        pytest.raises(DeviceError, match="install Android's platform tools"),
        device.connect(tmp_path),
    ):
        pass


def test_a_processor_without_a_worker_is_named(device, tmp_path, monkeypatch):
    monkeypatch.setattr(_native, "FOLDER", tmp_path)
    with pytest.raises(DeviceError, match="no worker for its processor"), device.connect(tmp_path):
        pass


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("R58M,threads=0", "threads must be a number"),
        ("R58M,cores=xyz", "cores must be a mask in hexadecimal"),
        ("R58M,folder=tmp", "folder must be an absolute path"),
        ("-s", "is no serial number"),
        ("a b", "is no serial number"),
        ("R58M,port=1", "cannot use 'port=1'"),
    ],
)
def test_an_address_that_names_no_phone_is_refused(address, said):
    with pytest.raises(ConfigError, match=said):
        open_device(f"adb:{address}")


def test_an_address_names_phone_threads_and_cores():
    device = open_device("adb:192.168.1.20:5555,threads=4,cores=f0")
    assert (device.serial, device.threads, device.cores) == ("192.168.1.20:5555", 4, "f0")
    assert device.execution == "native"
    assert open_device("adb:emulator-5554").execution == "emulated"


#: As `adb devices` of versions 29 and 34 prints it.
LISTING = """\
* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
R58M123ABC\tdevice
0123456789\tunauthorized
????????????\tno permissions (user in plugdev group; are your udev rules wrong?); see [http://...]
192.168.1.20:5555\toffline

"""


def test_the_list_of_phones_is_understood():
    assert _android.states(LISTING) == {
        "R58M123ABC": "device",
        "0123456789": "unauthorized",
        "????????????": "no permissions",
        "192.168.1.20:5555": "offline",
    }


@pytest.mark.parametrize(
    ("found", "serial", "said"),
    [
        ({}, "", "no phone is connected"),
        ({"A": "device"}, "", ""),
        ({"A": "device", "B": "offline"}, "", ""),
        ({"A": "device", "B": "device"}, "", "2 phones are connected: A, B; name one, as adb:A"),
        ({"A": "unauthorized"}, "", "A does not trust this computer"),
        ({"A": "offline"}, "A", "A does not answer adb"),
        ({"A": "no permissions"}, "A", "udev rules"),
        ({"A": "device"}, "B", "is not connected; connected are: A (device)"),
        ({"A": "device"}, "B:5555", "adb connect B:5555"),
        ({"A": "recovery"}, "A", "start Android"),
        ({"A": "strange"}, "A", "in the state 'strange', expected device"),
    ],
)
def test_what_stands_in_the_way_is_one_line_with_the_cure(found, serial, said):
    told = _android.not_ready(found, serial)
    assert said in told
    assert bool(told) == bool(said)
    assert "\n" not in told


# -- what Android says of itself ------------------------------------------------------------------

#: In the form that Android 14 prints; shortened.
DUMPS = """\
== getprop ro.product.model
Pixel 7
== getprop ro.build.version.release
14
== dumpsys battery
Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  level: 87
  temperature: 291
== dumpsys thermalservice
IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=30.0, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=31.5, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
\tTemperature{mValue=48.25, mType=0, mName=BIG, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
"""


@pytest.mark.parametrize(
    ("old", "new", "what", "status", "detail"),
    [
        ("", "", "android", "ok", "Pixel 7, Android 14"),
        ("", "", "battery", "ok", "87 %, 29 °C, charging by USB"),
        ("level: 87", "level: 9", "battery", "warn", "9 %"),
        ("", "", "thermal status", "ok", "0, no throttling"),
        ("Status: 0", "Status: 3", "thermal status", "warn", "3, severe throttling"),
        ("Override: false", "Override: true", "thermal status", "warn", "overridden"),
    ],
)
def test_battery_and_heat_are_judged(old, new, what, status, detail):
    checks = {name: rest for name, *rest in _android.checks(DUMPS.replace(old, new))}
    assert checks[what][0] == status
    assert detail in checks[what][1]
    assert bool(checks[what][2]) == (status != "ok")


def test_no_android_is_not_judged_as_one():
    assert _android.checks("== getprop ro.product.model\n== dumpsys battery\n") == []


def test_the_doctor_passes_on_what_android_says(link):
    found = dict(link.probe())
    found["checks"] = _android.checks(DUMPS)
    names = [name for name, *_ in judge(found)]
    assert {"worker", "processor", "android", "battery", "thermal status"} <= set(names)


def test_temperatures_come_from_androids_service_where_there_is_one(tmp_path):
    if sys.platform != "linux":
        pytest.skip("the native worker is for Linux")
    tool = tmp_path / "dumpsys"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{DUMPS}END\n")
    tool.chmod(0o755)
    call = [str(_native.program(os.uname().machine)), "--probe", str(tmp_path)]
    more = {**os.environ, "HETERO_DUMPSYS": str(tool)}
    said = subprocess.run(call, env=more, capture_output=True, text=True, check=True).stdout
    heat = json.loads(said)["temperatures_c"]
    assert {"VIRTUAL-SKIN": 31.5, "BIG": 48.25}.items() <= heat.items()


def test_every_state_with_a_cure_says_what_to_do():
    for state, cure in itertools.chain(_android.CURES.items()):
        assert ";" in cure, state
