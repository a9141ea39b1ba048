"""devices.toml: names for devices, how it is edited, and what makes itself known."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_chain import Hetero, Ran

from hetero import cli
from hetero.devices import Entry, Inventory, _discover, _inventory, load_inventory, open_device
from hetero.errors import ConfigError

pytest.importorskip("tomlkit", reason="needs the extra 'fleet'")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Hetero:
    """The command line, in an empty working folder and with an empty configuration."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def call(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["hetero", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main()
        code = done.value.code
        return Ran(code if isinstance(code, int) else 0, *capfd.readouterr())

    return call


FULL = """\
# my devices
[devices]
desk = "local:threads=2"  # the loud one

# out there
garage = { spec = "local", note = "Pi 4", tags = ["arm", "cold"] }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "devices.toml"
    path.write_text(text)
    return path


# -- the file -------------------------------------------------------------------------------------


def test_a_device_is_a_text_or_a_table(tmp_path: Path) -> None:
    found = load_inventory(written(tmp_path, FULL))
    assert found.entries == {
        "desk": Entry(spec="local:threads=2"),
        "garage": Entry(spec="local", note="Pi 4", tags=["arm", "cold"]),
    }
    assert found.chosen() == ("desk", "garage")
    assert found.chosen("cold") == ("garage",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[devices\n", "not TOML"),
        ("devices = 3", "not a table"),
        ('[device]\na = "local"', "unknown key 'device'"),
        ("[devices]\na = 3", "a: "),
        ('[devices]\na = { spce = "local" }', "a.spec"),
        ('[devices]\na = { spec = "local", threads = 2 }', "a.threads"),
        ('[devices]\na = { spec = "local", tags = ["two words"] }', "two words"),
        ('[devices]\na = ""', "not KIND"),
        ('[devices]\na = "ssh:x\\n"', "not KIND"),
        ('[devices]\n"a b" = "local"', "'a b'"),
        ('[devices]\n"-x" = "local"', "'-x'"),
    ],
)
def test_what_is_no_inventory_is_refused_in_one_line_that_names_the_file(
    tmp_path: Path, text: str, words: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_inventory(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 or words == "not TOML"


@given(st.binary(max_size=200))
def test_any_bytes_are_an_inventory_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("inventory") / "devices.toml"
    path.write_bytes(data)
    try:
        found: object = load_inventory(path)
    except ConfigError as error:
        found = str(error)
    assert isinstance(found, Inventory) or str(path) in str(found)


def test_the_working_folder_comes_before_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    assert load_inventory().entries == {}
    (tmp_path / "config" / "hetero").mkdir(parents=True)
    written(tmp_path / "config" / "hetero", '[devices]\nmine = "local"\n')
    if sys.platform == "linux":
        assert list(load_inventory().entries) == ["mine"]
    written(tmp_path, '[devices]\nhere = "local"\n')
    assert list(load_inventory().entries) == ["here"]


def test_adding_and_removing_leaves_comments_and_all_others_alone(tmp_path: Path) -> None:
    path = written(tmp_path, FULL)
    after = _inventory.add(path, "tram", "local:threads=3", note="moves", tags=["arm"])
    assert load_inventory(path) == after
    assert after.entries["tram"] == Entry(spec="local:threads=3", note="moves", tags=["arm"])
    assert path.read_text().startswith(FULL)
    _inventory.remove(path, "desk")
    text = path.read_text()
    assert list(load_inventory(path).entries) == ["garage", "tram"]
    for kept in ("# my devices", "# out there", 'note = "Pi 4"'):
        assert kept in text


def test_a_name_is_not_given_twice_and_not_taken_from_nowhere(tmp_path: Path) -> None:
    path = written(tmp_path, FULL)
    with pytest.raises(ConfigError, match="'desk' is there already"):
        _inventory.add(path, "desk", "local")
    with pytest.raises(ConfigError, match=r"no device 'shed' .*desk, garage"):
        _inventory.remove(path, "shed")
    assert path.read_text() == FULL


# -- a name as a device ---------------------------------------------------------------------------

OWN = Inventory(
    {"desk": Entry(spec="local:threads=2"), "local": Entry(spec="local")}, Path("devices.toml")
)


def test_a_name_of_the_inventory_is_what_the_device_is_called() -> None:
    device = open_device("desk", OWN)
    assert (device.name, device.threads) == ("desk", 2)
    other = Inventory({"desk": Entry(spec="local:threads=2")})
    assert open_device("local:threads=3", other).name == "local:threads=3"


def test_a_name_that_is_also_a_kind_is_an_error_not_a_guess() -> None:
    with pytest.raises(ConfigError, match="'local' is a kind of device and a name in devices"):
        open_device("local", OWN)


def test_the_address_of_a_named_device_stands_in_the_inventory() -> None:
    with pytest.raises(ConfigError, match="write --device desk"):
        open_device("desk:threads=3", OWN)


def test_an_unknown_name_lists_the_inventory_and_the_kinds() -> None:
    with pytest.raises(ConfigError, match=r"unknown device 'shed'; .*desk, local, .*local"):
        open_device("shed", OWN)


# -- the commands ---------------------------------------------------------------------------------


def test_devices_alone_lists_the_kinds_as_before(run: Hetero) -> None:
    assert "local" in json.loads(run("devices", "--json").out)["devices"]
    assert "local: onnx, tflite" in run("devices").out


def test_a_device_is_added_listed_and_removed(run: Hetero, tmp_path: Path) -> None:
    assert run("devices", "add", "desk", "local:threads=2", "--tag", "x86").code == 0
    listed = json.loads(run("devices", "list", "--json").out)
    assert listed["devices"] == [
        {"name": "desk", "spec": "local:threads=2", "note": "", "tags": ["x86"]}
    ]
    if sys.platform == "linux":
        assert listed["inventory"] == str(tmp_path / "config" / "hetero" / "devices.toml")
    assert run("devices", "remove", "desk").code == 0
    assert "run: hetero devices add" in run("devices", "list").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "local", "local"), "is a kind of device"),
        (("add", "x", "locla"), "unknown device 'locla'"),
        (("add", "x", "local:speed=9"), "speed=9"),
        (("add", "x y", "local"), "'x y'"),
        (("remove", "x"), "no such inventory"),
        (("doctor",), "no device in it"),
        (("doctor", "shed"), "unknown device 'shed'"),
        (("build", "shed"), "unknown device 'shed'"),
        (("list", "--inventory", "none.toml"), "none.toml: there is no such inventory"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_wrong_use_is_one_line_and_exit_code_2(
    run: Hetero, words: tuple[str, ...], said: str
) -> None:
    ran = run("devices", *words)
    assert ran.code == 2
    assert said in ran.complaint


def test_doctor_examines_several_devices_and_fails_when_one_does(
    run: Hetero, tmp_path: Path
) -> None:
    useless = tmp_path / "python"
    useless.write_text("#!/bin/sh\nexit 3\n")
    useless.chmod(0o755)
    run("devices", "add", "desk", "local")
    run("devices", "add", "shed", f"local:python={useless}")
    ran = run("devices", "doctor", "--json")
    assert ran.code == 4
    found = json.loads(ran.out)["devices"]
    assert list(found) == ["desk", "shed"]
    assert {c["check"] for c in found["desk"]} >= {"python", "processor", "disk"}
    (broken,) = found["shed"]
    assert broken["status"] == "fail"
    assert broken["detail"].startswith("shed: ")
    assert broken["fix"]


def test_build_says_so_where_there_is_nothing_to_build_and_calls_it_where_there_is(
    run: Hetero, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hetero.devices import local

    assert "nothing to build" in run("devices", "build", "local").out

    def build(report: object) -> Path:
        assert callable(report)
        report("half way")
        return Path("/cache/local")

    monkeypatch.setattr(local, "build", build, raising=False)
    ran = run("devices", "build", "local")
    assert ran.out == "local: ready in /cache/local\n"
    assert "half way" in ran.err


# -- discovery ------------------------------------------------------------------------------------


def fake_adb(folder: Path, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / "adb"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


ADB = """\
cat <<'END'
* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
R58M123ABC             device usb:1-1 product:beyond1 model:SM_G973F device:beyond1 transport_id:1
192.168.1.20:5555      device product:panther model:Pixel_7 device:panther transport_id:2
0123456789ABCDEF       unauthorized usb:1-2 transport_id:3
-oProxyCommand=evil    device model:Evil
END
"""


def test_adb_devices_become_entries_with_what_to_do_for_those_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_adb(tmp_path / "bin", f'test "$1 $2" = "devices -l" || exit 9\n{ADB}')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    found, why = _discover.over_adb()
    assert why == ""
    assert [(x.name, x.spec, x.usable) for x in found] == [
        ("sm-g973f", "adb:R58M123ABC", True),
        ("pixel-7", "adb:192.168.1.20:5555", True),
        ("0123456789abcdef", "adb:0123456789ABCDEF", False),
    ]
    assert found[0].detail == "SM G973F"
    assert "allow USB debugging" in found[2].detail


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo 'no server' >&2; exit 1", "exit code 1.*no server"), ("exec sleep 60", "within 0.5 s")],
)
def test_an_adb_that_fails_or_hangs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    import re

    fake_adb(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    found, why = _discover.over_adb(timeout_s=0.5)
    assert found == []
    assert re.search(said, why)


def test_without_adb_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _discover.over_adb() == ([], "adb is not on PATH")


@pytest.fixture
def announced() -> Iterator[None]:
    """A board with SSH, one with SSH at an odd port, and a phone, announced on loopback."""
    zeroconf = pytest.importorskip("zeroconf", reason="needs the extra 'fleet'")
    services = [
        zeroconf.ServiceInfo(
            kind, f"{host}.{kind}", port=port, addresses=[socket.inet_aton(ip)],
            server=f"{host}.local.",
        )
        for kind, host, port, ip in (
            ("_ssh._tcp.local.", "hetero-garage", 22, "127.0.0.1"),
            ("_workstation._tcp.local.", "hetero-garage", 9, "127.0.0.1"),
            ("_ssh._tcp.local.", "hetero-shed", 2222, "127.0.0.1"),
            ("_adb-tls-connect._tcp.local.", "hetero-phone", 37015, "127.0.0.1"),
        )
    ]  # fmt: skip
    with zeroconf.Zeroconf(interfaces=["127.0.0.1"]) as speaker:
        for one in services:
            speaker.register_service(one)
        yield


def test_what_announces_itself_by_mdns_is_found_once(announced: None) -> None:
    found, why = _discover.over_mdns(6.0, interfaces=["127.0.0.1"])
    if not found and why:
        pytest.skip(why)
    ours = {x.spec: x for x in found if "hetero-" in x.name or "hetero-" in x.detail}
    assert set(ours) == {
        "ssh:hetero-garage.local",
        "ssh:hetero-shed.local:2222",
        "adb:127.0.0.1:37015",
    }
    assert ours["ssh:hetero-garage.local"].name == "hetero-garage"
    assert "adb pair" in ours["adb:127.0.0.1:37015"].detail


def test_each_find_is_listed_with_the_line_that_adds_it(
    run: Hetero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_adb(tmp_path / "bin", ADB)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(_discover, "over_mdns", lambda *_: ([], "no multicast here"))
    ran = run("devices", "list", "--discover")
    assert "add: hetero devices add pixel-7 adb:192.168.1.20:5555" in ran.out
    assert "mdns: no multicast here" in ran.out
    assert "ProxyCommand" not in ran.out
    seen = json.loads(run("devices", "list", "--discover", "--json").out)
    assert [x["how"] for x in seen["discovered"]] == ["adb"] * 3
