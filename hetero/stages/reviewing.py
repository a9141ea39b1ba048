"""Stage: stored reports over time, as one page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from hetero import timeline
from hetero._files import json_text, make_folder, write_together
from hetero.errors import BundleError, ConfigError
from hetero.progress import Reporter
from hetero.report import Report
from hetero.timeline import Run, Story

#: Written into the folder for results.
PAGE, NUMBERS = "history.html", "history.json"


def review(folders: Sequence[Path], output: Path, *, reporter: Reporter) -> tuple[Story, ...]:
    """What became of every file over the runs in these folders; history.html and history.json.

    Args:
        folders: At least one; each with a report.json, or with such folders in it.
        output: Folder for results.
        reporter: Is told what was passed over.

    Raises:
        ConfigError: There is no report in a folder.
        BundleError: A folder's own report cannot be read.
        MissingExtraError: Jinja or matplotlib is not installed.
    """
    from hetero.render import timeline as rendering

    found = {path.resolve(): report for x in folders for path, report in _reports(x, reporter)}
    above = Path(os.path.commonpath([path.parent.parent for path in found]))
    runs = tuple(_run(path, report, output.resolve(), above) for path, report in found.items())
    told = timeline.stories(runs)
    page = rendering.page(told)
    make_folder(output)
    write_together({output / PAGE: page, output / NUMBERS: json_text(rendering.told(told))})
    return told


def _reports(folder: Path, reporter: Reporter) -> Iterator[tuple[Path, Report]]:
    own = folder / "report.json"
    if own.is_file():
        yield own, Report.load(own)
        return
    found = False
    for path in sorted(folder.rglob("report.json")):
        try:
            report = Report.load(path)
        except BundleError as error:
            reporter.line(f"passed over: {error}")
        else:
            found = True
            yield path, report
    if not found:
        raise ConfigError(
            f"{folder}: no report.json in it, nor in a folder below; `hetero check -o FOLDER` and "
            "`hetero bench -o FOLDER` write them"
        )


def _run(path: Path, report: Report, output: Path, above: Path) -> Run:
    """The run of a report.json, called by its folder as seen from `above`."""
    at = report.facts.get("measured", "")
    dated = _utc(at) is not None
    when = _utc(at) or datetime.fromtimestamp(path.stat().st_mtime, UTC)
    page = path.with_name("report.html")
    link = quote(Path(os.path.relpath(page, output)).as_posix()) if page.is_file() else ""
    return Run(
        path.parent.relative_to(above).as_posix(),
        when.isoformat(timespec="seconds"),
        report,
        link,
        dated,
    )


def _utc(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else None
