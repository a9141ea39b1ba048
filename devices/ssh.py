"""A board or any Linux machine over SSH: Raspberry Pi, Jetson, a server.

    ssh:pi@garage                                a host of ~/.ssh/config, or a name, or an address
    ssh:pi@192.168.1.7:2222,key=~/.ssh/pi        port and key
    ssh:pi@garage,jump=me@gate                   by way of another host
    ssh:pi@garage,python=/opt/py/bin/python      the Python there that has NumPy and a runtime
    ssh:pi@garage,bootstrap=yes                  make such a Python there, once, with pip
    ssh:pi@garage,folder=/mnt/ssd/hetero         where it works; ~/.cache/hetero otherwise
    ssh:pi@garage,threads=4
    ssh:pi@garage,accept-new=yes                 trust a host that was never seen before
    ssh:pi@garage,emulated=yes                   its times mean nothing; qemu-user is noticed anyway

Keys come from the agent, ~/.ssh or key=; passwords are not asked for. Needs the extra ``ssh``.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import importlib.metadata
import ipaddress
import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hetero._files import make_folder, sha256, storage_errors
from hetero.devices._protocol import WRITTEN
from hetero.devices._ssh_connection import Connection, Target
from hetero.devices._types import Execution, read_options, read_threads
from hetero.errors import ConfigError, DeviceError

WORKER = Path(__file__).with_name("_worker.py")
CHUNK_BYTES = 1 << 20
PROBE_TIMEOUT_S = 120.0
BOOTSTRAP_TIMEOUT_S = 1800.0
#: How long a worker may take to see its stop file; a single inference may be running.
STOP_S = 2.0
OPTIONS = (
    *("key", "jump", "python", "bootstrap", "folder", "threads", "accept-new", "emulated"),
)  # fmt: skip

#: $1 run folder, $2... what to remove, "--", the worker's command. The pid is there before the
#: worker is, so that a start whose answer was lost is not done twice.
START = """
cd "$1" || exit 1
folder=$1
shift
while [ "$1" != -- ]; do rm -f "$1" || exit 1; shift; done
shift
command -v setsid >/dev/null && command -v nohup >/dev/null || { echo no setsid >&2; exit 1; }
ORT_DISABLE_TELEMETRY=1 setsid nohup /bin/sh -c 'echo $$ >pid && exec "$@"' hetero "$@" "$folder" \
  </dev/null >>stdout.txt 2>>stderr.txt &
"""
#: $1 process id, $2 run folder. Process ids are given out again: ours has the folder as a word.
KILL = """
tr '\\0' '\\n' <"/proc/$1/cmdline" | grep -Fxq -e "$2" && kill -9 "$1"
"""
PROBE = """
ORT_DISABLE_TELEMETRY=1 exec "$@"
"""
HASH = """
sha256sum "$1"
"""
#: $1 folder to run in, then a program and its arguments.
EXECUTE = """
cd "$1" && shift && chmod 755 "$1" || exit 126
exec "$@" 2>&1 </dev/null
"""
#: $1 folder of the environment, $2 a Python, then what to install; each runtime on its own, because
#: one of them is enough. Made beside and moved, so that a cut leaves none that is half done.
BOOTSTRAP = """
test -e "$1/ready" && exit 0
folder=$1 python=$2
shift 2
rm -rf "$folder"
"$python" -m venv "$folder" || exit 3
"$folder/bin/python" -m pip install -q --disable-pip-version-check "$1" || exit 4
shift
got=
for package; do
  "$folder/bin/python" -m pip install -q --disable-pip-version-check "$package" && got=yes
