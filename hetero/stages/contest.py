"""Stage: one exported file against another on a device, in blocks that alternate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hetero import latency
from hetero._files import write_json
from hetero.check import Place
from hetero.errors import ConfigError
from hetero.history import Entry
from hetero.latency import Comparison, Ratio
from hetero.progress import Reporter
from hetero.report import Limit, Measurement, Outcome, Report
from hetero.stages.benching import settings

if TYPE_CHECKING:
    from hetero.devices import Inventory, Load, RunResult

GROUPS = {"quick": latency.MIN_GROUPS, "normal": 15, "long": 45}
WHY = "slower by less is no regression"


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two.

    Attributes:
        load: What runs.
        name: What people call it.
        precision: As its bundle says.
        sha256: Of the file.
    """

    load: Load
    name: str
    precision: str
    sha256: str


@dataclass(frozen=True)
class ContestOptions:
    """How to compare.

    Attributes:
        device: As `hetero.devices.open_device` takes it.
        length: "quick" (6 groups of four blocks), "normal" (15) or "long" (45).
        margin: Slow-down that is no regression: 0.05 is five per cent.
        seed: Of the order of the blocks.
        threads, accelerator: Of the runtime on the device.
        resume: Take over the blocks that an equal session left.
        command: For the record.
        inventory: Where the device's name is looked up first.
    """

    device: str = "local"
    length: str = "normal"
    margin: float = 0.05
    seed: int = 0
    threads: int = 1
    accelerator: str = ""
    resume: bool = False
    command: str = ""
    inventory: Inventory | None = None

    def __post_init__(self) -> None:
        if self.length not in GROUPS:
            raise ConfigError(f"unknown length {self.length!r}; there are {', '.join(GROUPS)}")
        if not 0 <= self.margin < 1:
            raise ConfigError(f"margin: a part of the latency from 0 to below 1, got {self.margin}")


def contest(
    a: Side, b: Side, output: Path, options: ContestOptions, *, reporter: Reporter
) -> tuple[Report, Comparison]:
    """Is B slower than A by more than the margin: the report, and what it was made of.

    Everything raw goes to `output`: a run folder for each block, and `comparison.json`.

    Raises:
        ConfigError: The two do not run on a worker.
        BundleError, DeviceError, StorageError, Interrupted: See `hetero.devices.run`.
    """
    from hetero import devices

    device = devices.open_device(options.device, options.inventory)
    plan = replace(devices.BLOCK_PLAN, threads=options.threads, accelerator=options.accelerator)
    orders = latency.orders(GROUPS[options.length], options.seed)
    with reporter.bar("compare", sum(map(len, orders))) as bar:
        ran = devices.alternate(
            device,
            {"A": a.load, "B": b.load},
            orders,
            folder=output / "runs",
            plan=plan,
            resume=options.resume,
            on_block=lambda: bar.advance(1, ""),
        )
    results = [r for group in ran.results for r in group]
    found = latency.compare(ran.groups, options.margin, *disturbance(results))
    report = reported(a, b, found, device.name, conditions(results), options)
    write_json(
        output / "comparison.json",
        {"orders": list(orders), "sha256": {"A": a.sha256, "B": b.sha256}, **as_json(found)},
    )
    return report, found


def disturbance(results: Sequence[RunResult]) -> tuple[str, str]:
    """What disturbed these blocks, and why their times mean nothing: each a clause, or ""."""
    restarts = sum(r.conditions.restarts for r in results)
    said = sorted({r.conditions.firmware for r in results if r.conditions.firmware})
    said += [f"workers were restarted {restarts} times"] if restarts else []
    execution = results[0].conditions.execution
    emulated = "" if execution == "native" else f"{execution} device: its times say nothing"
    return "; ".join(said), emulated


def conditions(results: Sequence[RunResult]) -> dict[str, str]:
    """Facts of the first block, with what was seen before the first and after the last one."""
    first, last = results[0].facts, results[-1].facts
    facts = {k: v for k, v in first.items() if not k.endswith("_sha256") and v}
    facts |= {k: v for k, v in last.items() if "_after" in k and v}
    shares = [r.conditions.cpu_share for r in results if r.conditions.cpu_share is not None]
    if shares:
        facts["share of time with a processor"] = f"{sum(shares) / len(shares):.0%}"
    return facts


