"""A report as Markdown for a pull request: verdict, table, what failed, what was not run."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hetero.render import _agreement, _baseline, _verdict, _view, _words
from hetero.report import Measurement, Report

_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "unjudged": ""}
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]#|~$])")


def escaped(text: str) -> str:
    """The text on one line, with nothing in it that Markdown, HTML or GitHub would act upon."""
    text = _words.one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _PUNCTUATION.sub(r"\\\1", text)
    # Nobody wants to be notified because a picture is called "@team".
    return re.sub(r"(?<!\w)@(?=\w)", "@<!-- -->", text)


def render(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    lines = [
        f"## {_SIGNS[report.verdict]} {report.verdict.upper()}: {escaped(report.subject)}",
        "",
        escaped(_verdict.sentence(report)),
    ]
    for title, part in (
        ("", _table(report)),
        ("Agreement of devices", _agreements(report)),
        ("Against the baseline", _compared(report)),
        ("Failed or undecided", _judged(report, _view.problems(report))),
        ("Passed with declared error rates", _judged(report, _view.passed_tests(report))),
        ("Not executed", _not_run(report)),
        ("Measured on", _facts(report)),
    ):
        if part:
            lines += ["", f"### {title}", ""] if title else [""]
            lines += part
    return "\n".join(lines) + "\n"


def _table(report: Report) -> list[str]:
    table = _view.table(report)
    if not table.rows or not table.columns:
        return []
    heads = [f"{c.label}, {c.unit}" if c.unit else c.label for c in table.columns]
    how = ["Execution"] if table.says_how else []
    lines = [
        _row(["File", *heads, *how, "Outcome"]),
        _row(["---", *["---:"] * len(heads), *["---"] * len(how), "---"]),
    ]
    for row in table.rows:
        cells = []
        for cell in row.cells:
            text = escaped(cell.text) if cell else _words.ABSENT
            bad = cell is not None and cell.outcome in ("fail", "inconclusive")
            cells.append(f"**{text}** {_SIGNS[cell.outcome]}" if cell and bad else text)
        outcome = row.note if row.outcome is None else f"{_SIGNS[row.outcome]} {row.outcome}"
        said = [row.execution] if how else []
        lines.append(_row([escaped(row.name), *cells, *said, outcome.strip()]))
    device = _view.sole_device(report)
    return [*lines, "", f"Executed on {escaped(device)}."] if device else lines


def _agreements(report: Report) -> list[str]:
    lines: list[str] = []
    for matrix in _agreement.matrices(report):
        heads = [escaped(matrix.title), *map(escaped, matrix.columns)]
        lines += [*([""] if lines else []), _row(heads), _row(["---", *["---:"] * len(heads[1:])])]
        for name, meetings in matrix.rows:
            cells = [
                "" if x is None else f"{x.cosine}{' **≠**' if x.apart else ''}, {x.same}"
                for x in meetings
            ]
            lines.append(_row([escaped(name), *cells]))
        lines += ["", *(f"- ≠ {escaped(x)}" for x in matrix.findings)]
    note = "Worst cosine over the queries, and for how many both find the same picture first."
    return [*lines, "", note] if lines else []


def _compared(report: Report) -> list[str]:
    found = _baseline.rows(report)
    if not found:
        return []
    heads = ["File", "What", "Found", "95 % interval", "Held to", "Outcome"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for x in found:
        texts = (x.file, x.what, x.found, x.between, x.limit)
        outcome = "" if x.outcome == "unjudged" else f"{_SIGNS[x.outcome]} {x.outcome}"
        lines.append(_row([*map(escaped, texts), outcome]))
    return [*lines, "", f"Baseline: {escaped(report.facts.get('baseline', ''))}."]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _judged(report: Report, measurements: Iterable[Measurement]) -> list[str]:
    name = _view.namer(report)
    return [
        f"- {_SIGNS[m.outcome]} **{escaped(_words.word(m.name).label)}**, "
        f"{escaped(name(m.device, m.format, m.precision))}: {escaped(_view.explain(m))}"
        for m in measurements
    ]


def _not_run(report: Report) -> list[str]:
    name = _view.namer(report)
    return [
        f"- {escaped(name(x.device, x.format, x.precision))}: {escaped(x.reason)}"
        for x in report.not_run
    ]


def _facts(report: Report) -> list[str]:
    if not report.facts:
        return []
    lines = ["<details><summary>Versions, machine, command</summary>", ""]
    lines += [_row(["Fact", "Value"]), _row(["---", "---"])]
    lines += [_row([escaped(name), escaped(value)]) for name, value in report.facts.items()]
    return [*lines, "", "</details>"]
