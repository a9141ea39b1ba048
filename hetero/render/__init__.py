"""Reports for people and machines: one file each, from one `hetero.report.Report`.

A renderer is a module with ``render(report) -> str``; `terminal` prints instead.
"""

from __future__ import annotations

from pathlib import Path

from hetero._files import write_atomically
from hetero.report import Report


def write_all(report: Report, folder: Path) -> None:
    """Write `report.json`, `report.md`, `report.html` and `junit.xml` into the folder.

    The JSON comes first and needs no library, so the numbers are on disk whatever happens next;
    the others are all made before any of them is written.

    What lies beside them goes onto the page: `plane.json`, and the `diagnosis.json` of the same
    query model, in the folder itself or in one called `diagnose` in it or next to it.

    Args:
        report: Judged or not.
        folder: Made if it is not there; files of these names in it are replaced.

    Raises:
        MissingExtraError: A library of the extra "report" is not installed.
        BundleError: What lies beside it cannot be read.
        ConfigError: An example holds something else than an embedded picture, or the folder cannot
            be written to.
        StorageError: The disk is full or failed.
    """
    from hetero.render import _beside, html, junit, markdown

    report.save(folder / "report.json")
    plane, diagnosis = _beside.plane(folder), _beside.diagnosis(folder, report)
    made = {
        "report.md": markdown.render(report),
        "junit.xml": junit.render(report),
        "report.html": html.render(report, plane, diagnosis),
    }
    for name, text in made.items():
        write_atomically(folder / name, text)
