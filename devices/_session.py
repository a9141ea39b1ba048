"""The host's end: send, start, follow, restart.

It knows the protocol and nothing of how a device is reached; see `hetero.devices._protocol`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from hetero._files import make_folder, write_atomically, write_json
from hetero.devices import _protocol as protocol
from hetero.devices import _results
from hetero.devices._order import job_for, packed, row_bytes
from hetero.devices._types import Device, Link, Plan, RunResult
from hetero.devices._way import Way
from hetero.errors import BundleError, DeviceError, Interrupted

OnEvent = Callable[[Mapping[str, Any]], None]

PAUSES_S = (0.02, 0.25)  # between two looks at the log: at least, and at most when it is quiet
LONGEST_PAUSE_S = 1.0  # where a look takes long


def run(
    device: Device,
    model: Path,
    format: str,
    inputs: Shaped[np.ndarray, "n ..."],
    *,
    folder: Path,
    plan: Plan | None = None,
    resume: bool = False,
    repeat: int = 0,
    on_event: OnEvent | None = None,
) -> RunResult:
    """What a device gives for every input, and how long it takes; all of it on disk.

    Args:
        device: From `open_device`.
        model: The exported file.
        format: "onnx", "tflite" or "coreml".
        inputs: uint8, int8 or float32, as the file takes them: one row per input, at least one.
        folder: Where the results go; equal runs go to one folder in it, others beside.
        plan: How long to measure and to wait; without, the defaults of `Plan`.
        resume: Go on where an equal run in `folder` was left; a finished one is only verified.
            Otherwise everything is measured anew.
        repeat: Number of a repetition; each has a folder of its own.
        on_event: Called with each event of the worker as it comes, for showing progress.

    Raises:
        BundleError: The model is missing, or the device's runtime refuses it.
        ConfigError: The format has no runtime here, or the inputs have a wrong dtype.
        DeviceError: The device, or the way to it, failed.
        StorageError: `folder` cannot be written.
        Interrupted: Ctrl-C; the worker was stopped, and what it measured is kept.
    """
    plan = plan or Plan()
    sent = packed(model, folder) if model.is_dir() else model
    order = job_for(device, model, sent, format, inputs, plan, repeat)
    with ThreadPoolExecutor(1) as aside, Way(device, folder, plan.reconnect_s) as way:
        # All rows are read once to be named by their content; connecting takes as long.
        digest = aside.submit(lambda: hashlib.sha256(row_bytes(inputs)).hexdigest())
        way.call(lambda link: None)
        job = order(digest.result())
        home = make_folder(folder / job.folder(device.name))
        on_event = on_event or (lambda _: None)
        session = _Session(device, job, model, sent, inputs, home, plan, on_event)
        try:
            done = session.work(way, resume)
            _results.fetch(way, device, home, job, plan, done, session.greeting[2].dim)
        except BaseException as error:
            if way.is_open:
                way.call(lambda link: link.stop(home.name))
            if not isinstance(error, KeyboardInterrupt):
                raise
            raise Interrupted(
                f"{device.name}: stopped at row {session.rows} of {len(inputs)}; what was measured "
                f"is in {home}, the same command with --resume goes on from there"
            ) from None
    restarts = session.workers - 1
    return _results.read(device, home, job, session.greeting, done, restarts, session.heard)


class _DiedError(Exception):
    """A worker is gone or hangs, and may be started again."""


@dataclass
class _Session:
    """One run: what was ordered, and what has been heard of it so far."""

    device: Device
    job: protocol.Job
    model: Path
    sent: Path
    inputs: Shaped[np.ndarray, "n ..."]
    home: Path
    plan: Plan
    on_event: OnEvent
    reader: protocol.Reader = field(default_factory=protocol.Reader)
    hello: protocol.Hello | None = None
    ready: protocol.Ready | None = None
    first: protocol.First | None = None
    end: protocol.Done | protocol.Error | protocol.Stopped | None = None
    rows: int = 0
    row_s: float = 0.0
    workers: int = 0
    progress: tuple[object, ...] = ()
    heard: _results.Heard = field(default_factory=_results.Heard)

    @property
    def greeting(self) -> tuple[protocol.Hello, protocol.Ready, protocol.First]:
        """The events that come before the first row, each as it came first."""
        if self.hello is None or self.ready is None or self.first is None:
            raise DeviceError(
                self.device.name, "its worker was done without having said hello, ready and first"
            )
        return self.hello, self.ready, self.first

    # -- working --------------------------------------------------------------------------------

    def work(self, way: Way, resume: bool) -> protocol.Done:
        """The worker's "done", with as many restarts as the plan allows."""
        deadline = time.monotonic() + self.plan.timeout_s
        if not (resume and self._catch_up(way)):
            self._send(way, again=False)
            self._start(way, fresh=not resume)
        for left in reversed(range(self.plan.restarts + 1)):
            try:
                return self._follow(way, deadline)
            except _DiedError as died:
                way.call(lambda link: link.stop(self.home.name))
                if not left:
                    raise self._gave_up(way, str(died)) from None
                self._start(way, fresh=False)
        raise AssertionError("the last try returns or raises")

    def _catch_up(self, way: Way) -> bool:
        """Whether an equal run is done or still at work; what it said so far is taken in."""
        data, alive = b"-", False
        while data:
            data, alive = way.call(lambda link: link.follow(self.home.name, self.reader.offset))
            self._take(data)
        return alive or isinstance(self.end, protocol.Done)

    def _send(self, way: Way, *, again: bool) -> None:
        """Put the files of the job onto the device, by way of this machine's own folder."""
        inputs, order = self.home.parent / self.job.inputs, self.home / "job.json"
        if again or not inputs.exists():
            write_atomically(inputs, row_bytes(self.inputs))
        write_json(order, self.job.to_json())
        way.call(lambda link: link.put(self.sent, self.job.model, again=again))
        way.call(lambda link: link.put(inputs, self.job.inputs, again=again))
        way.call(lambda link: link.put(order, f"{self.home.name}/job.json"))

    def _start(self, way: Way, *, fresh: bool) -> None:
        """Start a worker, once, even when the way is cut in between."""
        way.call(lambda link: link.stop(self.home.name))
        # The last words of the worker before must not be taken for the new one's.
        if not fresh and self._catch_up(way):
            return
        self.end = None

        def start(link: Link) -> None:
            if not link.follow(self.home.name, self.reader.offset)[1]:
                link.start(self.home.name, fresh=fresh)

        way.call(start)

    def _follow(self, way: Way, deadline: float) -> protocol.Done:
        """The worker's "done".

        Raises:
            _DiedError: It is gone or hangs.
            DeviceError: It failed for good, or the time is over.
            BundleError: Its runtime refuses the model.
        """
        plan, heard, moved = self.plan, time.monotonic(), time.monotonic()
        progress, lived, quiet, pause_s = self.progress, False, 0, PAUSES_S[0]
        while True:
            looked = time.monotonic()
            data, alive = way.call(lambda link: link.follow(self.home.name, self.reader.offset))
            took_s = time.monotonic() - looked
            self._take(data)
            if isinstance(self.end, protocol.Done):
                return self.end
            if self.end is not None:
                self._ended(way, self.end)
            now = time.monotonic()
            if data:
                heard, quiet, pause_s = now, 0, self._half_of_the_rest_s()
            else:
                quiet, pause_s = quiet + 1, min(1.5 * pause_s, PAUSES_S[1])
            if progress != self.progress:
                moved, progress = now, self.progress
            lived = lived or alive
            if not alive and ((lived and quiet > 1) or now - heard > plan.heartbeat_s):
                raise _DiedError("its process is gone" if lived else "it never began")
            if now - heard > 6 * plan.heartbeat_s:
                raise _DiedError(f"it said nothing for {now - heard:.0f} s")
            if now - moved > plan.stall_s:
                raise _DiedError(f"it lives but did nothing for {now - moved:.0f} s")
            if now > deadline:
                raise DeviceError(
                    self.device.name,
                    f"not done within {plan.timeout_s:g} s, at row {self.rows} of "
                    f"{len(self.inputs)}; go on with --resume, or give the plan more time",
                )
            # Looking takes the device's time as well: a fifth of it at most.
            time.sleep(max(pause_s, min(4 * took_s, LONGEST_PAUSE_S)))

    def _half_of_the_rest_s(self) -> float:
        """When to look again while rows come: rarely in the middle, soon before the last one.

        Every look takes time of the device's that its rows need.
        """
        rest_s = (len(self.inputs) - self.rows) * self.row_s
        return min(max(rest_s / 2, PAUSES_S[0]), PAUSES_S[1])

    # -- hearing --------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        """Take in what the log says."""
        try:
            for sent, event in self.reader.feed(data):
                self._note(event)
                self.on_event(sent)
        except protocol.TornError as error:
            raise DeviceError(self.device.name, f"its worker {error}") from error

    def _note(self, event: protocol.Event) -> None:
        # Telemetry is no progress, and a beat only if what it counts has changed.
        self.heard.take(event)
        if isinstance(event, protocol.Telemetry):
            return
        if isinstance(event, protocol.Beat):
            self.progress = (event.phase, event.rows, event.runs)
            return
        if isinstance(event, protocol.Hello):
            self._greet(event)
        elif isinstance(event, protocol.Ready):
            self.ready = self.ready or event
        elif isinstance(event, protocol.First):
            self.first, self.rows = self.first or event, event.start
        elif isinstance(event, protocol.Row):
            self.rows, self.row_s = event.i + event.n, event.ns / event.n / 1e9
        elif isinstance(event, protocol.Done | protocol.Error | protocol.Stopped):
            self.end = event
        self.progress = (type(event), self.rows, self.workers)

    def _greet(self, hello: protocol.Hello) -> None:
        """Accept a worker, if it speaks our version and computes as the one before it did."""
        if hello.version != protocol.VERSION:
            raise DeviceError(
                self.device.name,
                f"its worker speaks version {hello.version} of the protocol, this program "
                f"{protocol.VERSION}; use the same version of hetero at both ends",
            )
        if hello.runtime != self.job.runtime:
            raise DeviceError(
                self.device.name,
                f"its worker runs {hello.runtime}, the job asked for {self.job.runtime}",
            )
        before = self.hello or hello
        if before.arithmetic != hello.arithmetic:
            raise DeviceError(
                self.device.name,
                f"runtime or processor changed within the run: {before.runtime_version} on "
                f"{before.cpu}, then {hello.runtime_version} on {hello.cpu}; measure anew, "
                "without --resume",
            )
        self.hello, self.end, self.workers = before, None, self.workers + 1

    # -- giving up ------------------------------------------------------------------------------

    def _ended(self, way: Way, end: protocol.Error | protocol.Stopped) -> None:
        """Raise what a worker's last word means; only a torn file can be mended."""
        name, at = self.device.name, f"row {self.rows} of {len(self.inputs)}"
        if isinstance(end, protocol.Stopped):
            raise DeviceError(name, f"its worker was told to stop at {at}; go on with --resume")
        text = _short(end.text.replace(f"../{self.job.model}", self.model.name))
        if end.kind == "model-refused":
            raise BundleError(f"{self.model}: {self.job.runtime} refuses it: {text}")
        if end.kind == "input-mismatch":
            raise BundleError(f"{self.model}: {text}")
        if end.kind == "disk-full":
            raise DeviceError(
                name, f"its disk is full, at {at}; free some space and go on with --resume"
            )
        if end.kind != "file-torn":
            raise DeviceError(name, f"{end.kind}: {text}")
        self._send(way, again=True)
        raise _DiedError(text)

    def _gave_up(self, way: Way, reason: str) -> DeviceError | BundleError:
        """The error for a worker that was restarted often enough."""
        said = self._stderr(way)
        crash = (re.findall(r"^Fatal (?:Python )?error: (.+)", said, re.MULTILINE) or [""])[-1]
        if self.hello and not self.first and crash:
            return BundleError(
                f"{self.model}: {self.hello.runtime} {self.hello.runtime_version} crashes on it "
                f"({crash}); the file is damaged, or this runtime has a fault"
            )
        last = f"Fatal error: {crash}" if crash else " ".join(said.split()[-30:])
        return DeviceError(
            self.device.name,
            f"its worker failed {self.plan.restarts + 1} times, last at row {self.rows} of "
            f"{len(self.inputs)}: {reason}; its last words: {last or 'none'}",
        )

    def _stderr(self, way: Way) -> str:
        """The chatter of the runtime, or "" if there is none."""
        target = self.home / "stderr.txt"
        try:
            way.call(lambda link: link.get(f"{self.home.name}/stderr.txt", target))
            return target.read_text(errors="replace")
        except FileNotFoundError:
            return ""


def _short(text: str) -> str:
    """A runtime's message in one line of at most 200 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:199] + "…"
