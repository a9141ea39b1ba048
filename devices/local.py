"""This machine: the worker is a process of its own, in the folder where the results go.

    local                                     one thread, this Python
    local:threads=2,python=/opt/py/bin/python   another Python with its own runtimes

POSIX only: the worker gets a session of its own, so that Ctrl-C reaches the host alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hetero._files import make_folder, sha256, storage_errors
from hetero.devices._protocol import WRITTEN
from hetero.devices._types import HERE, Execution, read_options
from hetero.errors import ConfigError, DeviceError

WORKER = Path(__file__).with_name("_worker.py")
CHUNK_BYTES = 1 << 20
PROBE_TIMEOUT_S = 120.0
#: How long a worker may take to see its stop file; a single inference may be running.
STOP_S = 2.0


@dataclass(frozen=True)
class Local:
    """This machine as a device."""

    name: str
    python: str
    threads: int | None = None
    execution: Execution = "native"
    lane: str = HERE

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[LocalLink]:
        """The open way, which for this machine is `folder` itself."""
        link = LocalLink(self.name, self.python, make_folder(folder.absolute()))
        try:
            yield link
        finally:
            link.reap()


@dataclass
class LocalLink:
    """Six operations on a folder of this machine; see `hetero.devices.Link`."""

    name: str
    python: str
    root: Path
    _workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def probe(self) -> Mapping[str, Any]:
        """The facts that a worker of this Python finds out."""
        call = [self.python, str(WORKER), "--probe", str(self.root)]
        try:
            done = subprocess.run(
                call, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeviceError(self.name, f"{self.python} cannot be run ({error})") from error
        for line in reversed(done.stdout.splitlines()):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and found.get("hetero") == "probe":
                    return found
        said = " ".join(done.stderr.split()[-30:]) or "nothing"
        raise DeviceError(
            self.name,
            f"{self.python} gave no facts about itself (exit code {done.returncode}, it said: "
            f"{said}); it needs Python 3.9 and NumPy",
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
        worker = f"store/{sha256(WORKER)}.py"
        if not (self.root / worker).exists():
            self.put(WORKER, worker)
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
        with (
            storage_errors(folder),
            (folder / "stdout.txt").open("ab") as out,
            (folder / "stderr.txt").open("ab") as err,
        ):
            try:
                self._workers[run] = subprocess.Popen(
                    [self.python, str(self.root / worker), str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=environment,
                    start_new_session=True,
                )
            except (FileNotFoundError, PermissionError) as error:
                raise DeviceError(
                    self.name, f"{self.python} cannot be started ({error})"
                ) from error

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

    def stop(self, run: str) -> None:
        """Ask the worker to stop, and kill it if it does not."""
        if self._pid(run) is None:
            return
        with contextlib.suppress(OSError):  # on a full disk: then it is killed below
            (self.root / run / "stop").touch()
        if (pid := self._still_there(run)) is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if self._still_there(run) is not None:
            raise DeviceError(self.name, f"process {pid} of its worker cannot be killed")

    def reap(self) -> None:
        """Collect the workers that ended, so that none stays behind as a zombie."""
        for worker in self._workers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(timeout=STOP_S)

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
        address: "" or options: ``threads=N`` and ``python=PATH``.

    Raises:
        ConfigError: An option is not known or cannot be.
    """
    options = read_options("local", address, ("threads", "python"))
    threads = options.get("threads")
    if threads is not None and (not threads.isdecimal() or int(threads) < 1):
        raise ConfigError(f"local: threads must be a number of at least 1, got {threads!r}")
    python = options.get("python", sys.executable)
    if shutil.which(python) is None:
        raise ConfigError(f"local: python={python} is not a program on this machine")
    name = f"local:{address}" if address else "local"
    return Local(name, python, int(threads) if threads else None)
