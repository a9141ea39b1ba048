"""This machine: the worker is a process of its own, in the folder where the results go.

    local                                     one thread, this Python
    local:threads=2,python=/opt/py/bin/python   another Python with its own runtimes
    local:worker=native                       the worker in C, with this Python's runtime libraries

POSIX only: the worker gets a session of its own, so that Ctrl-C reaches the host alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hetero._files import make_folder, sha256, storage_errors
from hetero.devices import _native
from hetero.devices._protocol import WRITTEN
from hetero.devices._types import HERE, Execution, read_options, read_threads
from hetero.errors import ConfigError, DeviceError

WORKER = Path(__file__).with_name("_worker.py")
CHUNK_BYTES = 1 << 20
PROBE_TIMEOUT_S = 120.0
#: How long a worker may take to see its stop file; a single inference may be running.
STOP_S = 2.0


@dataclass(frozen=True)
class Local:
    """This machine as a device.

    Attributes:
        python: Runs the worker in Python, or "" for the native one.
    """

    name: str
    python: str
    threads: int | None = None
    execution: Execution = "native"
    lane: str = HERE

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[LocalLink]:
        """The open way, which for this machine is `folder` itself."""
        root = make_folder(folder.absolute())
        if self.python:
            link = LocalLink(self.name, (self.python,), root)
        else:
            native, libraries = _native.program(platform.machine()), _native.libraries()
            link = LocalLink(self.name, (), root, worker=native, variables=libraries)
        try:
            yield link
        finally:
            link.reap()


@dataclass
class LocalLink:
    """Six operations on a folder of this machine; see `hetero.devices.Link`.

    Attributes:
        name: Of the device.
        python: The start of a command that runs a Python file; empty for a program.
        root: The folder.
        worker: The Python file, or the program.
        variables: More of its environment.
        leave_s: How long a worker that is done may take to leave.
    """

    name: str
    python: tuple[str, ...]
    root: Path
    worker: Path = WORKER
    variables: Mapping[str, str] = field(default_factory=dict)
    leave_s: float = STOP_S
    _workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def probe(self) -> Mapping[str, Any]:
        """The facts that a worker finds out."""
        call = [*self.python, str(self._placed()), "--probe", str(self.root)]
        try:
            done = subprocess.run(
                call,
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT_S,
                check=False,
                env=self._environment(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeviceError(self.name, f"{call[0]} cannot be run ({error})") from error
        for line in reversed(done.stdout.splitlines()):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and found.get("hetero") == "probe":
                    return found
        said = " ".join(done.stderr.split()[-30:]) or "nothing"
        raise DeviceError(
            self.name,
            f"{call[0]} gave no facts about itself (exit code {done.returncode}, it said: {said})"
            + ("; it needs Python 3.9 and NumPy" if self.python else ""),
        )

    def put(self, source: Path, name: str, *, again: bool = True) -> None:
        """Link or copy a file into place; what is in place already stays."""
        target = self.root / name
        if target.exists() and source.exists():
            same_size = target.stat().st_size == source.stat().st_size
            if target.samefile(source) or (same_size and not again):
                return
        make_folder(target.parent)
        # Two devices of a fleet may put the same file at the same time.
        part = target.with_name(f".{target.name}.{threading.get_ident()}.part")
        with storage_errors(target):
            part.unlink(missing_ok=True)
            # What is named by its content does not change, and a link costs no space.
            if again or not _linked(source, part):
                shutil.copyfile(source, part)
            os.replace(part, target)

    def start(self, run: str, *, fresh: bool) -> None:
        """Start a worker in a session of its own, its output going to files."""
        folder = self.root / run
        if fresh:
            for name in WRITTEN:
                (folder / name).unlink(missing_ok=True)
        (folder / "stop").unlink(missing_ok=True)
        call = [*self.python, str(self._placed()), str(folder)]
        with (
            storage_errors(folder),
            (folder / "stdout.txt").open("ab") as out,
            (folder / "stderr.txt").open("ab") as err,
        ):
            try:
                self._workers[run] = subprocess.Popen(
                    call,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self._environment(),
                    start_new_session=True,
                )
            except (FileNotFoundError, PermissionError) as error:
                raise DeviceError(self.name, f"{call[0]} cannot be started ({error})") from error

    def follow(self, run: str, offset: int) -> tuple[bytes, bool]:
        """New bytes of the log, and whether the worker lives."""
        # Life first: what a worker wrote before it died is then in this read or the next.
        alive = self._pid(run) is not None
        try:
            with (self.root / run / "log.jsonl").open("rb") as file:
                file.seek(offset)
                return file.read(CHUNK_BYTES), alive
        except FileNotFoundError:
            return b"", alive

    def get(self, name: str, target: Path) -> None:
        """Copy a file out; results that are in their place already stay there."""
        source = self.root / name
        if target.exists() and source.samefile(target):
            return
        make_folder(target.parent)
        with storage_errors(target):
            shutil.copyfile(source, target)

    def execute(self, run: str, words: Sequence[str], timeout_s: float) -> tuple[bytes, int]:
        """What a program of the user's prints, and its exit status."""
        folder = self.root / run
        program = folder / words[0]
        program.chmod(0o755)
        try:
            done = subprocess.run(
                [str(program), *words[1:]],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
                env=self._environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                self.name, f"{program.name} was ended after {timeout_s:g} s"
            ) from error
        except OSError as error:
            raise DeviceError(self.name, f"{program.name} cannot be run ({error})") from error
        return done.stdout, done.returncode

    def stop(self, run: str) -> None:
        """Ask the worker to stop, and kill it if it does not."""
        if self._pid(run) is None:
            return
        wish = self.root / run / "stop"
        with contextlib.suppress(OSError):  # on a full disk: then it is killed below
            wish.touch()
        if (pid := self._still_there(run)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if self._still_there(run) is not None:
                raise DeviceError(self.name, f"process {pid} of its worker cannot be killed")
        with contextlib.suppress(OSError):
            wish.unlink(missing_ok=True)

    def reap(self) -> None:
        """Collect the workers that ended, so that none stays behind as a zombie."""
        for worker in self._workers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(timeout=self.leave_s)

    def _placed(self) -> Path:
        """The worker in the store: it must not change under a run; a program may be executed."""
        target = self.root / f"store/{sha256(self.worker)}{self.worker.suffix}"
        if not target.exists():
            self.put(self.worker, str(target.relative_to(self.root)))
            if not self.python:
                target.chmod(0o755)
        return target

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables, "ORT_DISABLE_TELEMETRY": "1"}

    def _still_there(self, run: str) -> int | None:
        """The process id of a worker that lives even after a moment."""
        deadline = time.monotonic() + STOP_S
        while (pid := self._pid(run)) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        return pid

    def _pid(self, run: str) -> int | None:
        """The process id of a living worker of this run folder."""
        own = self._workers.get(run)
        if own is not None:
            return own.pid if own.poll() is None else None
        folder = self.root / run
        try:
            pid = int((folder / "pid").read_text())
            os.kill(pid, 0)
            # A process id is given out again after a while; ours has the folder in its command.
            if Path("/proc/self").exists():
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                return pid if os.fsencode(folder) in command.split(b"\0") else None
        except (ValueError, FileNotFoundError, ProcessLookupError, PermissionError):
            return None
        return pid


def _linked(source: Path, target: Path) -> bool:
    """Whether a hard link could be made; not every file system has them."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def device(address: str) -> Local:
    """This machine.

    Args:
        address: "" or options: ``threads=N``, and ``python=PATH`` or ``worker=native``.

    Raises:
        ConfigError: An option is not known or cannot be.
    """
    options = read_options("local", address, ("threads", "python", "worker"))
    python = options.get("python", sys.executable)
    worker = options.get("worker", "python")
    if worker not in ("python", "native") or (worker == "native" and "python" in options):
        raise ConfigError(
            f"local: worker must be python or native, and native has no python, got {address!r}"
        )
    if worker == "native":
        _native.program(platform.machine())
        python = ""
    elif shutil.which(python) is None:
        raise ConfigError(f"local: python={python} is not a program on this machine")
    name = f"local:{address}" if address else "local"
    return Local(name, python, read_threads("local", options))
