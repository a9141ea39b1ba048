"""An Android phone or tablet by adb, over USB or the network.

    adb                                    the one that is connected
    adb:R58M123ABC                         the one with this serial number, see `adb devices`
    adb:192.168.1.20:5555,threads=4        over the network; connected to when it is not yet
    adb:R58M123ABC,cores=f0                on these cores alone, as `taskset` names them

More options: ``adb=PATH`` of the program, ``folder=PATH`` on the phone. Nothing is installed there:
the native worker, the runtimes and a C library of their own go into the folder, once, and run as
the shell's user. 64-bit processors, Android 10 or newer.

The exit code of `adb` says nothing: when the way is cut it is 0 and the answer is short. So every
answer ends with a mark, files are compared by their hash, and only the worker's word counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hetero._files import make_folder, sha256, storage_errors
from hetero.devices import _android, _native
from hetero.devices._protocol import WRITTEN
from hetero.devices._types import Execution, read_options, read_threads
from hetero.errors import ConfigError, DeviceError

FOLDER = "/data/local/tmp/hetero"
CHUNK_BYTES = 1 << 20
#: adb notices no silence: an answer that takes longer is none. A file may take longer by its size.
ANSWER_S, BYTES_PER_S = 30.0, 1 << 20
#: How long a worker may take to see its stop file, in tenths of a second.
STOP_TENTHS = 20


@dataclass
class _Contact:
    """What is known of the way to a device, from one connection to the next."""

    serial: str = ""
    doubtful: bool = False


@dataclass(frozen=True)
class Adb:
    """A phone as a device.

    Attributes:
        serial: Of the phone, or "" for the only one.
        adb: The program.
        folder: On the phone.
        cores: A mask in hexadecimal, or "" for all.
    """

    name: str
    serial: str
    adb: str
    folder: str = FOLDER
    cores: str = ""
    threads: int | None = None
    _contact: _Contact = field(default_factory=_Contact, compare=False, repr=False)

    @property
    def execution(self) -> Execution:
        """Android's emulator names itself; its times are a PC's."""
        return "emulated" if self.serial.startswith("emulator-") else "native"

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[AdbLink]:
        """The open way; the worker and what it needs are on the phone then."""
        if (program := shutil.which(self.adb)) is None:
            raise DeviceError(
                self.name,
                f"{self.adb} is not a program on this machine; install Android's platform tools "
                "(Debian: apt-get install adb), or name it with adb=PATH",
            )
        link = AdbLink(self.name, program, self.serial, self.folder, self.cores, self._contact)
        link.open()
        yield link


@dataclass
class AdbLink:
    """Six operations over adb; see `hetero.devices.Link`."""

    name: str
    adb: str
    serial: str
    folder: str
    cores: str
    contact: _Contact
    _worker: tuple[str, ...] = ()

    # -- the way ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Find the phone, see that it answers, and put there what is not there yet.

        Raises:
            ConnectionError: It was there before and is not now.
            DeviceError: It never was, or adb says why it cannot be used.
        """
        self._adb("start-server")
        over_network = re.fullmatch(r".+:\d+", self.serial) is not None
        if over_network and (self.contact.doubtful or self._states().get(self.serial) != "device"):
            # A reset connection stays "offline", or "already connected", until it is taken away.
            self._adb("disconnect", self.serial)
            self._adb("connect", self.serial)
        self.contact.doubtful = False
        states = self._states()
        fault = _android.not_ready(states, self.serial)
        if fault and self.contact.serial:
            raise ConnectionError(fault)
        if fault:
            raise DeviceError(self.name, fault)
        self.serial = self.serial or next(x for x, state in states.items() if state == "device")
        machine, status = self._shell("uname -m")
        if status:
            raise DeviceError(self.name, f"its shell fails: {_short(machine)}")
        files = _files(self.name, machine.decode().strip())
        at = self._path(f"bundle-{_native.key(files)}")
        if self._shell(f"[ -d {shlex.quote(at)} ]")[1]:
            self._install(files, at)
        loader = next(x for x in files if x.startswith("ld-linux"))
        taskset = ("taskset", self.cores) if self.cores else ()
        self._worker = (
            *taskset, f"{at}/{loader}", "--library-path", at, f"{at}/{_native.PROGRAM}",
        )  # fmt: skip
        self.contact.serial = self.serial

    def _install(self, files: Mapping[str, Path], at: str) -> None:
        """Push what the worker needs, all of it or nothing: a folder beside, compared, renamed."""
        part = f"{at}.part"
        self._checked(f"rm -rf {shlex.quote(part)} && mkdir -p {shlex.quote(part)}")
        size = sum(x.stat().st_size for x in files.values())
        with tempfile.TemporaryDirectory(prefix="hetero-") as folder:
            for name, path in files.items():  # adb keeps the last part of a name
                Path(folder, name).symlink_to(path.resolve())
            names = [str(Path(folder, name)) for name in files]
            call = ("-s", self.serial, "push", *names, f"{part}/")
            said = self._adb(*call, timeout_s=ANSWER_S + size / BYTES_PER_S)
        there, _ = self._shell(f"cd {shlex.quote(part)} && sha256sum *", timeout_s=2 * ANSWER_S)
        hashes = dict(x.split()[::-1] for x in there.decode(errors="replace").splitlines())
        if hashes != {name: sha256(path) for name, path in files.items()}:
            self._damaged(said, "the worker")
        self._checked(
            f"chmod 755 {shlex.quote(part)}/* && mv {shlex.quote(part)} {shlex.quote(at)}"
        )

    def _damaged(self, said: bytes, what: str) -> NoReturn:
        """Raise for a file that is not on the phone as it was sent: is another try of use?"""
        if fault := _android.refused(said.decode(errors="replace"), self.folder):
            raise DeviceError(self.name, fault)
        self.contact.doubtful = True
        raise ConnectionError(f"{what} did not arrive whole: {_short(said)}")

    def _states(self) -> dict[str, str]:
        """Serial number and state of every phone that adb knows."""
        return _android.states(self._adb("devices").decode(errors="replace"))

    def _adb(self, *words: str, timeout_s: float = ANSWER_S) -> bytes:
        """What adb says to a command, on both its streams; its exit code is not trusted.

        Raises:
            ConnectionError: No answer in time.
        """
        try:
            done = subprocess.run(
                [self.adb, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            self.contact.doubtful = True
            raise ConnectionError(f"no answer from adb within {timeout_s:.0f} s") from error
        except OSError as error:
            raise DeviceError(self.name, f"{self.adb} cannot be run ({error})") from error
        return done.stdout

    def _shell(self, script: str, *, timeout_s: float = ANSWER_S) -> tuple[bytes, int]:
        """What a script prints on the phone, byte by byte, and its exit status.

        Raises:
            ConnectionError: The answer has no end, so the way was cut.
        """
        end = f"hetero-{secrets.token_hex(8)}"
        call = f"( {script}\n) 2>&1 </dev/null; status=$?; echo; echo {end} $status"
        said = self._adb("-s", self.serial, "exec-out", call, timeout_s=timeout_s)
        answer, mark, status = said.rpartition(f"\n{end} ".encode())
        if not mark or not re.fullmatch(rb"\d+\r?\n", status):
            self.contact.doubtful = True
            fault = _android.not_ready(self._states(), self.serial)
            raise ConnectionError(
                fault or f"its answer broke off: {_short(said) or 'nothing came'}"
            )
        return answer, int(status)

    def _checked(self, script: str) -> bytes:
        """What a script prints that has to succeed."""
        said, status = self._shell(script)
        if status:
            raise DeviceError(self.name, _android.why(_short(said), self.folder))
        return said

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _quoted(self, name: str) -> str:
        return shlex.quote(self._path(name))

    # -- the six operations -----------------------------------------------------------------------

    def probe(self) -> Mapping[str, Any]:
        """The facts that the worker finds out, and Android's own."""
        said, _ = self._shell(shlex.join([*self._worker, "--probe", self.folder]))
        for line in reversed(said.splitlines()):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and found.get("hetero") == "probe":
                    return {**found, "checks": _android.checks(self._dumps())}
        raise DeviceError(self.name, f"the native worker does not run there: {_short(said)}")

    def _dumps(self) -> str:
        """What Android says of itself, battery and heat; empty where it is no Android."""
        tools = ("getprop ro.product.model", "getprop ro.build.version.release", "dumpsys battery",
                 "dumpsys thermalservice")  # fmt: skip
        script = "\n".join(f"echo '== {x}'; {x} 2>/dev/null" for x in tools)
        return self._shell(script)[0].decode(errors="replace")

    def put(self, source: Path, name: str, *, again: bool = True) -> None:
        """Push a file beside its place, compare hashes there, and only then move it into place."""
        size, target = source.stat().st_size, self._quoted(name)
        folder, _, last = self._path(name).rpartition("/")
        make = f"mkdir -p {shlex.quote(folder)} || exit 1"
        there = self._checked(f"{make}\nstat -c %s {target} 2>/dev/null || true")
        if not again and there.strip() == str(size).encode():
            return
        part = f"{folder}/.{last}.part"
        call = ("-s", self.serial, "push", str(source), part)
        said = self._adb(*call, timeout_s=ANSWER_S + size / BYTES_PER_S)
        move = f"mv -f {shlex.quote(part)} {target}"
        _, status = self._shell(
            f"h=$(sha256sum < {shlex.quote(part)}) && "
            f'[ "${{h%% *}}" = {sha256(source)} ] && {move}',
            timeout_s=2 * ANSWER_S,
        )
        if status:
            self._damaged(said, source.name)

    def start(self, run: str, *, fresh: bool) -> None:
        """Start a worker that outlives the connection, and wait until it has taken the folder."""
        at = self._quoted(run)
        remove = " ".join(("stop", *(WRITTEN if fresh else ("pid",))))
        worker = shlex.join([*self._worker, self._path(run)])
        self._checked(
            f"cd {at} && rm -f {remove} || exit 1\n"
            f"(setsid nohup {worker} </dev/null >>stdout.txt 2>>stderr.txt &)\n"
            "i=0; while [ ! -s pid ] && [ $i -lt 20 ]; do sleep 0.1; i=$((i+1)); done\n"
        )

    def follow(self, run: str, offset: int) -> tuple[bytes, bool]:
        """New bytes of the log, as many as the phone says there are, and whether the worker lives.

        Raises:
            ConnectionError: Fewer came.
        """
        said, _ = self._shell(
            f"cd {self._quoted(run)} 2>/dev/null || {{ echo 0 0; exit 0; }}\n"
            f"{self._alive(run)}\n"
            "n=$(stat -c %s log.jsonl 2>/dev/null || echo 0)\n"
            f"n=$((n-{offset})); [ $n -lt 0 ] && n=0\n"
            f"[ $n -gt {CHUNK_BYTES} ] && n={CHUNK_BYTES}\n"
            'echo "$alive $n"\n'
            f"[ $n -gt 0 ] && tail -c +{offset + 1} log.jsonl | head -c $n"
        )
        head, _, data = said.partition(b"\n")
        found = re.fullmatch(rb"([01]) (\d+)", head.strip())
        if not found or len(data) != int(found[2]):
            self.contact.doubtful = True
            raise ConnectionError(f"the log came in part: {_short(head)}, {len(data)} bytes")
        return data, found[1] == b"1"

    def get(self, name: str, target: Path) -> None:
        """Pull a file, compare hashes, and put it into place when they are the same."""
        quoted = self._quoted(name)
        said, status = self._shell(
            f"[ -f {quoted} ] && stat -c %s {quoted} && sha256sum < {quoted}"
        )
        if status == 1 and not said.strip():
            raise FileNotFoundError(self._path(name))
        found = re.match(rb"(\d+)\r?\n([0-9a-f]{64})", said)
        if not found:
            raise DeviceError(self.name, f"cannot read {self._path(name)}: {_short(said)}")
        make_folder(target.parent)
        with (
            storage_errors(target),
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".adb-") as folder,
        ):
            part = Path(folder, "part")
            call = ("-s", self.serial, "pull", self._path(name), str(part))
            told = self._adb(*call, timeout_s=ANSWER_S + int(found[1]) / BYTES_PER_S)
            if not part.is_file() or sha256(part).encode() != found[2]:
                self.contact.doubtful = True
                raise ConnectionError(f"{name} did not come whole: {_short(told)}")
            os.replace(part, target)

    def execute(self, run: str, words: Sequence[str], timeout_s: float) -> tuple[bytes, int]:
        """What a program of the user's prints, and its exit status; on `cores`, where they are set.

        It hangs up with the connection.
        """
        taskset = ("taskset", self.cores) if self.cores else ()
        return self._shell(
            f"cd {self._quoted(run)} && chmod 755 {shlex.quote(words[0])} || exit 126\n"
            f"{shlex.join([*taskset, *words])}",
            timeout_s=timeout_s,
        )

    def stop(self, run: str) -> None:
        """Ask the worker to stop, and kill it if it does not."""
        said, status = self._shell(
            f"cd {self._quoted(run)} 2>/dev/null || exit 0\n"
            f"{self._alive(run)}; [ $alive = 1 ] || exit 0\n"
            "touch stop\n"
            f"i=0; while [ $alive = 1 ] && [ $i -lt {STOP_TENTHS} ]; do\n"
            f"sleep 0.1; i=$((i+1)); {self._alive(run)}\ndone\n"
            "[ $alive = 1 ] || exit 0\n"
            f"kill -9 $p; sleep 0.2; {self._alive(run)}\n"
            '[ $alive = 0 ] || { echo "process $p cannot be killed"; exit 1; }'
        )
        if status:
            raise DeviceError(self.name, f"its worker does not stop: {_short(said)}")

    def _alive(self, run: str) -> str:
        """A script that sets `p` to the pid and `alive` to 1 if it is the worker of this run.

        A process id is given out again after a while; ours has the folder in its command.
        """
        return (
            "alive=0; p=$(cat pid 2>/dev/null); "
            f'[ -n "$p" ] && grep -qF {self._quoted(run)} "/proc/$p/cmdline" 2>/dev/null && alive=1'
        )


def _files(name: str, machine: str) -> Mapping[str, Path]:
    """The bundle for a phone's processor."""
    try:
        return _native.bundle(machine)
    except (ConfigError, DeviceError) as error:
        reason = re.sub(r"^qemu: ", "", str(error))
        raise DeviceError(name, f"no worker for its processor {machine}: {reason}") from error


def _short(said: bytes) -> str:
    """Something adb or a phone said, in one line."""
    line = " ".join(said.decode(errors="replace").split())
    return line if len(line) <= 200 else line[:199] + "…"


def device(address: str) -> Adb:
    """A phone.

    Args:
        address: "" or a serial number, then options: ``threads=N``, ``cores=MASK``, ``adb=PATH``,
            ``folder=PATH``.

    Raises:
        ConfigError: An option is not known or cannot be.
    """
    first, _, rest = address.partition(",")
    serial, rest = ("", address) if "=" in first else (first, rest)
    options = read_options("adb", rest, ("threads", "cores", "adb", "folder"))
    if not re.fullmatch(r"[\w.:\[\]-]*", serial) or serial.startswith("-"):
        raise ConfigError(
            f"adb: {serial!r} is no serial number; expected one of `adb devices`, or HOST:PORT"
        )
    folder, cores = options.get("folder", FOLDER).rstrip("/"), options.get("cores", "")
    if not folder.startswith("/"):
        raise ConfigError(f"adb: folder must be an absolute path on the phone, got {folder!r}")
    if cores and not re.fullmatch(r"[0-9a-f]+", cores):
        raise ConfigError(f"adb: cores must be a mask in hexadecimal, as f0, got {cores!r}")
    name = f"adb:{address}" if address else "adb"
    threads = read_threads("adb", options)
    return Adb(name, serial, options.get("adb", "adb"), folder, cores, threads)
