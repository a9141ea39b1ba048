"""A run held to an earlier one: what became worse, by how much, and how sure that is.

Where both runs kept the outcome of each query (`hetero.outcomes`), the same queries are paired and
judged as everywhere else: see `hetero.verdict`. Otherwise the stored values are compared, with an
interval made of both runs' intervals; it takes the runs as independent, though they asked the same
queries, and is therefore wider than need be.

Paper: G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures: a general
approach", Statistics in Medicine 27(10), 2008: the interval of a difference from two intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hetero.check import Place
from hetero.errors import BundleError, ConfigError
from hetero.metrics import mean
from hetero.outcomes import FILE, Outcomes
from hetero.report import Limit, Measurement, Report, load_limits
from hetero.verdict import paired

#: What a name of a measurement of this module ends with.
SUFFIX = "_baseline"

#: Lost to the baseline: which measurement of a report, and which outcome of each query.
LOST = {
    "recall_at_1_lost_to_baseline": ("heterogeneous_recall_at_1", "recall"),
    "map_lost_to_baseline": ("heterogeneous_map", "average_precision"),
}

FLIPS = "query_negative_flip_rate_to_baseline"

#: The baseline's number is divided by; nothing is known of how much two sessions differ.
OVER = {"latency_p50_over_baseline": "latency_p50", "size_over_baseline": "size"}

#: Said of a limit that could not be judged query by query.
UNPAIRED = "single queries were not kept by both runs, so their intervals are compared"

Rows = Mapping[str, Measurement]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        report: What it measured.
        outcomes: What each query got, where that was kept.
        name: For messages and facts.
    """

    report: Report
    outcomes: Outcomes | None
    name: str = ""


def load(path: Path) -> Run:
    """The run of a report folder, or of a report.json.

    Raises:
        BundleError: There is none, it is torn, or the outcomes beside it are another run's.
    """
    file = path / "report.json" if path.is_dir() else path
    report, beside = Report.load(file), file.parent / FILE
    if not beside.exists():
        return Run(report, None, str(path))
    outcomes = Outcomes.load(beside)
    for place, rows in _places(report).items():
        values = outcomes.scores.get((place, "recall"))
        told = rows["heterogeneous_recall_at_1"].value
        if values is None or not math.isclose(np.nanmean(values), told, abs_tol=1e-9):
            raise BundleError(
                f"{beside}: of another run than {file}; remove it, or copy the two together"
            )
    return Run(report, outcomes, str(path))


def must_match(before: Run, facts: Mapping[str, str]) -> None:
    """Nothing, if the earlier run asked the same question: data, gallery space, role of the bundle.

    Args:
        before: The earlier run.
        facts: Of this run's report.

    Raises:
        ConfigError: It asked another one; both are named.
    """
    theirs = before.report.facts
    if "space" not in theirs or "data" not in theirs:
        raise ConfigError(
            f"baseline {before.name}: not a report of `hetero check`, it names no space and data"
        )
    if "space" not in facts or "data" not in facts:
        raise ConfigError("a baseline is for reports of `hetero check`; this one is another")
    for what, got, expected in (
        ("data", _data(theirs), _data(facts)),
        ("gallery space", theirs["space"], facts["space"]),
        ("bundle role", _role(theirs), _role(facts)),
    ):
        if got != expected:
            raise ConfigError(
                f"baseline {before.name}: its {what} is {got}, here it is {expected}; numbers of "
                "the two mean different things, so check again to make a new baseline"
            )


def _data(facts: Mapping[str, str]) -> str:
    """What tells one data set from another: the checksum, not where it lies."""
    return facts["data"].rpartition(", ")[2]


def _role(facts: Mapping[str, str]) -> str:
    # Reports did not always say it.
    same = facts.get("query model", "") == facts.get("gallery model", " ")
    return facts.get("role") or ("gallery" if same else "query")


def compared(now: Run, before: Run) -> tuple[Measurement, ...]:
    """What this run lost to the earlier one, file by file, unjudged.

    What the earlier run measured and this one did not is there too, as an invalid number: a gate
    that compares less than it was asked must not look green. What is new has nothing to be compared
    with and is left out.

    Raises:
        ConfigError: The earlier run searched with nothing.
    """
    mine, theirs = _places(now.report), _places(before.report)
    if not theirs:
        raise ConfigError(f"baseline {before.name}: nothing in it was searched with")
    out: list[Measurement] = []
    for place, rows in mine.items():
        if place in theirs:
            out += _file(place, (now, rows), (before, theirs[place]))
    why = "the baseline has this file on this device, this run has not"
    for place in theirs:
        if place not in mine:
            out += [_unknown(place, why, name) for name in (*LOST, FLIPS, *OVER)]
    return tuple(out)


def note(now: Run, before: Run) -> str:
    """What a reader must know of the comparison, in a clause."""
    both = now.outcomes is not None and before.outcomes is not None
    new = [x for x in _places(now.report) if x not in _places(before.report)]
    clauses = [
        before.name,
        f"verdict {before.report.verdict}",
        "query by query" if both else UNPAIRED,
        *([f"{len(new)} files are new and have nothing to be compared with"] if new else []),
    ]
    return ", ".join(clauses)


def apart(
    measurements: Iterable[Measurement],
) -> tuple[tuple[Measurement, ...], tuple[Measurement, ...]]:
    """The measurements that need no baseline, and those that do."""
    rows = tuple(measurements)
    need = tuple(m for m in rows if m.name.endswith(SUFFIX))
    return tuple(m for m in rows if not m.name.endswith(SUFFIX)), need


