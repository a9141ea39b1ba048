"""A board over SSH, against a real OpenSSH server on the loopback interface."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from fakes import (
    HELLO,
    FakeDevice,
    line,
    raw_files,
    tiny_answers,
    tiny_pixels,
    transcript,
    write_onnx,
)
from sshd import Proxy, Sshd, make_key, missing, serving

from hetero.devices import Plan, examine, open_device, run, timing
from hetero.devices import ssh as kind
from hetero.devices._ssh_connection import Connection, known_hosts
from hetero.errors import ConfigError, DeviceError, MissingExtraError

PLAN = Plan(warmup_runs=1, warmup_s=0, min_runs=3, min_s=0, timeout_s=240, reconnect_s=60)
needs_sshd = pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")


@pytest.fixture(autouse=True)
def strange_hosts():
    """No test knows a host from another one."""
    known_hosts().unlink(missing_ok=True)


def connect(address, folder):
    return open_device(f"ssh:{address}").connect(folder)


def refused(address, folder) -> str:
    with pytest.raises(DeviceError) as caught, connect(address, folder):
        pass
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "expected ssh:[user@]host[:port], then options: key=..."),
        ("threads=2", "cannot use the address 'threads=2'"),
        ("pi@garage,cores=2", "cannot use 'cores=2'"),
        ("pi@garage,threads=0", "threads must be a number of at least 1, got '0'"),
        ("pi@garage,key=/nowhere", "key=/nowhere is not a file on this machine"),
        ("pi@garage,bootstrap=1", "bootstrap must be yes or no, got '1'"),
        ("pi@garage:0", "'pi@garage:0' is no host"),
        ("pi@garage:70000", "'pi@garage:70000' is no host"),
        ("pi@a@b", "'pi@a@b' is no host"),
        ("pi@garage,jump=x:y:z", "'x:y:z' is no host"),
        ("-oProxyCommand=x", "cannot use the address"),
    ],
)
def test_an_address_that_cannot_be_is_refused(address, said):
    with pytest.raises(ConfigError) as caught:
        open_device(f"ssh:{address}")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("address", "user", "host", "port"),
    [
        ("garage", None, "garage", None),
        ("pi@garage", "pi", "garage", None),
        ("pi@192.168.1.7:2222", "pi", "192.168.1.7", 2222),
        ("pi@[fe80::1]:22", "pi", "fe80::1", 22),
        ("fe80::1", None, "fe80::1", None),
    ],
)
def test_what_is_not_said_is_left_to_the_users_configuration(address, user, host, port):
    target = open_device(f"ssh:{address}").target
    assert (target.user, target.host, target.port) == (user, host, port)


def test_a_name_says_what_may_change_a_result_and_no_more(tmp_path):
    key = make_key(tmp_path / "id")
    device = open_device(
        f"ssh:pi@a,key={key},jump=b,threads=4,accept-new=yes,python=~/v/bin/python"
    )
    assert device.name == "ssh:pi@a,python=~/v/bin/python,threads=4"
    assert (device.threads, device.execution, device.python) == (4, "native", "v/bin/python")


def test_a_declared_emulator_is_one():
    assert open_device("ssh:pi@a,emulated=yes").execution == "emulated"


def test_without_the_library_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'hetero\[ssh\]'"),
        connect("pi@garage", tmp_path),
    ):
        pass


# -- host keys ------------------------------------------------------------------------------------


def fingerprint(key) -> str:
    said = subprocess.run(["ssh-keygen", "-lf", f"{key}.pub"], capture_output=True, text=True)
    return said.stdout.split()[1]


@needs_sshd
def test_an_unknown_host_is_refused_with_its_fingerprint_and_the_command_to_trust_it(
    sshd, ssh_address, tmp_path
):
    address = ssh_address.replace(",accept-new=yes", "")
    said = refused(address, tmp_path)
    assert "is not known" in said
    assert fingerprint(sshd.host_key) in said
    assert not known_hosts().exists()
    command = shlex.split(said.rpartition("trust it with: ")[2])
    assert command[:3] == ["hetero", "doctor", "--device"]
    assert {name: status for name, status, *_ in examine(open_device(command[3]))}["python"] == "ok"
    with connect(address, tmp_path):  # now it is known
        pass
    assert stat.S_IMODE(known_hosts().stat().st_mode) & 0o022 == 0


@needs_sshd
def test_a_changed_host_is_refused_whatever_is_asked(tmp_path, ssh_address, sshd):
    with connect(ssh_address, tmp_path):
        pass
    before = known_hosts().read_text()
    other = make_key(tmp_path / "other")
    public = other.with_suffix(".pub").read_text()
    known_hosts().write_text(f"{before.split()[0]} {public}")
    said = refused(ssh_address, tmp_path)
    assert "changed" in said
    assert fingerprint(sshd.host_key) in said
    assert fingerprint(other) in said
    command = shlex.split(said.rpartition("with: ")[2])
    subprocess.run(command, check=True, capture_output=True)
    with connect(ssh_address, tmp_path):  # the old key is gone, the new one is accepted
        pass
    assert known_hosts().read_text() == before


@needs_sshd
def test_the_users_own_known_hosts_and_configuration_count(sshd, own_home, tmp_path, monkeypatch):
    ssh = tmp_path / "home/.ssh"
    ssh.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(ssh.parent))
    key = sshd.host_key.with_suffix(".pub").read_text()
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {key}")
    (ssh / "config").write_text(
        f"Host garage\n HostName 127.0.0.1\n Port {sshd.port}\n IdentityFile {sshd.key}\n"
    )
    with connect(f"garage,folder={tmp_path / 'far'}", tmp_path) as link:
        link.put(sshd.key, "store/x")
    assert (tmp_path / "far/store/x").exists()
    assert not known_hosts().exists()
    (ssh / "known_hosts").write_text(f"@revoked [127.0.0.1]:{sshd.port} {key}")
    assert "revoked" in refused("garage,accept-new=yes", tmp_path)


@needs_sshd
def test_a_jump_host_is_gone_through_and_checked_too(sshd, ssh_address, tmp_path):
    with serving(tmp_path / "gate") as gate:
        gate_keys = gate.folder / "authorized"
        gate_keys.write_bytes(sshd.key.with_suffix(".pub").read_bytes())
        jump = f"{ssh_address},jump=127.0.0.1:{gate.port}"
        assert fingerprint(gate.host_key) in refused(jump.replace(",accept-new=yes", ""), tmp_path)
        with connect(jump, tmp_path) as link:
            link.put(sshd.key, "store/x")
            assert gate.sessions()
        assert len(known_hosts().read_text().splitlines()) == 2


@needs_sshd
def test_a_refused_login_is_one_line_at_once(sshd, ssh_address, tmp_path):
    stranger = make_key(tmp_path / "stranger")
    said = refused(ssh_address.replace(str(sshd.key), str(stranger)), tmp_path)
    assert "refuses the login" in said
    assert "ssh-copy-id" in said


def test_a_machine_that_is_not_there_is_told_after_the_plans_patience(tmp_path):
    (tmp_path / "any.onnx").write_bytes(b"any")
    device = open_device("ssh:pi@127.0.0.1:1")
    with pytest.raises(DeviceError, match=r"^ssh:pi@127\.0\.0\.1:1: cannot be reached .* 0\.3 s"):
        run(
            device, tmp_path / "any.onnx", "onnx", tiny_pixels(1),
            folder=tmp_path / "out", plan=replace(PLAN, reconnect_s=0.3),
        )  # fmt: skip


# -- what the other end prints, and lacks ---------------------------------------------------------


def wrapper(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@needs_sshd
def test_a_login_shell_that_prints_is_told_apart_from_a_broken_server(tmp_path):
    force = wrapper(tmp_path / "force", 'echo "Welcome!"; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"')
    with serving(tmp_path / "s", f"ForceCommand {force}") as server:
        said = refused(server.address, tmp_path)
    assert "its login shell prints 'Welcome!' into every connection" in said


@needs_sshd
def test_chatter_around_a_command_is_ignored(tmp_path):
    force = wrapper(
        tmp_path / "force",
        'case "$SSH_ORIGINAL_COMMAND" in *sftp-server*) ;; *) echo "Welcome!"; echo 1 >&2 ;; esac\n'
        'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"',
    )
    big = tmp_path / "big"
    big.write_bytes(os.urandom(kind.CHUNK_BYTES + 1))
    with (
        serving(tmp_path / "s", f"ForceCommand {force}") as server,
        connect(f"{server.address},folder={tmp_path / 'far'}", tmp_path) as link,
    ):
        assert link.probe()["cpus"] == os.cpu_count()
        link.put(big, "store/big")
    assert (tmp_path / "far/store/big").read_bytes() == big.read_bytes()


@needs_sshd
def test_a_server_without_file_transfer_is_told_with_what_to_install(tmp_path):
    with serving(tmp_path / "s", sftp="/nowhere/sftp-server") as server:
        said = refused(server.address, tmp_path)
    assert "has no file transfer" in said
    assert "sudo apt install openssh-sftp-server" in said


@needs_sshd
@pytest.mark.parametrize("text", ["echo no module named numpy >&2; exit 1", "exit 127"])
def test_a_python_that_cannot_is_told_with_what_to_run(ssh_address, tmp_path, text):
    python = wrapper(tmp_path / "python", text)
    with connect(ssh_address.replace(sys.executable, str(python)), tmp_path) as link:
        with pytest.raises(DeviceError) as caught:
            link.probe()
        said = str(caught.value)
    assert "-m venv ~/hetero && ~/hetero/bin/pip install numpy onnxruntime ai-edge-litert" in said
    assert "or add bootstrap=yes" in said


#: A python3 whose venv is a folder with a python that notes what pip is asked for.
VENV = """
if [ "$2" = venv ]; then
  mkdir -p "$3/bin" && cat >"$3/bin/python" <<'END'
