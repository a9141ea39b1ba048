"""What was measured when, on what: one SQLite file, a row for each measurement of a file.

    history = History.open()
    history.add(entry)
    history.runs(device="ssh:pi")

Numbers of two sessions differ for more reasons than the file: `session_ratio` compares them all the
same, with an interval for how much sessions of one file on one device differ, and refuses while the
history does not hold enough sessions to know.
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from hetero._files import make_folder, sha256, storage_errors
from hetero._schemas import newer
from hetero.errors import ConfigError
from hetero.latency import CONFIDENCE
from hetero.report import Verdict

VERSION = 1
#: Numbers of these are kept but never compared.
NOT_TO_BE_USED = ("emulated", "invalid")
#: Sessions beyond the first of each file, over which their spread is known well enough.
MIN_DEGREES = 5

_TABLES = """
CREATE TABLE run (
  id INTEGER PRIMARY KEY,
  at TEXT NOT NULL,
  kind TEXT NOT NULL,
  subject TEXT NOT NULL,
  bundle_sha256 TEXT NOT NULL,
  file_sha256 TEXT NOT NULL,
  format TEXT NOT NULL,
  precision TEXT NOT NULL,
  device TEXT NOT NULL,
  settings TEXT NOT NULL,
  validity TEXT NOT NULL,
  reason TEXT NOT NULL,
  quiet_ns REAL NOT NULL,
  p50_ns REAL NOT NULL,
  conditions TEXT NOT NULL,
  raw TEXT NOT NULL
);
CREATE INDEX run_of ON run (file_sha256, device, settings);
CREATE TABLE baseline (
  name TEXT PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES run (id),
  model TEXT NOT NULL,
  inputs TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Entry:
    """One measurement of one file on one device.

    Attributes:
        kind: "measure", "sustained" or "compare".
        subject: What people call the file.
        bundle_sha256, file_sha256: What it is.
        format, precision, device: Where it belongs.
        settings: What changes the numbers besides: threads, accelerator, duty.
        validity, reason: Whether to believe them.
        quiet_ns, p50_ns: Quiet and median latency.
        conditions: Runtime, processor, governor, temperature, load ...
        raw: Latencies as at most 201 quantiles, or the ratios of a comparison.
        id, at: Given when it is added: number, and time in UTC.
    """

    kind: str
    subject: str
    bundle_sha256: str
    file_sha256: str
    format: str
    precision: str
    device: str
    settings: str
    validity: str
    reason: str
    quiet_ns: float
    p50_ns: float
    conditions: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
    at: str = ""


@dataclass(frozen=True)
class Baseline:
    """A run with a name, and the file it measured, kept so that it can run again.

    Attributes:
        name: Given by the user.
        run: What was measured then.
        model: The file.
        inputs: One row, as the file takes it.
    """

    name: str
    run: Entry
    model: Path
    inputs: Shaped[np.ndarray, "n ..."]


def default_path() -> Path:
    """The history of this user: `hetero/history.db` in the folder for application data."""
    from platformdirs import user_data_path

    return user_data_path("hetero", appauthor=False) / "history.db"


@dataclass(frozen=True)
class History:
    """A history file; nothing stays open between two calls.

    Attributes:
        path: The SQLite file; files of baselines lie in `models/` beside it.
    """

    path: Path

    @classmethod
    def open(cls, path: Path | None = None) -> History:
        """The history in a file, made where it is not there.

        Raises:
            ConfigError: It is no history, or one of a newer version.
            StorageError: The disk is full or failed.
        """
        history = cls(path or default_path())
        make_folder(history.path.parent)
        with history._connected() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version == 0 and tables == 0:
                db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version > VERSION:
                raise ConfigError(
                    f"{history.path}: a history of version {version}, "
                    f"{newer(str(VERSION))}, or name another file with --history"
                )
            elif version != VERSION:
                raise ConfigError(
                    f"{history.path}: a history of version {version}, this program reads "
                    f"{VERSION}; name another file with --history"
                )
        return history

    def add(self, entry: Entry) -> Entry:
        """The entry as it was stored, with its number and time."""
        entry = replace(entry, at=datetime.now(UTC).isoformat(timespec="seconds"))
        row = {k: v for k, v in vars(entry).items() if k != "id"}
        row |= {name: json.dumps(row[name]) for name in ("conditions", "raw")}
        names = ", ".join(row)
        marks = ", ".join(f":{name}" for name in row)
        with self._connected() as db:
            at = db.execute(f"INSERT INTO run ({names}) VALUES ({marks})", row).lastrowid
        return replace(entry, id=at or 0)

    def runs(self, **where: str) -> tuple[Entry, ...]:
        """The runs whose columns have these values, oldest first."""
        asked = " AND ".join(f"{name} = :{name}" for name in where) or "1"
        with self._connected() as db:
            rows = db.execute(f"SELECT * FROM run WHERE {asked} ORDER BY id", where).fetchall()
        return tuple(_entry(row) for row in rows)

    def run(self, number: int) -> Entry:
        """The run of this number.

        Raises:
            ConfigError: There is none.
        """
        with self._connected() as db:
            row = db.execute("SELECT * FROM run WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise ConfigError(f"{self.path}: no run {number}; `hetero bench list` shows them")
        return _entry(row)

    def keep(self, name: str, run: Entry, model: Path, inputs: Shaped[np.ndarray, "n ..."]) -> None:
        """Call a run by a name, and keep its file and one input; an older one of the name goes."""
        folder = make_folder(self.path.parent / "models")
        kept = folder / f"{sha256(model)}{model.suffix}"
        row = kept.with_suffix(".npy")
        with storage_errors(kept):
            if not kept.exists():
                shutil.copyfile(model, kept)
            np.save(row, inputs[:1], allow_pickle=False)
        with self._connected() as db:
            db.execute(
                "INSERT OR REPLACE INTO baseline VALUES (?, ?, ?, ?)",
                (name, run.id, kept.name, row.name),
            )

    def baselines(self) -> dict[str, int]:
        """Name to number of the run."""
        with self._connected() as db:
            return {x["name"]: x["run"] for x in db.execute("SELECT * FROM baseline ORDER BY name")}

    def baseline(self, name: str) -> Baseline:
        """The baseline of this name.

        Raises:
            ConfigError: There is none, or its file is gone or altered.
        """
        with self._connected() as db:
            row = db.execute("SELECT * FROM baseline WHERE name = ?", (name,)).fetchone()
        if row is None:
            known = ", ".join(self.baselines()) or "none"
            raise ConfigError(f"{self.path}: no baseline {name!r}; there are: {known}")
        folder = self.path.parent / "models"
        run, model = self.run(row["run"]), folder / row["model"]
        try:
            if sha256(model) != run.file_sha256:
                raise ConfigError(f"{model}: not the file that baseline {name!r} measured")
            inputs = np.load(folder / row["inputs"], allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"baseline {name!r}: its files are gone ({error})") from error
        return Baseline(name, run, model, inputs)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection that commits at the end, and turns what SQLite raises into one line."""
        try:
            with closing(sqlite3.connect(self.path, timeout=30)) as db, db:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA foreign_keys = ON")
                yield db
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{self.path}: cannot be used as a history ({error})") from error


def _entry(row: sqlite3.Row) -> Entry:
    parts = {name: json.loads(row[name]) for name in ("conditions", "raw")}
    return Entry(**{**dict(row), **parts})


@dataclass(frozen=True)
class SessionRatio:
    """Quiet latency of one session over another's.

    Attributes:
        value: B over A.
        low, high: 95 % interval, or None where the spread of sessions is not known.
        spread: Standard deviation of the logarithm between sessions, or None.
        degrees: Of freedom behind it.
    """

    value: float
    low: float | None
    high: float | None
    spread: float | None
    degrees: int

    def judged(self, margin: float, a: Entry, b: Entry) -> Verdict:
        """Whether B is slower than A by more than the margin."""
        if self.low is None or self.high is None or _doubtful(a, b):
            return "inconclusive"
        if self.high <= 1 + margin:
            return "pass"
        return "fail" if self.low > 1 + margin else "inconclusive"

    def why(self, margin: float, a: Entry, b: Entry) -> str:
        """The reason for the verdict, in a clause."""
        if doubtful := _doubtful(a, b):
            return doubtful
        if self.spread is None:
            return (
                f"how much sessions differ by themselves is not known yet: {self.degrees} of "
                f"{MIN_DEGREES} repeated sessions on this device; measure again, or use --against"
            )
        return (
            f"margin {margin:.0%}; sessions of one file differ by {self.spread:.1%} here "
            f"({self.degrees} repetitions)"
        )


def _doubtful(*runs: Entry) -> str:
    """Why a run's numbers mean nothing, or ""."""
    return next(
        (f"run {r.id} is invalid: {r.reason}" for r in runs if r.validity in NOT_TO_BE_USED), ""
    )


def session_ratio(a: Entry, b: Entry, history: tuple[Entry, ...]) -> SessionRatio:
    """B's quiet latency over A's, with an interval for what differs from session to session.

    The spread is that of sessions of one file on one device with the same settings, pooled over
    all such files in the history; logarithms of quiet latencies are taken as normal.

    Raises:
        ConfigError: The two were measured differently: device, settings or kind.
    """
    from scipy.stats import t

    if (a.device, a.settings, a.kind) != (b.device, b.settings, b.kind):
        one, other = (f"{x.kind} on {x.device} ({x.settings})" for x in (a, b))
        raise ConfigError(
            f"run {a.id} is {one}, run {b.id} {other}; latencies of different devices, settings "
            "or kinds of measurement are not compared"
        )
    sessions: dict[str, list[float]] = {}
    for run in history:
        usable = run.kind == a.kind and run.validity not in NOT_TO_BE_USED
        if usable and (run.device, run.settings) == (a.device, a.settings):
            sessions.setdefault(run.file_sha256, []).append(math.log(run.quiet_ns))
    squares = sum(float(np.sum((np.array(x) - np.mean(x)) ** 2)) for x in sessions.values())
    degrees = sum(len(x) - 1 for x in sessions.values())
    value = b.quiet_ns / a.quiet_ns
    if degrees < MIN_DEGREES:
        return SessionRatio(value, None, None, None, degrees)
    spread = math.sqrt(squares / degrees)
    reach = math.exp(float(t.ppf((1 + CONFIDENCE) / 2, degrees)) * spread * math.sqrt(2))
    return SessionRatio(value, value / reach, value * reach, spread, degrees)