def limits_apart(limits: Iterable[Limit]) -> tuple[tuple[Limit, ...], tuple[Limit, ...]]:
    """The limits that need no baseline, and those that do.

    Where none does, the built-in ones do: a baseline without a limit would be no gate.
    """
    rows = tuple(limits)
    need = tuple(x for x in rows if x.measurement.endswith(SUFFIX))
    built_in = tuple(x for x in load_limits() if x.measurement.endswith(SUFFIX))
    return tuple(x for x in rows if not x.measurement.endswith(SUFFIX)), need or built_in


def judged(rows: Iterable[Measurement], limits: Sequence[Limit]) -> tuple[Measurement, ...]:
    """What was lost, held to limits; a margin on what is not paired is held to the interval.

    Raises:
        ConfigError: A limit names nothing that was compared.
    """
    rows = tuple(rows)
    for limit in limits:
        if not any(limit.covers(m) for m in rows):
            raise ConfigError(
                f"limit on {limit.measurement!r} (device {limit.device}, format {limit.format}, "
                f"precision {limit.precision}) names nothing that was compared with the baseline"
            )
    out: list[Measurement] = []
    for m in rows:
        laid = [_fitting(x, m) for x in limits if x.covers(m)]
        # What is unknown is worth a line only where somebody wants to know it.
        out += [x.laid_on(m) for x in laid] or [m] * math.isfinite(m.value)
    return tuple(out)


def _fitting(limit: Limit, m: Measurement) -> Limit:
    if limit.by != "noninferiority" or m.evidence is not None or not math.isfinite(m.value):
        return limit
    why = f"{limit.why} ({UNPAIRED})" if limit.why else UNPAIRED
    return replace(limit, by="interval", why=why)


def _places(report: Report) -> dict[Place, dict[str, Measurement]]:
    """By place, what was measured of each file that searched, and of the model in PyTorch."""
    out: dict[Place, dict[str, Measurement]] = {}
    for m in report.measurements:
        out.setdefault(Place(m.device, m.format, m.precision), {}).setdefault(m.name, m)
    return {at: rows for at, rows in out.items() if "heterogeneous_recall_at_1" in rows}


def _unknown(place: Place, why: str, name: str) -> Measurement:
    return replace(place.measured(name, math.nan), doubt=f"invalid: {why}")


def _file(place: Place, now: tuple[Run, Rows], before: tuple[Run, Rows]) -> list[Measurement]:
    (run, mine), (earlier, theirs) = now, before
    stopped = [
        who
        for who, rows in (("this run", mine), ("the baseline", theirs))
        if _stopped(rows.get("recall_at_1_lost"))
    ]
    if stopped:
        why = f"{stopped[0]} stopped asking when its own limits were certain"
        unknown = [_unknown(place, why, name) for name in (*LOST, FLIPS)]
        return [*unknown, *_over(place, mine, theirs)]
    out = _paired(place, run.outcomes, earlier.outcomes)
    if not out:
        out = [
            _difference(place, name, mine[of], theirs[of])
            for name, (of, _) in LOST.items()
            if of in mine and of in theirs
        ]
    return [*out, *_over(place, mine, theirs)]


def _stopped(m: Measurement | None) -> bool:
    return m is not None and m.evidence is not None and m.evidence.design == "sequence"


def _paired(place: Place, now: Outcomes | None, before: Outcomes | None) -> list[Measurement]:
    """Losses of the queries that both were asked; none where there is no such query."""
    if now is None or before is None:
        return []
    where = {name: row for row, name in enumerate(before.ids)}
    both = [row for row, name in enumerate(now.ids) if name in where]
    there = [where[now.ids[row]] for row in both]
    out: list[Measurement] = []
    for name, (_, metric) in LOST.items():
        if (place, metric) not in now.scores or (place, metric) not in before.scores:
            return []
        old, new = before.scores[place, metric][there], now.scores[place, metric][both]
        asked = np.flatnonzero(~np.isnan(old) & ~np.isnan(new))
        if not len(asked):
            return []
        labels = [now.labels[both[row]] for row in asked]
        lost = (old - new)[asked]
        out.append(replace(place.scored(name, mean(lost, labels)), evidence=paired(lost, labels)))
        if metric == "recall":
            worse = (lost > 0).astype(np.float64)
            flips = place.scored(FLIPS, mean(worse, labels))
            out.append(replace(flips, evidence=paired(worse, labels)))
    return out


def _difference(place: Place, name: str, now: Measurement, before: Measurement) -> Measurement:
    """What was lost between two stored values, with an interval made of both intervals."""
    lost = before.value - now.value
    counts = [m.n for m in (now, before) if m.n is not None]
    found = place.measured(name, lost, n=min(counts, default=None))
    if now.ci is None or before.ci is None or not math.isfinite(lost):
        return replace(found, doubt="invalid: a stored value has no interval")
    low = math.hypot(before.value - before.ci[0], now.ci[1] - now.value)
    high = math.hypot(before.ci[1] - before.value, now.value - now.ci[0])
    return replace(found, ci=(lost - low, lost + high))


def _over(place: Place, now: Rows, before: Rows) -> list[Measurement]:
    """Latency and size as multiples of the baseline's, doubted if either is."""
    out = []
    for name, of in OVER.items():
        if of in now and of in before and before[of].value > 0:
            doubt = now[of].doubt or before[of].doubt
            ratio = place.measured(name, now[of].value / before[of].value)
            out.append(replace(ratio, doubt=doubt))
    return out