#!/bin/sh
case "$*" in *-m\\ pip*%s*) exit 1 ;; esac
[ "$2" = pip ] && { echo "$@" >>%s; exit 0; }
exec %s "$@"
END
  chmod +x "$3/bin/python"
fi
"""


@needs_sshd
@pytest.mark.parametrize("fails", ["nothing", "onnxruntime", "numpy"])
def test_bootstrap_makes_a_python_once_and_one_runtime_is_enough(ssh_address, tmp_path, fails):
    notes = tmp_path / "pip.txt"
    python = wrapper(tmp_path / "python", VENV % (fails, notes, shlex.quote(sys.executable)))
    address = f"{ssh_address.replace(sys.executable, str(python))},bootstrap=yes"
    with connect(address, tmp_path) as link:
        if fails == "numpy":
            with pytest.raises(DeviceError, match=f"pip cannot install numpy=={np.__version__}"):
                link.probe()
            return
        assert link.probe()["executable"] == sys.executable
        link.probe()
    asked = [x.split()[-1] for x in notes.read_text().splitlines()]
    wanted = ["numpy", "onnxruntime", "ai-edge-litert"]
    assert [x.partition("==")[0] for x in asked] == [x for x in wanted if x != fails]
    assert f"numpy=={np.__version__}" in asked


# -- files ----------------------------------------------------------------------------------------


@pytest.fixture
def proxied(sshd, ssh_address):
    with Proxy(sshd.port) as proxy:
        yield proxy, ssh_address.replace(f":{sshd.port},", f":{proxy.port},")


@needs_sshd
def test_a_file_cut_while_it_is_sent_is_gone_on_with(proxied, tmp_path):
    proxy, address = proxied
    big = tmp_path / "big"
    big.write_bytes(os.urandom(5 * kind.CHUNK_BYTES + 17))
    proxy.budgets = [(3 * kind.CHUNK_BYTES + 50_000, None)]
    with pytest.raises(ConnectionError), connect(address, tmp_path) as link:
        link.put(big, "store/big")
    assert not (tmp_path / "far/store/big").exists()
    before = proxy.passed[0]
    with connect(address, tmp_path) as link:
        link.put(big, "store/big")
    assert (tmp_path / "far/store/big").read_bytes() == big.read_bytes()
    assert [x.name for x in (tmp_path / "far/store").iterdir()] == ["big"]
    assert proxy.passed[0] - before < 4 * kind.CHUNK_BYTES


@needs_sshd
def test_a_file_cut_while_it_is_fetched_is_gone_on_with(proxied, tmp_path):
    proxy, address = proxied
    big, target = tmp_path / "big", tmp_path / "got/target"
    big.write_bytes(os.urandom(5 * kind.CHUNK_BYTES + 17))
    with connect(address, tmp_path) as link:
        link.put(big, "run/big")
    proxy.budgets = [(None, 3 * kind.CHUNK_BYTES + 50_000)]
    with pytest.raises(ConnectionError), connect(address, tmp_path) as link:
        link.get("run/big", target)
    assert not target.exists()
    before = proxy.passed[1]
    with connect(address, tmp_path) as link:
        link.get("run/big", target)
    assert target.read_bytes() == big.read_bytes()
    assert list(target.parent.iterdir()) == [target]
    assert proxy.passed[1] - before < 4 * kind.CHUNK_BYTES


@needs_sshd
def test_an_empty_file_is_a_file(ssh_address, tmp_path):
    (tmp_path / "none").write_bytes(b"")
    with connect(ssh_address, tmp_path) as link:
        link.put(tmp_path / "none", "run/none")
        link.get("run/none", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b""


@needs_sshd
def test_names_with_spaces_and_quotes_reach_the_device_as_they_are(sshd, tmp_path):
    odd = tmp_path / "a b'c \"d; $(touch pwned) `x`"
    model = write_onnx(tmp_path / "tiny.onnx")
    pixels = tiny_pixels(2)
    device = open_device(f"ssh:{sshd.address},folder={odd}")
    result = run(device, model, "onnx", pixels, folder=tmp_path / "out", plan=PLAN)
    np.testing.assert_allclose(result.outputs, tiny_answers(pixels), rtol=1e-5, atol=1e-2)
    assert {"store"} < {x.name for x in odd.iterdir()}


@needs_sshd
def test_result_folders_share_the_store_but_no_run(ssh_address, tmp_path):
    model = write_onnx(tmp_path / "tiny.onnx")
    device = open_device(f"ssh:{ssh_address}")
    for name in ("one", "two"):
        run(device, model, "onnx", tiny_pixels(2), folder=tmp_path / name, plan=PLAN)
    assert len(list((tmp_path / "far/store").glob("*.onnx"))) == 1
    assert len(list((tmp_path / "far").glob("ssh-*"))) == 2


# -- what the times were measured under -----------------------------------------------------------


def test_an_emulator_that_the_worker_notices_is_told_of(tmp_path):
    outputs = np.arange(6, dtype=np.float32).reshape(3, 2)
    steps = [line("hello", **{**HELLO, "execution": "emulated"}), *transcript(outputs)[1:]]
    (tmp_path / "any.onnx").write_bytes(b"any")
    result = run(
        FakeDevice([steps], raw_files(outputs)), tmp_path / "any.onnx", "onnx", tiny_pixels(3),
        folder=tmp_path / "out", plan=replace(PLAN, warmup_runs=0),
    )  # fmt: skip
    assert result.facts["execution"] == "emulated"
    assert timing(result).validity == "emulated"


@needs_sshd
def test_a_declared_emulators_times_are_marked(ssh_address, tmp_path):
    model = write_onnx(tmp_path / "tiny.onnx")
    device = open_device(f"ssh:{ssh_address},emulated=yes")
    result = run(device, model, "onnx", tiny_pixels(2), folder=tmp_path / "out", plan=PLAN)
    assert timing(result).validity == "emulated"


@needs_sshd
def test_the_firmwares_word_on_a_boards_power_reaches_the_verdict_on_its_times(
    ssh_address, tmp_path
):
    count = tmp_path / "count"
    wrapper(
        tmp_path / "vcgencmd",
        f'test "$1" = get_throttled || exit 1\necho x >>{count}\n'
        f'test "$(wc -l <{count})" -gt 1 && echo throttled=0x50000 || echo throttled=0x0',
    )
    env = f"PATH={shlex.quote(str(tmp_path))}:$PATH"
    python = wrapper(tmp_path / "python", f'{env} exec {shlex.quote(sys.executable)} "$@"')
    model = write_onnx(tmp_path / "tiny.onnx")
    device = open_device(f"ssh:{ssh_address.replace(sys.executable, str(python))}")
    result = run(device, model, "onnx", tiny_pixels(2), folder=tmp_path / "out", plan=PLAN)
    judged = timing(result)
    assert judged.validity == "throttled"
    assert judged.reason == "under-voltage and throttled, says the firmware"
    assert result.facts["throttled"] == "since boot under-voltage and throttled"
    assert {name: status for name, status, *_ in examine(device)}["power"] == "warn"


@needs_sshd
def test_the_connection_ends_when_the_link_is_left(sshd, ssh_address, tmp_path):
    device = open_device(f"ssh:{ssh_address}")
    connection = Connection(device.target)
    assert sshd.sessions()
    connection.close()
    with pytest.raises((ConnectionError, RuntimeError)):
        connection.read("/proc/version", 0, 10)


def test_a_server_of_the_tests_listens_on_the_loopback_interface_only(tmp_path):
    if missing():
        pytest.skip(missing())
    assert "ListenAddress 127.0.0.1:" in (Sshd(tmp_path / "s").folder / "config").read_text()
