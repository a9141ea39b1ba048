"""The report: measurements that were held to limits, and the verdict.

`report.json` has a published schema, `hetero/report.schema.json`, and this module writes nothing
that breaks it. Measurements and limits are in `hetero.measurement`, rendering for people in
`hetero.render`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hetero import _schemas
from hetero._files import write_json
from hetero.cells import Cell, Obstacle, Pair
from hetero.cells import NotRun as NotRun  # here, too, because a report is made of them
from hetero.errors import BundleError, ConfigError
from hetero.measurement import Limit as Limit
from hetero.measurement import Measurement as Measurement
from hetero.measurement import Outcome as Outcome
from hetero.measurement import finite
from hetero.measurement import load_limits as load_limits

SCHEMA = "hetero.report/2"

#: The device of a file that not its own runtime executed but a reference interpreter.
REFERENCE = "reference"

Verdict = Literal["pass", "fail", "inconclusive"]

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 1, "inconclusive": 3}

_OBSTACLE_CODES: dict[Obstacle, int] = {"refused": 2, "device": 4}


@dataclass(frozen=True)
class Report:
    """What was measured on what, and the verdict.

    Attributes:
        subject: What the report is about, in a few words.
        measurements: In the order to show them.
        facts: Hashes, versions, machine, command, seed. A fact called "protocol" is a phrase
            that may follow "of queries", as in "on unseen classes".
        not_run: What was not executed here.
        examples: Worst queries for people to look at, each ``{"query": {"id", "label", "image"},
            "device", "format", "precision", "before": [found, …], "after": [found, …]}`` with
            found ``{"id", "label", "image", "similarity", "right"}``, best first: before is
            PyTorch, after is the file; image is a data URI.
        series: Named number lists for plots: "latency_ms|DEVICE|FORMAT|PRECISION" and "cosine|…".
        cells: By what each file was executed.
        agreement: How far devices agree with each other and with PyTorch.
    """

    subject: str
    measurements: tuple[Measurement, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    not_run: tuple[NotRun, ...] = ()
    examples: tuple[Mapping[str, Any], ...] = ()
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    agreement: tuple[Pair, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Fail if any limit failed, else inconclusive if any was or something is missing.

        Missing is what was asked of a device and did not come, and everything where nothing was
        judged.
        """
        outcomes = {m.outcome for m in self.measurements}
        if "fail" in outcomes:
            return "fail"
        if "inconclusive" in outcomes or "pass" not in outcomes:
            return "inconclusive"
        return "inconclusive" if self.missing else "pass"

    @property
    def missing(self) -> tuple[NotRun, ...]:
        """What was asked of a device and did not come."""
        return tuple(x for x in self.not_run if x.obstacle != "unavailable")

    @property
    def exit_code(self) -> int:
        """What a command ends with.

        1 wherever a limit failed: what is missing cannot mend that. Else 2 where a runtime refused
        a file, 4 where a device failed or stayed away, and otherwise by the verdict.
        """
        if self.verdict == "fail":
            return EXIT_CODES["fail"]
        codes = [_OBSTACLE_CODES[x.obstacle] for x in self.missing]
        return min(codes, default=EXIT_CODES[self.verdict])

    def judged_by(self, limits: Iterable[Limit]) -> Report:
        """This report with each measurement held to the limits laid on it.

        Where two limits cover one measurement the row is repeated, one outcome each, so none
        hides another.

        Raises:
            ConfigError: A limit names something that was not measured.
        """
        limits = tuple(limits)
        unused = [x for x in limits if not any(x.covers(m) for m in self.measurements)]
        if unused:
            u = unused[0]
            raise ConfigError(
                f"limit on {u.measurement!r} (device {u.device}, format {u.format}, precision "
                f"{u.precision}) names nothing that was measured; remove it or measure it"
            )
        judged: list[Measurement] = []
        for m in self.measurements:
            laid = [x for x in limits if x.covers(m)]
            judged += [x.laid_on(m) for x in laid] or [m]
        return replace(self, measurements=tuple(judged))

    def get(
        self, name: str, device: str = "*", format: str = "*", precision: str = "*"
    ) -> Measurement:
        """The first measurement of this name whose place matches the patterns.

        Raises:
            KeyError: There is none.
        """
        probe = Limit(name, at_least=0, device=device, format=format, precision=precision)
        for m in self.measurements:
            if probe.covers(m):
                return m
        raise KeyError(f"no measurement {name} for {device} {format} {precision}")

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "verdict": self.verdict,
            "measurements": [m.to_json() for m in self.measurements],
            "facts": dict(self.facts),
            "not_run": [vars(x) for x in self.not_run],
            "examples": [dict(x) for x in self.examples],
            "series": {k: [finite(x) for x in v] for k, v in self.series.items()},
            "cells": [x.to_json() for x in self.cells],
            "agreement": [x.to_json() for x in self.agreement],
        }

    def __repr__(self) -> str:
        """One line; the measurements are not in it."""
        return f"Report({self.subject}: {self.verdict}, {len(self.measurements)} measurements)"

    def _repr_html_(self) -> str:
        """The verdict and the table of files, for notebooks."""
        from hetero.render import notebook

        return notebook.report(self)

    def save(self, path: Path) -> None:
        """Write `report.json`, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Report:
        """The report that `save` wrote.

        Raises:
            BundleError: Missing, torn or from a newer version.
        """
        try:
            raw = json.loads(path.read_bytes())
            raw = _schemas.up_to_date(
                path,
                raw,
                SCHEMA,
                [_with_cells],
                again="measure again",
                writer=raw["facts"].get("hetero", "") if "facts" in raw else "",
            )
            return cls(
                raw["subject"],
                tuple(Measurement.from_json(m) for m in raw["measurements"]),
                raw["facts"],
                tuple(NotRun(**x) for x in raw["not_run"]),
                tuple(raw["examples"]),
                {
                    name: tuple(math.nan if x is None else float(x) for x in values)
                    for name, values in raw["series"].items()
                },
                tuple(Cell.from_json(x) for x in raw["cells"]),
                tuple(Pair.from_json(x) for x in raw["agreement"]),
            )
        except BundleError:
            raise
        except (*_schemas.UNREADABLE, ConfigError) as error:
            raise BundleError(f"{path}: cannot be read as a report ({error!r})") from error


def _with_cells(first: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had neither cells nor agreement, and nothing of why something was not run."""
    return {"cells": [], "agreement": [], **first}
