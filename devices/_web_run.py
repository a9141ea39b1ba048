"""The run folder that this machine keeps on a page's behalf, from the messages of its worker.

A browser has no files that others can read. So a page sends what a worker elsewhere would write,
and keeps each message until it is here. Messages are numbered from 1 for each worker:

    text      {"seq": 1, "worker": 3, "event": {"hetero": "ready", ...}}
    binary    uint32 kind (0 a row, 1 measured runs), worker, seq, i, n, 0; float64 t_s; then int64
              nanoseconds, one for a row or one per run; then for a row n x dim float32

Events are those of `hetero.devices._protocol` but for one: in "done" the hashes are of what this
worker handed over. They are compared with what was stored; then the whole files are signed here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hetero._files import sha256, storage_errors

#: A message of a page is at most this big: a row of a million numbers, or a second of short runs.
MAX_MESSAGE_BYTES = 4 << 20
MAX_EVENT_BYTES = 16 << 10
EVENTS = {"hello", "ready", "first", "beat", "bench", "error", "stopped", "done"}
LAST = {"error", "stopped", "done"}
ROW, RUNS = 0, 1
_HEAD = struct.Struct("<6Id")


class MalformedError(ValueError):
    """A message that no worker of ours sends; the text says what is wrong with it."""


@dataclass
class WebRun:
    """What one worker of a page has handed over so far.

    Attributes:
        number: Of the worker; its "pid".
        folder: The run folder.
        job: Content of its job.json.
        have: What earlier workers left in the files.
        sequence: Number of the last message that is in the files.
        told: Whether its last word was said.
        gone: Whether it was given up; what it still sends is nothing any more.
    """

    number: int
    folder: Path
    job: Mapping[str, Any]
    have: Mapping[str, int] = field(default_factory=dict)
    sequence: int = 0
    told: bool = False
    gone: bool = False
    _dim: int = 0
    _rows: int = 0
    _runs: int = 0
    _out: Any = field(default_factory=hashlib.sha256)
    _lat: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self.have = self._found()

    @property
    def ended(self) -> bool:
        """Whether nothing more comes from it."""
        return self.told or self.gone

    @property
    def count(self) -> int:
        """Rows that the job asks for."""
        return int(self.job["inputs"]["shape"][0])

    def _found(self) -> dict[str, int]:
        """What earlier workers left: bytes of both files, and the time of whole measured runs."""
        sizes = {"out_bytes": 0, "lat_bytes": 0}
        for name in ("out", "lat"):
            path = self.folder / f"{name}.bin"
            if path.exists():
                sizes[f"{name}_bytes"] = path.stat().st_size
        whole = sizes["lat_bytes"] // 8
        times = np.fromfile(self.folder / "lat.bin", "<i8", whole) if whole else np.zeros(0, "<i8")
        return {**sizes, "measured_ns": int(times[self.count :].sum())}

    def take(self, message: str | bytes) -> None:
        """Write what a message holds; one that is here already changes nothing.

        Raises:
            MalformedError: It is none of ours; the worker is to be given up.
            StorageError: The disk is full.
        """
        with storage_errors(self.folder):
            if isinstance(message, str):
                self._text(message)
            else:
                self._binary(message)

    def fail(self, text: str, kind: str = "worker-failed") -> None:
        """Say for the worker, which cannot any more, that it failed."""
        if not self.ended:
            self.gone = True
            self._say({"hetero": "error", "t_s": 0.0, "kind": kind, "text": text[:400]})

    # -- text -----------------------------------------------------------------------------------

    def _text(self, message: str) -> None:
        if len(message) > MAX_EVENT_BYTES:
            raise MalformedError(f"an event of {len(message)} characters")
        try:
            found = json.loads(message, parse_constant=_no_constant)
            event, sequence = found["event"], found["seq"]
            name = event["hetero"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise MalformedError(f"text that is no event ({type(error).__name__})") from None
        if not isinstance(event, dict) or name not in EVENTS:
            raise MalformedError(f"an event {str(name)[:40]!r}")
        if not self._is_next(sequence, found.get("worker")):
            return
        if name == "first":
            self._first(event)
        elif name == "done":
            event = self._done(event)
        self.told = name in LAST
        self._say(event)

    def _first(self, event: dict[str, Any]) -> None:
        """Cut both files to what the worker goes on from, which must be there and whole."""
        numbers = [event.get(x) for x in ("dim", "start", "runs", "batch")]
        if not all(isinstance(x, int) and 0 <= x < 2**31 for x in numbers):
            raise MalformedError(f"a first with dim, start, runs, batch {numbers}")
        dim, start, runs, _ = (int(x or 0) for x in numbers)
        whole = min(self.have["out_bytes"] // max(4 * dim, 1), self.have["lat_bytes"] // 8)
        most = self.have["lat_bytes"] // 8 - self.count if whole >= self.count else 0
        if self._dim or dim < 1 or start > min(whole, self.count) or runs > max(most, 0):
            raise MalformedError(f"a first at row {start} and run {runs}, of {self.have}")
        self._dim, self._rows, self._runs = dim, start, runs
        for name, size in (("out", start * 4 * dim), ("lat", 8 * (start + runs))):
            with (self.folder / f"{name}.bin").open("ab") as file:
                file.truncate(size)

    def _done(self, event: dict[str, Any]) -> dict[str, Any]:
        """The worker's last word with the hashes of the whole files."""
        said = event.get("rows"), event.get("runs"), event.get("dim")
        if said != (self._rows, self._runs, self._dim) or not self._dim:
            raise MalformedError(f"a done with rows, runs, dim {said} that did not come")
        if (event.get("out_sha256"), event.get("lat_sha256")) != (
            self._out.hexdigest(),
            self._lat.hexdigest(),
        ):
            raise MalformedError("rows or times that are not those which it signed")
        signed = dict(event)
        for name in ("out", "lat"):
            path = self.folder / f"{name}.bin"
            with path.open("rb") as file:
                os.fsync(file.fileno())
            signed[f"{name}_bytes"] = path.stat().st_size
            signed[f"{name}_sha256"] = sha256(path)
        return signed

    # -- binary ---------------------------------------------------------------------------------

    def _binary(self, message: bytes) -> None:
        if len(message) < _HEAD.size:
            raise MalformedError(f"a binary message of {len(message)} bytes")
        kind, worker, sequence, i, n, _, t_s = _HEAD.unpack_from(message)
        body = message[_HEAD.size :]
        if not self._is_next(sequence, worker):
            return
        if not self._dim or not math.isfinite(t_s):
            raise MalformedError("rows before the first inference")
        if kind == ROW:
            self._row(i, n, t_s, body)
        elif kind == RUNS:
            self._measured(i, n, body)
        else:
            raise MalformedError(f"a binary message of kind {kind}")

    def _row(self, i: int, n: int, t_s: float, body: bytes) -> None:
        fits = i == self._rows and 1 <= n <= self.count - i
        if not fits or len(body) != 8 + n * self._dim * 4:
            raise MalformedError(f"rows {i} to {i + n} in {len(body)} bytes after row {self._rows}")
        ns = _times(body[:8])[0]
        # Row, time, event: the order in which they count as there.
        self._append("out", body[8:], self._out)
        self._append("lat", ns.to_bytes(8, "little") * n, self._lat)
        self._rows = i + n
        self._say({"hetero": "run", "t_s": round(t_s, 3), "i": i, "n": n, "ns": ns})

    def _measured(self, i: int, n: int, body: bytes) -> None:
        if i != self._runs or n < 1 or len(body) != 8 * n or self._rows != self.count:
            raise MalformedError(f"runs {i} to {i + n} in {len(body)} bytes after {self._runs}")
        _times(body)
        self._append("lat", body, self._lat)
        self._runs = i + n

    # -- files ----------------------------------------------------------------------------------

    def _is_next(self, sequence: object, worker: object) -> bool:
        """Whether this message is new and the next one."""
        if worker != self.number or self.gone:
            return False  # last words of a worker that was given up
        if not isinstance(sequence, int) or isinstance(sequence, bool) or sequence < 1:
            raise MalformedError(f"a message numbered {str(sequence)[:40]!r}")
        if sequence <= self.sequence:
            return False
        if sequence != self.sequence + 1:
            raise MalformedError(f"message {sequence} after {self.sequence}")
        if self.told:
            raise MalformedError("a message after its last word")
        self.sequence = sequence
        return True

    def _append(self, name: str, data: bytes, digest: Any) -> None:
        with (self.folder / f"{name}.bin").open("ab") as file:
            file.write(data)
        digest.update(data)

    def _say(self, event: Mapping[str, Any]) -> None:
        path = self.folder / "log.jsonl"
        with storage_errors(path), path.open("ab+") as file:
            line = json.dumps(event).encode() + b"\n"
            file.write(b"\n" * _is_torn(file) + line)


def _is_torn(file: BinaryIO) -> bool:
    """Whether the last line has no end: a full disk may have taken half of it."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _times(data: bytes) -> list[int]:
    """Nanoseconds, each above 0."""
    times = np.frombuffer(data, "<i8")
    if times.min() <= 0:
        raise MalformedError(f"a time of {times.min()} ns")
    return [int(x) for x in times]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
