"""Stage: each file on each device, side by side; what one loses the others keep.

A device gets one file after the other and a thread of its own. Devices that share a processor take
turns, so that none disturbs the other's latencies; emulated ones, which burn this machine's, wait
until this machine itself is measured.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from hetero.agreement import agreement
from hetero.board import Board
from hetero.bundle import Artifact, Bundle
from hetero.cells import Cell, NotRun, Pair
from hetero.check import Reference
from hetero.errors import BundleError, ConfigError, DeviceError, HeteroError, Interrupted
from hetero.progress import Reporter
from hetero.report import REFERENCE
from hetero.stages.running import CheckOptions, Ran, by_reference, file_name, on_device

#: How long devices may take to stop after Ctrl-C; one that cannot be reached is not waited for.
STOP_S = 15.0

Pictures = Mapping[str, UInt8[np.ndarray, "s s 3"]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a fleet gave.

    Attributes:
        runs: By file, and for each file by device, in the order given.
        not_run: What was asked for or expected, and did not come.
    """

    runs: tuple[Ran, ...]
    not_run: tuple[NotRun, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """By what each file was executed."""
        return tuple(_cell(run) for run in self.runs)


def run_files(
    query: Bundle,
    files: Sequence[Artifact],
    reference: Reference,
    pictures: Pictures,
    output: Path,
    options: CheckOptions,
    reporter: Reporter,
) -> Outcome:
    """Every file on every device that can run it; reference execution where none can.

    A device that fails, stays away or refuses a file leaves that out, and takes nothing from the
    others.

    Raises:
        ConfigError: A device is not known or is named twice.
        DeviceError, BundleError: The first failure, where nothing at all was executed.
        Interrupted: Ctrl-C; every worker was stopped, and what they measured is kept.
    """
    from hetero import devices

    opened = [devices.open_device(name, options.inventory) for name in options.devices]
    names = [x.name for x in opened]
    if twice := [x for x in names if names.count(x) > 1]:
        raise ConfigError(f"device {twice[0]!r} is named twice; name each device once")
    alone = [f for f in files if not any(f.kind in devices.formats_of(x) for x in opened)]
    columns = [(f.kind, f.precision) for f in files if f not in alone]
    with reporter.board(names, columns) as board:
        crew = _Crew(query, files, reference, pictures, output, options, board)
        crew.work(_lanes(opened, options))
    with reporter.bar("read", len(alone)) if alone else contextlib.nullcontext() as bar:
        for item in alone:
            crew.add(by_reference(query, item, reference, pictures), item, "")
            if bar is not None:
                bar.advance(1, f"{item.kind} {item.precision}")
    runs = crew.in_order([*names, ""])
    if not runs and crew.errors:
        # By the order given, not by who failed first: the same every time.
        raise next(crew.errors[k] for k in crew.keys(names) if k in crew.errors)
    return Outcome(runs, (*crew.absent(names), *_by_no_runtime(alone, runs)))


def _lanes(opened: Sequence[Any], options: CheckOptions) -> list[list[Any]]:
    """The devices, those together that cannot be measured at the same time."""
    from hetero import devices

    lanes: dict[str, list[Any]] = {}
    entries = options.inventory.entries if options.inventory is not None else {}
    for device in opened:
        lane = devices.lane_of(device)
        if lane == device.name and lane in entries:  # two names may be one device
            lane = entries[lane].spec
        lanes.setdefault(lane, []).append(device)
    return list(lanes.values())


@dataclass
class _Crew:
    """One thread a lane, and what they bring; a lifetime is one run of the fleet."""

    query: Bundle
    files: Sequence[Artifact]
    reference: Reference
    pictures: Pictures
    output: Path
    options: CheckOptions
    board: Board
    errors: dict[tuple[str, str, str], HeteroError] = field(default_factory=dict)
    _runs: dict[tuple[str, str, str], Ran] = field(default_factory=dict)
    _absent: dict[tuple[str, str, str], NotRun] = field(default_factory=dict)
    _fatal: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _quiet: threading.Event = field(default_factory=threading.Event)
    _ends: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)

    def work(self, lanes: Sequence[Sequence[Any]]) -> None:
        """Run everything, and come back when all lanes are through.

        Raises:
            HeteroError: What is not the fault of one device: a full disk here, a wrong option.
            Interrupted: Ctrl-C.
        """
        from hetero import devices

        here = [x for x in lanes if any(devices.lane_of(d) == devices.HERE for d in x)]
        if not here:
            self._quiet.set()
        for device in (d for lane in lanes for d in lane):
            for item in self._of(device):
                self.board.tell(device.name, item.kind, item.precision, "waiting")
        through = 0
        try:
            for lane in lanes:
                threading.Thread(target=self._lane, args=(lane, lane in here), daemon=True).start()
            while through < len(lanes):
                # In turns: a signal may end up with a thread that does not wake this one.
                through += self._heard_end(0.2)
        except KeyboardInterrupt:
            self._stop.set()
            deadline = time.monotonic() + STOP_S
            while through < len(lanes) and time.monotonic() < deadline:
                through += self._heard_end(deadline - time.monotonic())
            raise self._interrupted(sum(len(lane) for lane in lanes)) from None
        if self._fatal:
            raise self._fatal[0]

    def _heard_end(self, timeout_s: float) -> bool:
        """Whether another lane came to its end within the time."""
        # Not Thread.join: interrupted, it takes a thread that works for one that is through
        # (Python 3.11, bpo-45274).
        try:
            self._ends.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return False
        return True

    def _interrupted(self, devices: int) -> Interrupted:
        told = [x for x in self._fatal if isinstance(x, Interrupted)]
        if devices == 1 and told:
            return told[0]
        return Interrupted(
            f"stopped with {len(self._runs)} files done on {devices} devices; what was measured is "
            f"in {self.output / 'runs'}, the same command with --resume goes on from there"
        )

    def _of(self, device: Any) -> list[Artifact]:
        from hetero import devices

        return [f for f in self.files if f.kind in devices.formats_of(device)]

    def _lane(self, lane: Sequence[Any], here: bool) -> None:
        """One device after the other, and of each one file after the other.

        Emulated ones come last: a browser of this machine is in its lane, and is not to wait for
        the end of what it is a part of.
        """
        try:
            for device in sorted(lane, key=lambda x: x.execution == "emulated"):
                if device.execution == "emulated" and here:
                    self._quiet.set()
                while device.execution == "emulated" and not self._quiet.wait(0.2):
                    if self._stop.is_set():
                        return
                self._device(device)
        # Whatever it is, it is raised again in the thread that waits.
        except BaseException as error:
            self._fatal.append(error)
            self._stop.set()
        finally:
            if here:
                self._quiet.set()
            self._ends.put(None)

    def _device(self, device: Any) -> None:
        watched, gone = _Watched(device, self._stop), ""
        for item in self._of(device):
            at = (device.name, item.kind, item.precision)
            if gone:
                self._leave_out(at, gone)
                continue
            began = time.monotonic()
            self.board.tell(*at, "running", "starting")
            try:
                ran = on_device(
                    self.query,
                    item,
                    watched,
                    self.reference,
                    self.pictures,
                    self.output,
                    self.options,
                    self._heard(at),
                )
            except DeviceError as error:
                self.errors[at] = error
                said = str(error).removeprefix(f"{device.name}: ")
                if watched.away:
                    gone = f"device could not be reached: {said}"
                self._leave_out(at, gone or f"device failed: {said}")
            except BundleError as error:
                self.errors[at] = error
                self._leave_out(at, f"its runtime refuses the file: {error}", refused=True)
            else:
                self.add(ran, item, device.name)
                self.board.tell(*at, "done", f"in {time.monotonic() - began:.0f} s")

    def _heard(self, at: tuple[str, str, str]) -> Callable[[Mapping[str, Any], int], None]:
        """What shows how far the worker is."""

        def heard(event: Mapping[str, Any], rows: int) -> None:
            if event["hetero"] == "run":
                self.board.tell(*at, "running", f"rows {event['i'] + event['n']} of {rows}")
            elif event["hetero"] == "bench":
                self.board.tell(*at, "running", "measuring")

        return heard

    def _leave_out(self, at: tuple[str, str, str], why: str, *, refused: bool = False) -> None:
        device, format, precision = at
        self._absent[at] = NotRun(
            format, precision, device, why, "refused" if refused else "device"
        )
        self.board.tell(*at, "failed", "" if self.board.is_live else why)

    def add(self, ran: Ran, item: Artifact, device: str) -> None:
        """Keep a run; its vectors go to the disk at once."""
        ran.vectors.save(self.output / "embeddings" / f"{file_name(ran.place)}.safetensors")
        self._runs[device, item.kind, item.precision] = ran

    def keys(self, names: Sequence[str]) -> list[tuple[str, str, str]]:
        """Every cell by file, and for each file by these devices."""
        return [(n, f.kind, f.precision) for f in self.files for n in names]

    def in_order(self, names: Sequence[str]) -> tuple[Ran, ...]:
        """The runs, in the order of `keys`."""
        return tuple(self._runs[k] for k in self.keys(names) if k in self._runs)

    def absent(self, names: Sequence[str]) -> tuple[NotRun, ...]:
        """What did not come, in the same order."""
        return tuple(self._absent[k] for k in self.keys(names) if k in self._absent)


