"""Reports over time: what each file measured run after run, and what became worse.

Two runs differ by chance, too, so a change counts only where it can be told from that:

* a share (recall, recall lost) where the two 95 % intervals do not overlap, on the same queries;
* latency as `hetero.history.session_ratio` has it: sessions of one file on one device differ by
  themselves, and while it is not known by how much, a slow-down stays undecided;
* a size from one per cent on; an outcome always.

Intervals that do not overlap are a coarse test: it misses small losses, and seldom cries wolf. The
gate on one file against PyTorch is paired and finer: see `hetero.verdict`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hetero.errors import ConfigError
from hetero.history import Entry, session_ratio
from hetero.measurement import Measurement, Outcome, gravest
from hetero.report import Report

Change = Literal["worse", "better", "same", "undecided"]

#: What is followed, and whether more of it is better.
FOLLOWED = {
    "heterogeneous_recall_at_1": True,
    "recall_at_1_lost": False,
    "latency_p50": False,
    "size": False,
}
#: Slow-downs and growth up to these parts are none.
SLOWER, LARGER = 0.05, 0.01

_RANK: dict[Outcome, int] = {"pass": 0, "unjudged": 0, "inconclusive": 1, "fail": 2}
_SHA = re.compile(r"SHA-256 ([0-9a-f]{12,64})")


@dataclass(frozen=True)
class Run:
    """A stored report and when it was made.

    Attributes:
        name: What it is called: its folder.
        at: Time in UTC, ISO 8601.
        report: What was measured.
        link: Where its own page is, relative to that of the timeline; "" for none.
        dated: Whether the report itself says when; else it is the time of its file.
    """

    name: str
    at: str
    report: Report
    link: str = ""
    dated: bool = True


@dataclass(frozen=True)
class Remark:
    """How one number of a run stands to that of an earlier run.

    Attributes:
        name: Of the measurement; "outcome" for what was made of all of them.
        change: What can be said of it.
        against: Number of the earlier run, from 1.
        was, now: Of which measurements; None for outcomes.
        why: What there is to know besides, in a clause.
    """

    name: str
    change: Change
    against: int
    was: Measurement | None
    now: Measurement | None
    why: str = ""


@dataclass(frozen=True)
class Point:
    """A file in one run.

    Attributes:
        number: Of the run, from 1.
        measured: By name; of `FOLLOWED` what was measured.
        outcome: The gravest there.
        remarks: Against the run before and, for the last run, against the first.
    """

    number: int
    measured: dict[str, Measurement]
    outcome: Outcome
    remarks: tuple[Remark, ...] = field(default=())

    @property
    def worse(self) -> tuple[Remark, ...]:
        """What became worse."""
        return tuple(x for x in self.remarks if x.change == "worse")


@dataclass(frozen=True)
class Line:
    """One file on one device, over the runs that it was in, oldest first."""

    device: str
    format: str
    precision: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Story:
    """Runs about one subject.

    Attributes:
        subject: As the reports have it.
        runs: Oldest first; a run's number is its place in here, from 1.
        lines: Of every file that was executed.
        gone: Places that the last run has not, but the one before it had.
    """

    subject: str
    runs: tuple[Run, ...]
    lines: tuple[Line, ...]
    gone: tuple[tuple[str, str, str], ...] = ()

    @property
    def newest(self) -> tuple[Remark, ...]:
        """What is to be said of the last run."""
        return tuple(
            x for y in self.lines for p in y.points if p.number == len(self.runs) for x in p.remarks
        )

    @property
    def change(self) -> Change:
        """Of the last run: "worse" if anything is, else "undecided" if something or all is open."""
        changes = {x.change for x in self.newest}
        if "worse" in changes:
            return "worse"
        if not changes or "undecided" in changes or self.gone:
            return "undecided"
        return "better" if "better" in changes else "same"


def stories(runs: Sequence[Run]) -> tuple[Story, ...]:
    """The runs by subject, each compared with the one before; subjects in order of appearance."""
    ordered = sorted(runs, key=lambda r: (r.at, r.name))
    by_subject: dict[str, list[Run]] = {}
    for run in ordered:
        by_subject.setdefault(run.report.subject, []).append(run)
    return tuple(_story(subject, tuple(mine)) for subject, mine in by_subject.items())


def exit_code(told: Sequence[Story]) -> int:
    """1 if a last run is worse than before, else 3 if nothing says that it is not, else 0."""
    changes = {x.change for x in told}
    if "worse" in changes:
        return 1
    return 3 if not changes or "undecided" in changes else 0


def _story(subject: str, runs: tuple[Run, ...]) -> Story:
    places: dict[tuple[str, str, str], list[Point]] = {}
    for number, run in enumerate(runs, 1):
        for place, point in _points(number, run.report).items():
            places.setdefault(place, []).append(point)
    sessions = {place: _sessions(place, points, runs) for place, points in places.items()}
    lines = tuple(
        Line(*place, _remarked(points, runs, sessions, place)) for place, points in places.items()
    )
    before, last = len(runs) - 1, len(runs)
    gone = tuple(
        place
        for place, points in places.items()
        if {before, last} & {p.number for p in points} == {before}
    )
    return Story(subject, runs, lines, gone)


def _points(number: int, report: Report) -> dict[tuple[str, str, str], Point]:
    found: dict[tuple[str, str, str], list[Measurement]] = {}
    for m in report.measurements:
        if m.device and m.format not in ("", "pytorch"):
            found.setdefault((m.device, m.format, m.precision), []).append(m)
    out = {}
    for place, rows in found.items():
        known: dict[str, Measurement] = {}
        for m in rows:
            if m.name in FOLLOWED and math.isfinite(m.value):
                known.setdefault(m.name, m)
        out[place] = Point(number, known, gravest(m.outcome for m in rows))
    return out


def _sessions(
    place: tuple[str, str, str], points: Sequence[Point], runs: Sequence[Run]
) -> dict[int, Entry]:
    """The latencies of a file on a device, as `hetero bench` has them in its history."""
    device, format, precision = place
    out = {}
    for p in points:
        report, m = runs[p.number - 1].report, p.measured.get("latency_p50")
        if m is None or m.unit != "ms" or m.value <= 0:
            continue
        said = _SHA.search(report.facts.get(f"{format} {precision} on {device}", ""))
        cell = next((c for c in report.cells if (c.device, c.format, c.precision) == place), None)
        out[p.number] = Entry(
            kind="measure",
            subject=report.subject,
            bundle_sha256="",
            # Of a file without a hash no two sessions are known to be of the same.
            file_sha256=said.group(1)[:12] if said else f"unknown {p.number}",
            format=format,
            precision=precision,
            device=device,
            settings=f"{cell.threads} threads, {cell.cpu}" if cell else "",
            validity=m.doubt.partition(":")[0] or "clean",
            reason=m.doubt.partition(":")[2].strip(),
            quiet_ns=m.value * 1e6,
            p50_ns=m.value * 1e6,
            id=p.number,
        )
    return out


def _remarked(
    points: Sequence[Point],
    runs: Sequence[Run],
    sessions: dict[tuple[str, str, str], dict[int, Entry]],
    place: tuple[str, str, str],
) -> tuple[Point, ...]:
    known = tuple(e for each in sessions.values() for e in each.values())
    out = []
    for at, now in enumerate(points):
        earlier = [points[at - 1]] if at else []
        if at > 1 and at == len(points) - 1 and now.number == len(runs):
            earlier.append(points[0])  # many small steps are none that a neighbour shows
        remarks: list[Remark] = []
        for was in earlier:
            known_already = {(x.name, x.change) for x in remarks}
            found = _compared(was, now, runs, sessions[place], known)
            # Of the first run only what its neighbour does not say.
            remarks += [x for x in found if (x.name, x.change) not in known_already]
        out.append(Point(now.number, now.measured, now.outcome, tuple(remarks)))
    return tuple(out)


def _compared(
    was: Point,
    now: Point,
    runs: Sequence[Run],
    sessions: dict[int, Entry],
    known: tuple[Entry, ...],
) -> list[Remark]:
    """Every number that both runs have; latency by the spread of all sessions on that device."""
    out = []
    step = _RANK[now.outcome] - _RANK[was.outcome]
    if "unjudged" not in (was.outcome, now.outcome):
        change: Change = "worse" if step > 0 else "better" if step < 0 else "same"
        out.append(
            Remark("outcome", change, was.number, None, None, f"{was.outcome} to {now.outcome}")
        )
    for name, upward in FOLLOWED.items():
        a, b = was.measured.get(name), now.measured.get(name)
        if a is None or b is None or a.unit != b.unit:
            continue
        if name == "latency_p50":
            one, other = sessions.get(was.number), sessions.get(now.number)
            if one is None or other is None:
                continue
            change, why = _slower(one, other, known)
        elif name == "size":
            growth = b.value / a.value - 1 if a.value else 0.0
            change = "worse" if growth > LARGER else "better" if growth < -LARGER else "same"
            why = ""
        else:
            facts = (runs[p.number - 1].report.facts for p in (was, now))
            change, why = _apart(a, b, upward, *(_asked(f) for f in facts))
        out.append(Remark(name, change, was.number, a, b, why))
    return out


def _asked(facts: Mapping[str, str]) -> tuple[str, ...]:
    """What recall is a share of; reports of other queries are not compared."""
    return tuple(facts.get(x, "") for x in ("data", "queries", "gallery pictures", "protocol"))


def _apart(
    a: Measurement, b: Measurement, upward: bool, one: tuple[str, ...], other: tuple[str, ...]
) -> tuple[Change, str]:
    """Whether the intervals of two shares are apart."""
    if one != other:
        return "undecided", "measured on other pictures"
    if a.value == b.value:
        return "same", ""
    if a.ci is None or b.ci is None:
        return "undecided", "measured without an interval"
    higher, lower = b.ci[0] > a.ci[1], b.ci[1] < a.ci[0]
    if not (higher or lower):
        return "same", "the intervals overlap"
    return ("better" if higher == upward else "worse"), "the intervals are apart"


def _slower(a: Entry, b: Entry, known: tuple[Entry, ...]) -> tuple[Change, str]:
    """Whether B is slower by more than sessions differ by themselves."""
    try:
        found = session_ratio(a, b, known)
    except ConfigError:
        return "undecided", f"measured with {b.settings}, before with {a.settings}"
    verdict = found.judged(SLOWER, a, b)
    if verdict == "fail":
        return "worse", found.why(SLOWER, a, b)
    if found.high is not None and found.high < 1:
        return "better", found.why(SLOWER, a, b)
    # What is not slower at all needs no proof that it is not much slower.
    doubtful = "invalid" in found.why(SLOWER, a, b)
    if verdict == "pass" or (found.value <= 1 + SLOWER and not doubtful):
        return "same", ""
    return "undecided", found.why(SLOWER, a, b)
