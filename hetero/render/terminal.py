"""A report in a terminal: a coloured table for people, plain lines for logs and pipes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from hetero.render import _agreement, _verdict, _view, _words
from hetero.report import Measurement, Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_COLOURS = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "unjudged": "dim"}
_SIGNS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "unjudged": ""}
_HOW = {"emulated": "yellow", "reference": "dim"}

#: Short headings, and in which order columns go where a terminal is too narrow for all of them;
#: "execution" is the one that is no measurement.
_SHORT = {
    "peak_memory": "memory",
    "load_time": "load",
    "latency_p90": "p90",
    "heterogeneous_map": "mAP",
    "size": "size",
    "latency_p99": "p99",
    "device_inferences": "run",
    "query_negative_flip_rate": "neg. flips",
    "cosine_worst": "worst cos.",
    "latency_p50": "p50",
    "latency_quiet": "quiet",
    "latency_p50_ratio": "p50 ratio",
    "detectable_slowdown": "would find",
    "latency_ratio": "B over A",
    "execution": "execution",
    "recall_at_1_lost": "lost",
    "heterogeneous_recall_at_1": "R@1",
}


def show(report: Report, console: Console) -> None:
    """Print the report: as a table on a terminal, as `plain` lines anywhere else.

    A terminal that is too narrow gets fewer columns, and is told so, rather than cut numbers.
    """
    if not console.is_terminal:
        # A pipe that cannot say "≤" gets a question mark, not an exception.
        text = plain(report).encode(console.encoding, "replace").decode(console.encoding)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    from rich.measure import Measurement as Width

    unbounded = console.options.update(width=10_000)
    content = _view.table(report)
    there = {column.name for column in content.columns}
    there |= {"execution"} if content.says_how else set()
    left_out: list[str] = []
    shown = table(report)
    for name in (x for x in _SHORT if x in there):
        if Width.get(console, unbounded, shown).maximum <= console.width:
            break
        left_out.append(name)
        shown = table(report, left_out)
    console.print(shown)
    if left_out:
        names = ", ".join(_SHORT[x] for x in left_out)
        console.print(
            f"No room here for {names}; they are in the report's files.",
            style="dim",
            markup=False,
            highlight=False,
        )
    for matrix in _agreement.matrices(report):
        console.print(agreement(matrix))
    for line in _remarks(report, _view.namer(report)):
        console.print(line, markup=False, highlight=False)
    console.print(verdict(report))


def verdict(report: Report) -> Text:
    """The verdict and its sentence, coloured."""
    from rich.text import Text

    word, _, rest = _verdict.verdict_line(report).partition(":")
    return Text.assemble((word, f"bold {_COLOURS[report.verdict]}"), f":{rest}")


def table(report: Report, left_out: Collection[str] = ()) -> Table:
    """The table of files; a failed number is red and carries a cross.

    Args:
        report: Judged or not.
        left_out: What gets no column: names of measurements, and "execution".
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    content = _view.table(report)
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(_words.one_line(report.subject)))
    out.add_column("File", no_wrap=True)
    kept = [at for at, column in enumerate(content.columns) if column.name not in left_out]
    for at in kept:
        head = Text(_SHORT[content.columns[at].name])
        if content.columns[at].unit:
            head.append(f"\n{content.columns[at].unit}", style="dim")
        out.add_column(head, justify="right", no_wrap=True)
    says_how = content.says_how and "execution" not in left_out
    if says_how:
        out.add_column("Execution", no_wrap=True)
    out.add_column("Outcome", no_wrap=True)
    for row in content.rows:
        cells = [
            Text(_words.ABSENT, style="dim")
            if cell is None
            else Text(
                f"{cell.text} {_SIGNS[cell.outcome] if cell.outcome != 'pass' else ''}".strip(),
                style=_COLOURS[cell.outcome] if cell.outcome in ("fail", "inconclusive") else "",
            )
            for cell in (row.cells[at] for at in kept)
        ]
        out.add_row(
            Text(row.name),
            *cells,
            *([Text(row.execution, style=_HOW.get(row.execution, ""))] if says_how else []),
            Text(row.note, style="dim")
            if row.outcome is None
            else Text(f"{_SIGNS[row.outcome]} {row.outcome}".strip(), style=_COLOURS[row.outcome]),
        )
    return out


def agreement(matrix: _agreement.Matrix) -> Table:
    """How far devices agree: the worst cosine, and the share of queries with one first answer."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=Text(f"Agreement, {matrix.title}: worst cosine")
    )
    out.add_column("", no_wrap=True)
    for name in matrix.columns:
        out.add_column(Text(name), justify="right", overflow="fold")
    for name, meetings in matrix.rows:
        cells = [
            Text("")
            if x is None
            else Text.assemble(
                (f"{x.cosine}{' ≠' if x.apart else ''}", "yellow" if x.apart else ""),
                ("" if x.same == "100 %" else f"\n{x.same} same top-1", "dim"),
            )
            for x in meetings
        ]
        out.add_row(Text(name), *cells)
    return out


def plain(report: Report) -> str:
    """The same without a table: one line per file with ``name=value`` pairs, the verdict last."""
    content = _view.table(report)
    lines = []
    for row in content.rows:
        pairs = [
            f"{column.name}={cell.text}{f' {column.unit}' if column.unit else ''}"
            + (f" [{cell.outcome}]" if cell.outcome in ("fail", "inconclusive") else "")
            for column, cell in zip(content.columns, row.cells, strict=True)
            if cell is not None
        ]
        if not pairs:
            continue
        how = f" ({row.execution})" if row.execution else ""
        head = f"{_words.one_line(_words.place(*row.place))}{how}: {row.outcome or row.note}"
        lines.append("; ".join([head, *pairs]))
    lines += [
        f"agreement: {matrix.title}: {a} and {b}: worst cosine {x.cosine}, same top-1 {x.same}"
        for matrix in _agreement.matrices(report)
        for b, meetings in matrix.rows
        for a, x in zip(matrix.columns, meetings, strict=True)
        if x is not None
    ]
    return "\n".join([*lines, *_remarks(report, _words.place), _verdict.verdict_line(report)])


def _remarks(report: Report, name: Callable[[str, str, str], str]) -> list[str]:
    lines = []
    told: list[tuple[str, Measurement]] = [(m.outcome, m) for m in _view.problems(report)]
    told += [("tested", m) for m in _view.passed_tests(report)]
    for word, m in told:
        at, label = name(m.device, m.format, m.precision), _words.word(m.name).label
        lines.append(_words.one_line(f"{word}: {at}: {label}: {_view.explain(m)}"))
    lines += [f"apart: {x}" for matrix in _agreement.matrices(report) for x in matrix.findings]
    # What three precisions of a format have in common is said once.
    alike: dict[tuple[str, str, str], list[str]] = {}
    for x in report.not_run:
        alike.setdefault((x.device, x.format, x.reason), []).append(x.precision)
    for (device, format, reason), precisions in alike.items():
        at = name(device, format, ", ".join(precisions))
        lines.append(_words.one_line(f"not run: {at}: {reason}"))
    return lines