@dataclass
class _Watched:
    """A device that can be told to stop, and of which is known whether it could be reached last."""

    device: Any
    stop: threading.Event
    away: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[Any]:
        """The device's own link, watched."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.away = True
        with self.device.connect(folder) as link:
            self.away = False
            yield _WatchedLink(link, self)


@dataclass
class _WatchedLink:
    link: Any
    owner: _Watched

    def __getattr__(self, name: str) -> Any:
        do = getattr(self.link, name)

        def watched(*args: Any, **named: Any) -> Any:
            # As Ctrl-C would, in a thread that Ctrl-C does not reach; stopping is always allowed.
            if self.owner.stop.is_set() and name != "stop":
                raise KeyboardInterrupt
            try:
                given = do(*args, **named)
            except ConnectionError:
                self.owner.away = True
                raise
            self.owner.away = False
            return given

        return watched


def _by_no_runtime(alone: Sequence[Artifact], runs: Sequence[Ran]) -> tuple[NotRun, ...]:
    """The files that no runtime of their own executed, and why."""
    from hetero import export

    read = {(r.place.format, r.place.precision) for r in runs if r.place.device == REFERENCE}
    return tuple(
        NotRun(f.kind, f.precision, "its own runtime", export.module(f.kind).RUNS_HERE)
        for f in alone
        if (f.kind, f.precision) in read
    )


def _cell(run: Ran) -> Cell:
    facts, place = run.facts, run.place
    said = facts.get("execution", "").partition(":")[0]
    return Cell(
        place.device,
        place.format,
        place.precision,
        # A file that this machine runs by itself has no device.
        said if said in ("native", "emulated", "reference") else "native",  # type: ignore[arg-type]
        runtime=facts.get("runtime", ""),
        version=facts.get("runtime_version", ""),
        cpu=facts.get("cpu", ""),
        features=tuple(facts.get("features", "").split()),
        threads=int(facts["threads"]) if facts.get("threads", "").isdecimal() else 0,
        provider=facts.get("provider", ""),
    )


def agreed(reference: Reference, outcome: Outcome) -> tuple[Pair, ...]:
    """How far devices agree with each other and with PyTorch, and why if they do not."""
    from hetero import devices

    cells = {(c.device, c.format, c.precision): c for c in outcome.cells}
    pairs = agreement(reference, [(r.place, r.vectors) for r in outcome.runs])

    def explained(pair: Pair) -> Pair:
        if not pair.apart:
            return pair
        a, b = (cells[name, pair.format, pair.precision] for name in (pair.a, pair.b))
        return replace(pair, cause="; ".join(devices.likely_causes(a, b)))

    return tuple(explained(x) for x in pairs)