def outcome(found: Comparison) -> Outcome:
    """What the interval says of the margin; of an invalid run, nothing."""
    if found.grade == "invalid" or found.ratio.low <= 1 + found.margin < found.ratio.high:
        return "inconclusive"
    return "pass" if found.ratio.high <= 1 + found.margin else "fail"


def reported(
    a: Side,
    b: Side,
    found: Comparison,
    device: str,
    facts: Mapping[str, str],
    options: ContestOptions,
) -> Report:
    """The report of a comparison: every number carries the grade of the run."""
    doubt = "" if found.grade == "valid" else f"{found.grade}: {found.reason}"
    at = {
        arm: Place(device, side.load.format, f"{side.precision} ({arm})")
        for arm, side in (("A", a), ("B", b))
    }
    limit = Limit("latency_ratio", at_most=1 + found.margin, by="interval", why=WHY)
    rows: list[Measurement] = []
    for place, quiet, same in zip(at.values(), found.quiet_ns, found.same, strict=True):
        rows.append(place.measured("latency_quiet", quiet / 1e6, "ms", n=len(same.groups)))
        rows.append(_ratio(place, "latency_same_ratio", same))
    ratio = limit.laid_on(replace(_ratio(at["B"], "latency_ratio", found.ratio), doubt=doubt))
    rows += [
        ratio,
        _ratio(at["B"], "latency_p50_ratio", found.median_ratio),
        at["B"].measured("detectable_slowdown", found.detectable),
    ]
    key = f"{device}|{b.load.format}|{at['B'].precision}"
    return Report(
        subject=f"latency of {b.name} (B) against {a.name} (A)",
        measurements=tuple(replace(m, doubt=doubt) for m in rows),
        facts={
            "command": options.command,
            "grade": f"{found.grade}{': ' if found.reason else ''}{found.reason}",
            "A": f"{a.name}, SHA-256 {a.sha256[:12]}",
            "B": f"{b.name}, SHA-256 {b.sha256[:12]}",
            "design": f"{len(found.ratio.groups)} groups of four blocks, ABBA or BAAB by lot, seed "
            f"{options.seed}; the 95 % interval is that of the sign test",
            **facts,
        },
        series={
            f"latency_ratio|{key}": found.ratio.groups,
            f"latency_same_ratio|{key}": found.same[1].groups,
        },
    )


def _ratio(place: Place, name: str, found: Ratio) -> Measurement:
    return replace(
        place.measured(name, found.value, n=len(found.groups)), ci=(found.low, found.high)
    )


def as_json(found: Comparison) -> dict[str, object]:
    """A comparison as plain values; a detectable slow-down without bound is null."""

    def ratio(x: Ratio) -> dict[str, object]:
        return {"value": x.value, "low": x.low, "high": x.high, "groups": list(x.groups)}

    finite = found.detectable < float("inf")
    return {
        "ratio": ratio(found.ratio),
        "median_ratio": ratio(found.median_ratio),
        "same": [ratio(x) for x in found.same],
        "quiet_ns": list(found.quiet_ns),
        "p50_ns": list(found.p50_ns),
        "margin": found.margin,
        "detectable": found.detectable if finite else None,
        "grade": found.grade,
        "reason": found.reason,
    }


def entry(
    b: Side, bundle_sha256: str, found: Comparison, report: Report, options: ContestOptions
) -> Entry:
    """The row of the history for a comparison."""
    return Entry(
        kind="compare",
        subject=report.subject,
        bundle_sha256=bundle_sha256,
        file_sha256=b.sha256,
        format=b.load.format,
        precision=b.precision,
        device=options.device,
        settings=settings(report.facts["threads"], options.accelerator),
        validity=found.grade,
        reason=found.reason,
        quiet_ns=found.quiet_ns[1],
        p50_ns=found.p50_ns[1],
        conditions=dict(report.facts),
        raw={"verdict": report.verdict, **as_json(found)},
    )
