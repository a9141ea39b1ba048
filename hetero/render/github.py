"""A report where GitHub Actions shows it: annotations, the summary of the step, its outputs.

Annotations are lines that the runner reads in a step's output (either stream):
``::error title=…::…``. Of each kind it shows ten a step, so the rest is counted in the last one.
A limit that failed is an error; what could not be decided, and what a device left out, a warning:
the exit code says already that the step is not green.

SARIF is not written: its results are places in source files, a measurement has none, and GitHub
would keep them as open alerts of the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hetero._files import storage_errors
from hetero.render import _verdict, _view, _words, markdown
from hetero.report import Report

#: Annotations of one kind that a step may have.
MOST = 10

#: Bytes that a step's summary may have, all its commands together; more, and all of it is dropped.
SUMMARY_BYTES = 1024 * 1024

_CUT = "\n\n_Cut here: a step's summary is limited. The rest is in the report's files._\n"


def runs_here(environ: Mapping[str, str]) -> bool:
    """Whether this is a step of GitHub Actions."""
    return environ.get("GITHUB_ACTIONS") == "true"


def render(report: Report) -> str:
    """The annotations, one a line; empty where there is nothing to point at."""
    name = _view.namer(report)
    problems = [
        (m.outcome, f"{_words.word(m.name).label}, {name(m.device, m.format, m.precision)}", m)
        for m in _view.problems(report)
    ]
    failed = [(title, _view.explain(m)) for outcome, title, m in problems if outcome == "fail"]
    undecided = [(title, _view.explain(m)) for outcome, title, m in problems if outcome != "fail"]
    undecided += [
        (f"Not run: {name(x.device, x.format, x.precision)}", x.reason) for x in report.missing
    ]
    if report.verdict != "pass" and not failed and not undecided:
        undecided = [("Nothing was judged", _verdict.sentence(report))]
    return "".join([*_lines("error", failed), *_lines("warning", undecided)])


def _lines(kind: str, told: Sequence[tuple[str, str]]) -> list[str]:
    shown = list(told[:MOST])
    if len(told) > MOST:
        more = len(told) - MOST + 1
        shown[-1] = (f"{more} more", "See the summary of this step, or the report.")
    return [f"::{kind} title={_property(title)}::{_data(text)}\n" for title, text in shown]


def _data(text: str) -> str:
    """As the runner wants a message: what would end the line is written as in a URL."""
    return _words.clean(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """As the runner wants a property, where colon and comma are signs too."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def summary(report: Report, room: int = SUMMARY_BYTES) -> str:
    """The report as Markdown in at most so many bytes of UTF-8, cut after a line.

    Args:
        report: Judged or not.
        room: What other commands of the step have left; empty where not even a remark fits.
    """
    text = markdown.render(report)
    if len(text.encode()) <= room:
        return text
    end = "\n</details>" + _CUT
    head = text.encode()[: max(0, room - len(end.encode()))].decode(errors="ignore")
    head = head[: head.rfind("\n") + 1]
    if not head:
        return ""
    inside = head.count("<details>") > head.count("</details>")
    return head + (end if inside else _CUT)


def tell(report: Report, folder: Path, environ: Mapping[str, str]) -> None:
    """Append the summary and the outputs ``verdict`` and ``report`` to the files of the step.

    A file that the environment does not name is left out.

    Raises:
        ConfigError: A file cannot be written to.
        StorageError: The disk is full or failed.
    """
    if path := environ.get("GITHUB_STEP_SUMMARY"):
        there = Path(path).stat().st_size if Path(path).exists() else 0
        _append(Path(path), summary(report, SUMMARY_BYTES - there))
    if path := environ.get("GITHUB_OUTPUT"):
        # A line break in a name would be another output.
        where = " ".join(str(folder / "report.html").splitlines())
        _append(Path(path), f"verdict={report.verdict}\nreport={where}\n")


def _append(path: Path, text: str) -> None:
    with storage_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
