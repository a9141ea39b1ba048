"""What there is to show, worked out once for every renderer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hetero.measurement import gravest
from hetero.render import _words as words
from hetero.report import REFERENCE, Measurement, NotRun, Outcome, Report

Place = tuple[str, str, str]

#: The models as a whole, and the query model in PyTorch, which the files are held against.
MODELS: Place = ("", "", "")


@dataclass(frozen=True)
class Subject:
    """One file on one device, PyTorch, or the models as a whole, with what was measured.

    Attributes:
        place: Device, format, precision.
        measurements: By name; where a name was judged twice, the graver outcome.
        outcome: The gravest of all its measurements.
    """

    place: Place
    measurements: Mapping[str, Measurement]
    outcome: Outcome

    @property
    def is_file(self) -> bool:
        """Whether it is an exported file."""
        return self.place[1] not in ("", "pytorch")

    @property
    def was_run(self) -> bool:
        """Whether it is an exported file that was executed, by its runtime or by reference."""
        return self.is_file and self.place[0] != ""

    @property
    def by_reference(self) -> bool:
        """Whether not its own runtime but a reference interpreter executed it."""
        return self.place[0] == REFERENCE

    def get(self, name: str) -> Measurement | None:
        """The measurement, or None if it was not made."""
        return self.measurements.get(name)


def executed(report: Report) -> str:
    """How many files were executed, and by what: "6 files executed, 3 by reference only"."""
    ran = files(report)
    native = [x for x in ran if not x.by_reference]
    every = "all " if len(ran) > 1 and not report.not_run else ""
    parts = [f"{every}{words.count(len(native), 'file')} executed"] if native else []
    if len(native) < len(ran):
        rest = words.count(len(ran) - len(native), "file")
        parts.append(f"{rest} executed by a reference interpreter only")
    return ", ".join(parts)


def subjects(report: Report) -> tuple[Subject, ...]:
    """Everything that has a measurement, in the order of first appearance."""
    places: dict[Place, list[Measurement]] = {}
    for m in report.measurements:
        places.setdefault((m.device, m.format, m.precision), []).append(m)
    out = []
    for at, rows in places.items():
        by_name: dict[str, Measurement] = {}
        for m in rows:
            kept = by_name.get(m.name)
            if kept is None or gravest((m.outcome, kept.outcome)) != kept.outcome:
                by_name[m.name] = m
        out.append(Subject(at, by_name, gravest(m.outcome for m in rows)))
    return tuple(out)


def files(report: Report) -> tuple[Subject, ...]:
    """The exported files that were executed."""
    return tuple(x for x in subjects(report) if x.was_run)


def sole_device(report: Report) -> str:
    """The device on which every executed file ran, or "" if there were several or none."""
    devices = {x.place[0] for x in files(report)}
    return devices.pop() if len(devices) == 1 else ""


def namer(report: Report) -> Callable[[str, str, str], str]:
    """What calls a file by device, format and precision; the only device there is goes unsaid."""
    sole = sole_device(report)

    def name(device: str, format: str, precision: str) -> str:
        return words.one_line(words.place("" if device == sole else device, format, precision))

    return name


def whole(report: Report, name: str) -> Measurement | None:
    """A measurement of the models as a whole, or of PyTorch, or None."""
    for x in subjects(report):
        if not x.is_file and name in x.measurements:
            return x.measurements[name]
    return None


def finite(report: Report, name: str) -> list[Measurement]:
    """That measurement of each executed file, where it is a number."""
    found = (x.get(name) for x in files(report))
    return [m for m in found if m is not None and math.isfinite(m.value)]


def problems(report: Report) -> tuple[Measurement, ...]:
    """What failed, then what could not be decided, each in report order."""
    return tuple(
        m
        for outcome in ("fail", "inconclusive")
        for m in report.measurements
        if m.outcome == outcome
    )


def passed_tests(report: Report) -> tuple[Measurement, ...]:
    """What passed with declared error rates, in report order."""
    return tuple(m for m in report.measurements if m.outcome == "pass" and m.decision is not None)


def measured(m: Measurement) -> str:
    """The number and its interval: "60.0 % (95 % interval 57.5 to 62.5)"."""
    between = words.interval(m)
    return words.number(m) + (f" (95 % interval {between})" if between else "")


def tested(m: Measurement) -> str:
    """The one-sided bounds of a test, after a comma: ", tested -0.8 to 0.9 points"; or empty."""
    bounds = words.bounds(m)
    return f", tested {bounds}" if bounds else ""


def asked(m: Measurement) -> str:
    """What it was held to: "limit ≥ 60 % for the whole interval"."""
    if m.limit is not None and m.limit.by == "noninferiority":
        return words.rates(m)
    whole_interval = m.limit is not None and m.limit.by == "interval"
    return f"limit {words.bound(m)}" + (" for the whole interval" if whole_interval else "")


def explain(m: Measurement) -> str:
    """One sentence on a judged number: what was measured, what was asked for, and why."""
    text = f"{measured(m)}{tested(m)}, {asked(m)}"
    if m.outcome == "inconclusive":
        text += f"; undecided: {words.why_undecided(m)}"
    return f"{text}." + (f" {words.one_line(m.limit.why)}" if m.limit and m.limit.why else "")


@dataclass(frozen=True)
class Column:
    """A column of the table of files.

    Attributes:
        name: Of the measurement.
        label: Its heading.
        unit: Below the heading; empty if the rows disagree and carry their own.
    """

    name: str
    label: str
    unit: str


@dataclass(frozen=True)
class Cell:
    """One number of the table: its text, its 95 % interval or "", what was made of it.

    Attributes:
        text: With its mark, "3.21 (noisy)".
        mark: That mark alone, "noisy", or "".
    """

    text: str
    interval: str
    outcome: Outcome
    mark: str = ""

    @property
    def bare(self) -> str:
        """The text without its mark, which a page writes below."""
        return self.text.removesuffix(f" ({self.mark})")


@dataclass(frozen=True)
class Row:
    """A file, or PyTorch, or a file that was not run.

    Attributes:
        name: What it is called here.
        place: Device, format, precision.
        cells: One per column; None where nothing was measured.
        outcome: Of the file; None if it was not run or is the reference.
        note: Said instead of an outcome: "reference", "not run".
        execution: "native", "emulated", "reference"; empty where that is not known.
    """

    name: str
    place: Place
    cells: tuple[Cell | None, ...]
    outcome: Outcome | None
    note: str
    execution: str = ""


COLUMNS = (
    ("heterogeneous_recall_at_1", "Recall@1"),
    ("recall_at_1_lost", "Lost to PyTorch"),
    ("heterogeneous_map", "mAP"),
    ("cosine_worst", "Worst cosine"),
    ("query_negative_flip_rate", "Negative flips"),
    ("device_inferences", "Queries run"),
    ("size", "Size"),
    ("latency_quiet", "Quiet latency"),
    ("latency_ratio", "B over A"),
    ("latency_p50_ratio", "B over A, p50"),
    ("detectable_slowdown", "Would find"),
    ("latency_p50", "Latency p50"),
    ("latency_p90", "Latency p90"),
    ("latency_p99", "Latency p99"),
    ("load_time", "Load time"),
    ("peak_memory", "Peak memory"),
)


@dataclass(frozen=True)
class Table:
    """The table of files: columns that at least one row fills, PyTorch first, not-run last."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def says_how(self) -> bool:
        """Whether it is known of any row by what it was executed."""
        return any(row.execution for row in self.rows)

    @property
    def doubted(self) -> bool:
        """Whether any number carries a mark."""
        return any(cell.mark for row in self.rows for cell in row.cells if cell is not None)


