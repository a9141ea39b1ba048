"""What a notebook shows of a report or a bundle: a small table, no script, no style of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from hetero.render import _verdict, _view, _words

if TYPE_CHECKING:
    from hetero.bundle import Bundle
    from hetero.report import Report


def report(what: Report) -> str:
    """The verdict's sentence, and the table of files."""
    content = _view.table(what)
    heads = [f"{c.label}, {c.unit}" if c.unit else c.label for c in content.columns]
    rows = [
        [
            row.name,
            *(_words.ABSENT if cell is None else cell.text for cell in row.cells),
            row.note if row.outcome is None else row.outcome,
        ]
        for row in content.rows
    ]
    said = f"<p><strong>{escape(_verdict.verdict_line(what))}</strong></p>"
    return said + _table(["file", *heads, "outcome"], rows)


def bundle(what: Bundle) -> str:
    """What the model is, and its files."""
    m = what.manifest
    facts = [
        ["role", m.role],
        ["folder", str(what.root)],
        ["backbone", m.model.backbone],
        ["space", what.space.id],
        ["dimension", str(m.model.dim)],
        ["parameters", f"{m.model.parameters:,}"],
        ["multiply-accumulates", f"{m.model.macs:,}"],
        ["files", ", ".join(f.path for f in m.files)],
    ]
    return _table([], facts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table whose first column names its rows."""
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    lines = [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    ]
    head = f"<thead><tr>{top}</tr></thead>" if heads else ""
    return f"<table>{head}<tbody>{''.join(lines)}</tbody></table>"