done
test -n "$got" || exit 5
: >"$folder/ready"
"""


@dataclass(frozen=True)
class Ssh:
    """A machine reached over SSH."""

    name: str
    target: Target
    python: str = "python3"
    folder: str = ".cache/hetero"
    bootstrap: bool = False
    threads: int | None = None
    execution: Execution = "native"

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[SshLink]:
        """The open way; its runs on the device are apart from those of other result folders."""
        connection = Connection(self.target)
        try:
            yield SshLink(self, connection, make_folder(folder.absolute()))
        finally:
            connection.close()


class SshLink:
    """Six operations on a folder of the device; see `hetero.devices.Link`.

    Args:
        device: Whose link it is.
        connection: Open.
        folder: Where this machine keeps the results.
    """

    def __init__(self, device: Ssh, connection: Connection, folder: Path) -> None:
        self.name, self._device, self._ssh = device.name, device, connection
        home = connection.home.rstrip("/")
        self.root = device.folder if device.folder.startswith("/") else f"{home}/{device.folder}"
        self.python = device.python
        if "/" in self.python and not self.python.startswith("/"):
            self.python = f"{home}/{self.python}"
        who = f"{getpass.getuser()}@{platform.node()}:{folder}"
        self._owner = hashlib.sha256(who.encode()).hexdigest()[:8]

    def probe(self) -> Mapping[str, Any]:
        """The facts that a worker of this Python finds out."""
        self._ssh.make_folder(self.root)
        command = [*self._far_end(), "--probe", self.root]
        said = self._ssh.run(PROBE, *command, timeout_s=PROBE_TIMEOUT_S)
        for line in reversed(said.out.splitlines()):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and found.get("hetero") == "probe":
                    return found
        raise self._useless_python(said.last_words)

    def put(self, source: Path, name: str, *, again: bool = True) -> None:
        """Send a file in chunks, from where a cut left it; it takes its place when it is whole."""
        target, size = self._path(name), source.stat().st_size
        there = self._ssh.stat(target)
        if there is not None and there[0] == size and not again:
            return
        folder, _, short = target.rpartition("/")
        digest = sha256(source)
        long = size > CHUNK_BYTES  # a short one is written at once; its way is signed anyway
        # Named by the content: what another content left half done is not gone on with.
        part = f"{folder}/.{short}.{digest[:12]}.part"
        try:
            if there is None:
                self._ssh.make_folder(folder)
            self._send(source, size, part)
            if long and self._hash(part) not in (digest, ""):
                self._send(source, size, part, anew=True)
                if self._hash(part) not in (digest, ""):
                    raise DeviceError(
                        self.name, f"{target} is not what was sent; its disk may be failing"
                    )
            self._ssh.rename(part, target)
        except DeviceError as error:
            raise self._full(folder, size, part) or error from error

    def start(self, run: str, *, fresh: bool) -> None:
        """Start a worker in a session of its own, its output going to files."""
        gone = [*(WRITTEN if fresh else ()), "stop"]
        folder = self._path(run)
        said = self._ssh.run(START, folder, *gone, "--", *self._far_end())
        if said.status != 0:
            raise self._full(folder, 0) or DeviceError(
                self.name, f"a worker cannot be started in {folder} ({said.last_words})"
            )

    def follow(self, run: str, offset: int) -> tuple[bytes, bool]:
        """New bytes of the log, and whether the worker lives."""
        # Life first: what a worker wrote before it died is then in this read or the next.
        alive = self._pid(run) is not None
        try:
            return self._ssh.read(f"{self._path(run)}/log.jsonl", offset, CHUNK_BYTES), alive
        except FileNotFoundError:
            return b"", alive

    def get(self, name: str, target: Path) -> None:
        """Fetch a file in chunks, from where a cut left it; it takes its place when it is whole."""
        path = self._path(name)
        there = self._ssh.stat(path)
        if there is None:
            raise FileNotFoundError(name)
        size, changed = there
        make_folder(target.parent)
        # Of another size or time it is another file.
        part = target.with_name(f".{target.name}.{size}-{changed}.part")
        with storage_errors(target):
            with part.open("ab") as file:
                while (at := file.tell()) < size:
                    data = self._ssh.read(path, at, min(CHUNK_BYTES, size - at))
                    if not data:
                        break  # it became shorter; its hash will tell
                    file.write(data)
            os.replace(part, target)

    def execute(self, run: str, words: Sequence[str], timeout_s: float) -> tuple[bytes, int]:
        """What a program of the user's prints, and its exit status."""
        said = self._ssh.run(EXECUTE, self._path(run), *words, timeout_s=timeout_s)
        return said.out.encode(), said.status

    def stop(self, run: str) -> None:
        """Ask the worker to stop, and kill it if it does not."""
        if self._pid(run) is None:
            return
        with contextlib.suppress(DeviceError):  # on a full disk: then it is killed below
            self._ssh.write(f"{self._path(run)}/stop", 0, b"")
        if (pid := self._still_there(run)) is None:
            return
        self._ssh.run(KILL, str(pid), self._path(run))
        if self._still_there(run) is not None:
            raise DeviceError(self.name, f"process {pid} of its worker cannot be killed")

    # -- the worker -----------------------------------------------------------------------------

    def _far_end(self) -> list[str]:
        """The command of a worker, once all that it needs is on the device.

        It is called with a run folder, or with ``--probe FOLDER``. This is the one place that
        decides which worker a device gets.
        """
        name = f"store/{sha256(WORKER)}.py"
        self.put(WORKER, name, again=False)
        return [self._bootstrapped() if self._device.bootstrap else self.python, self._path(name)]

    def _bootstrapped(self) -> str:
        """A Python on the device with this machine's versions of NumPy and the runtimes."""
        wanted = []
        for package in ("numpy", "onnxruntime", "ai-edge-litert"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                wanted.append(f"{package}=={importlib.metadata.version(package)}")
        digest = hashlib.sha256(" ".join([self.python, *wanted]).encode()).hexdigest()
        folder = f"{self.root}/python-{digest[:12]}"
        said = self._ssh.run(BOOTSTRAP, folder, self.python, *wanted, timeout_s=BOOTSTRAP_TIMEOUT_S)
        if said.status != 0:
            step = {3: "venv cannot be made; run there: sudo apt install python3-venv"}.get(
                said.status, f"pip cannot install {' '.join(wanted)}"
            )
            raise DeviceError(self.name, f"bootstrap: {step} (it said: {said.last_words})")
        return f"{folder}/bin/python"

    def _useless_python(self, said: str) -> DeviceError:
        python = self._device.python
        return DeviceError(
            self.name,
            f"{python} there gave no facts about itself (it said: {said}); it needs Python 3.9 and "
            f"NumPy. Run there: {python} -m venv ~/hetero && ~/hetero/bin/pip install numpy "
            "onnxruntime ai-edge-litert, and add python=hetero/bin/python; or add bootstrap=yes",
        )

    # -- files ----------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        """Where a name of the protocol is on the device.

        The store is everybody's, a run is of one result folder on one host.
        """
        first, slash, rest = name.partition("/")
        return f"{self.root}/{first if first == 'store' else f'{first}-{self._owner}'}{slash}{rest}"

    def _send(self, source: Path, size: int, part: str, *, anew: bool = False) -> None:
        """Write what is missing of a file."""
        there = None if anew else self._ssh.stat(part)
        # Of the last chunk there may be holes: its blocks are written side by side.
        at = 0 if there is None else max(0, (min(there[0], size) - 1) // CHUNK_BYTES * CHUNK_BYTES)
        with source.open("rb") as file:
            file.seek(at)
            while data := file.read(CHUNK_BYTES):
                self._ssh.write(part, at, data)
                at += len(data)
        if at == 0:
            self._ssh.write(part, 0, b"")

    def _hash(self, path: str) -> str:
        """SHA-256 of a file as the device reads it, or "" where it has no tool for that."""
        found = re.findall(r"\b[0-9a-f]{64}\b", self._ssh.run(HASH, path, timeout_s=600.0).out)
        return str(found[-1]) if found else ""

    def _full(self, folder: str, needed: int, part: str = "") -> DeviceError | None:
        """The error for a full disk, if that is what is wrong; half a file is given back."""
        if part:
            with contextlib.suppress(DeviceError):
                self._ssh.remove(part)
        free = self._ssh.free_bytes(folder)
        if free is None:
            free = self._ssh.free_bytes(self.root)
        if free is None or free > max(needed, 4096):
            return None
        return DeviceError(
            self.name,
            f"its disk is full: {free} bytes free at {self.root}, {needed} needed; free some space "
            "and go on with --resume, or name another place with folder=",
        )

    # -- processes ------------------------------------------------------------------------------

    def _still_there(self, run: str) -> int | None:
        """The process id of a worker that lives even after a moment."""
        deadline = time.monotonic() + STOP_S
        while (pid := self._pid(run)) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        return pid

    def _pid(self, run: str) -> int | None:
        """The process id of a living worker of this run folder."""
        folder = self._path(run)
        try:
            pid = int(self._ssh.read(f"{folder}/pid", 0, 32))
            command = self._ssh.read(f"/proc/{pid}/cmdline", 0, 1 << 16)
        except (ValueError, FileNotFoundError):
            return None
        return pid if folder.encode() in command.split(b"\0") else None


def device(address: str) -> Ssh:
    """A machine reached over SSH.

    Args:
        address: ``[user@]host[:port]``, then options after commas, see the module.

    Raises:
        ConfigError: There is no host, or an option is not known or cannot be.
    """
    where, _, rest = address.partition(",")
    if not where or "=" in where:
        raise ConfigError(
            f"ssh: cannot use the address {address!r}; expected ssh:[user@]host[:port], then "
            f"options: {', '.join(f'{x}=...' for x in OPTIONS)}"
        )
    options = read_options("ssh", rest, OPTIONS)
    yes = {x: _yes(x, options.get(x)) for x in ("bootstrap", "accept-new", "emulated")}
    key = Path(options["key"]).expanduser() if "key" in options else None
    if key is not None and not key.is_file():
        raise ConfigError(f"ssh: key={options['key']} is not a file on this machine")
    # Its name says what may change a result, not how one gets there.
    said = [f"{x}={options[x]}" for x in ("python", "threads", "emulated") if x in options]
    about = Target(
        ",".join([f"ssh:{where}", *said]),
        "",
        key=key,
        accept_new=yes["accept-new"],
        spec=f"ssh:{address}",
    )
    target = _at(where, about)
    if "jump" in options:
        target = replace(target, jump=_at(options["jump"], about))
    return Ssh(
        target.device,
        target,
        python=options.get("python", "python3").removeprefix("~/"),
        folder=options.get("folder", ".cache/hetero").removeprefix("~/").rstrip("/"),
        bootstrap=yes["bootstrap"],
        threads=read_threads("ssh", options),
        execution="emulated" if yes["emulated"] else "native",
    )


def _at(where: str, about: Target) -> Target:
    """`about` with ``[user@]host[:port]``; an IPv6 address with a port stands in brackets."""
    found = re.fullmatch(r"(?:([^@]+)@)?(?:\[([^\]]+)\]|([^:@\[\]]+))(?::(\d+))?", where)
    with contextlib.suppress(ValueError):  # an IPv6 address without brackets has no port
        return replace(about, host=str(ipaddress.ip_address(where)), user=None, port=None)
    if found is None or not 0 < int(found[4] or 22) < 65536:
        raise ConfigError(f"ssh: {where!r} is no host; expected [user@]host[:port]")
    port = int(found[4]) if found[4] else None
    return replace(about, host=found[2] or found[3], user=found[1], port=port)


def _yes(option: str, value: str | None) -> bool:
    if value not in (None, "yes", "no"):
        raise ConfigError(f"ssh: {option} must be yes or no, got {value!r}")
    return value == "yes"
