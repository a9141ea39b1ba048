"""A report as Markdown for a pull request: verdict, table, what failed, what was not run."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hetero.render import _verdict, _view, _words
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
    lines = [_row(["File", *heads, "Outcome"]), _row(["---", *["---:"] * len(heads), "---"])]
    for row in table.rows:
        cells = []
        for cell in row.cells:
            text = escaped(cell.text) if cell else _words.ABSENT
            bad = cell is not None and cell.outcome in ("fail", "inconclusive")
            cells.append(f"**{text}** {_SIGNS[cell.outcome]}" if cell and bad else text)
        outcome = row.note if row.outcome is None else f"{_SIGNS[row.outcome]} {row.outcome}"
        lines.append(_row([escaped(row.name), *cells, outcome.strip()]))
    device = _view.sole_device(report)
    return [*lines, "", f"Executed on {escaped(device)}."] if device else lines


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