def _is_about(x: NotRun, s: Subject) -> bool:
    device, format, precision = s.place
    return (x.format, x.precision) == (format, precision) and device in ("", x.device)


def table(report: Report) -> Table:
    """The table of files."""
    everything, name_of = subjects(report), namer(report)
    executions = {(c.device, c.format, c.precision): c.execution for c in report.cells}
    shown = [x for x in everything if x.place[1] == "pytorch"]
    shown += [x for x in everything if x.was_run]
    shown += [x for x in everything if x.is_file and not x.was_run]
    columns = []
    for name, label in COLUMNS:
        units = {words.unit(m) for x in shown if (m := x.get(name)) is not None}
        if units:
            columns.append(Column(name, label, units.pop() if len(units) == 1 else ""))
    rows = []
    for x in shown:
        cells = tuple(_cell(x.get(c.name), c) for c in columns)
        note = "" if x.was_run else ("not run" if x.is_file else "reference")
        outcome = x.outcome if x.was_run or x.outcome != "unjudged" else None
        how = executions.get(x.place, "")
        rows.append(Row(name_of(*x.place), x.place, cells, outcome, note, how))
    for absent in report.not_run:
        if not any(_is_about(absent, x) for x in shown):
            at = (absent.device, absent.format, absent.precision)
            rows.append(Row(name_of(*at), at, (None,) * len(columns), None, "not run"))
    return Table(tuple(columns), tuple(rows))


def _cell(m: Measurement | None, column: Column) -> Cell | None:
    if m is None:
        return None
    text = words.bare(m) + words.mark(m) if column.unit else words.number(m)
    return Cell(text, words.interval(m), m.outcome, words.mark(m).strip(" ()"))
