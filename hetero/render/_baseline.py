"""What became worse or better against an earlier run, as rows for every renderer."""

from __future__ import annotations

from dataclasses import dataclass

from hetero.baseline import SUFFIX
from hetero.render import _view, _words
from hetero.report import Measurement, Outcome, Report


@dataclass(frozen=True)
class Row:
    """One comparison of one file.

    Attributes:
        file: Which.
        what: The measurement, in words.
        found: The number with its unit.
        between: The 95 % interval in the same unit, and the bounds of the test where there was one.
        limit: What it was held to; empty for nothing.
        outcome: What was made of it.
    """

    file: str
    what: str
    found: str
    between: str
    limit: str
    outcome: Outcome


def rows(report: Report) -> tuple[Row, ...]:
    """The comparisons, in report order; none where there was no baseline."""
    name = _view.namer(report)
    return tuple(
        Row(
            name(m.device, m.format, m.precision),
            _words.word(m.name).label,
            _words.number(m),
            _between(m),
            _view.asked(m) if m.limit is not None else "",
            m.outcome,
        )
        for m in report.measurements
        if m.name.endswith(SUFFIX)
    )


def _between(m: Measurement) -> str:
    interval, tested = _words.interval(m), _words.bounds(m)
    return interval + (f" (tested {tested})" if tested else "")
