"""A report in a terminal: a coloured table for people, plain lines for logs and pipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetero.render import _verdict, _view, _words
from hetero.report import Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_COLOURS = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "unjudged": "dim"}
_SIGNS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "unjudged": ""}


def show(report: Report, console: Console) -> None:
    """Print the report: as a table on a terminal, as `plain` lines anywhere else."""
    if not console.is_terminal:
        console.print(plain(report), markup=False, highlight=False, soft_wrap=True)
        return
    console.print(table(report))
    for line in _remarks(report):
        console.print(line, markup=False, highlight=False)
    console.print(verdict(report))


def verdict(report: Report) -> Text:
    """The verdict and its sentence, coloured."""
    from rich.text import Text

    word, _, rest = _verdict.verdict_line(report).partition(":")
    return Text.assemble((word, f"bold {_COLOURS[report.verdict]}"), f":{rest}")


def table(report: Report) -> Table:
    """The table of files; a failed number is red and carries a cross."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    content = _view.table(report)
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(_words.one_line(report.subject)))
    out.add_column("File", no_wrap=True)
    for column in content.columns:
        head = Text(column.label)
        if column.unit:
            head.append(f"\n{column.unit}", style="dim")
        out.add_column(head, justify="right")
    out.add_column("Outcome", no_wrap=True)
    for row in content.rows:
        cells = [
            Text("–", style="dim")  # noqa: RUF001
            if cell is None
            else Text(
                f"{cell.text} {_SIGNS[cell.outcome] if cell.outcome != 'pass' else ''}".strip(),
                style=_COLOURS[cell.outcome] if cell.outcome in ("fail", "inconclusive") else "",
            )
            for cell in row.cells
        ]
        out.add_row(
            Text(row.name),
            *cells,
            Text(row.note, style="dim")
            if row.outcome is None
            else Text(f"{_SIGNS[row.outcome]} {row.outcome}".strip(), style=_COLOURS[row.outcome]),
        )
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
        head = f"{_words.one_line(_words.place(*row.place))}: {row.outcome or row.note}"
        lines.append("; ".join([head, *pairs]))
    return "\n".join([*lines, *_remarks(report), _verdict.verdict_line(report)])


def _remarks(report: Report) -> list[str]:
    lines = []
    for m in _view.problems(report):
        at = _words.place(m.device, m.format, m.precision)
        lines.append(_words.one_line(f"{m.outcome}: {at}: {m.name}: {_view.explain(m)}"))
    for x in report.not_run:
        at = _words.place(x.device, x.format, x.precision)
        lines.append(_words.one_line(f"not run: {at}: {x.reason}"))
    return lines
