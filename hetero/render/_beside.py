"""What lies beside a report and belongs onto its page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetero._schemas import UNREADABLE
from hetero.errors import BundleError
from hetero.render import _words as words
from hetero.report import Report

if TYPE_CHECKING:
    from hetero.plane import Plane

_DIAGNOSIS = "hetero.diagnosis/1"
#: `hetero.plane.FILE`; named here, too, so that a report without one needs none of its modules.
_PLANE = "plane.json"


def plane(folder: Path) -> Plane | None:
    """The plane of vectors in a check's folder, or None.

    Raises:
        BundleError: It cannot be read.
    """
    path = folder / _PLANE
    if not path.is_file():
        return None
    from hetero.plane import Plane

    return Plane.load(path)


def diagnosis(folder: Path, report: Report) -> Mapping[str, Any] | None:
    """What `hetero diagnose` found about the report's query model, if it is there.

    Of another model or another version nothing is taken.

    Raises:
        BundleError: It lies in the report's own folder and cannot be read.
    """
    model = report.facts.get("query model")
    for path in (
        folder / "diagnosis.json",
        folder / "diagnose" / "diagnosis.json",
        folder.parent / "diagnose" / "diagnosis.json",
    ):
        try:
            found = json.loads(path.read_bytes())
            if model and found["schema"] == _DIAGNOSIS and found["facts"]["model"] == model:
                diagnosed(found)
                return dict(found)
        except FileNotFoundError:
            continue
        except UNREADABLE as error:
            if path.is_relative_to(folder):
                raise BundleError(f"{path}: cannot be read as a diagnosis ({error!r})") from error
    return None


def diagnosed(found: Mapping[str, Any]) -> dict[str, Any]:
    """A diagnosis as the page wants it: what was found, and what each stage lost."""
    facts = found["facts"]
    where = "" if facts["device"] == "none" else f" on {facts['device']}"
    rows = [
        (x["stage"], f"{x['cosine_lost']:.2g}", f"{100 * x['recall_lost']:+.1f}", x["how"])
        for x in found["losses"]
    ]
    whole = (f"{found['cosine_lost']:.2g}", f"{100 * found['recall_lost']:+.1f}")
    return {
        "verdict": str(found["verdict"]),
        "of": words.one_line(f"{facts['file']}{where}"),
        "command": str(facts["command"]),
        "faults": [
            (str(x["stage"]), str(x["cause"]), [str(e) for e in x["evidence"]], str(x["fix"]))
            for x in found["faults"]
        ],
        "notes": [str(x) for x in found["notes"]],
        "rows": [*rows, ("total", *whole, f"of a Recall@1 of {100 * found['recall']:.1f} %")],
    }
