"""Stage: exported files under a benchmark program of the user's own, its figures as a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hetero.bundle import Bundle
from hetero.check import Place
from hetero.errors import ConfigError
from hetero.progress import Reporter
from hetero.report import Measurement, NotRun, Report, load_limits
from hetero.stages.running import CheckOptions, chosen, plan_for, publish

if TYPE_CHECKING:
    from hetero.devices import Figures, Tool, ToolResult

#: Figures in nanoseconds, and what they are called in a report.
_TIMES = {
    "load_ns": "load_time",
    "first_ns": "first_latency",
    "mean_ns": "latency_mean",
    "min_ns": "latency_min",
    "p50_ns": "latency_p50",
    "p90_ns": "latency_p90",
    "p95_ns": "latency_p95",
    "p99_ns": "latency_p99",
}


def bench_by_tool(
    bundle: Bundle, output: Path, options: CheckOptions, tool: Tool, *, reporter: Reporter
) -> Report:
    """The report of what a benchmark program says of a bundle's exported files on devices.

    Everything it prints goes to `output`. Nothing of it is in the history: it gives no single runs.

    Args:
        bundle: With exported files.
        output: For everything raw and the report.
        options: Devices, files, length, threads and limits.
        tool: The program, and its arguments.
        reporter: Shows progress.

    Raises:
        ConfigError: None of the files is of a format that the program reads.
        DeviceError: The program failed, or the way to a device was cut.
    """
    from hetero import devices

    files = tuple(
        f for f in chosen(bundle, options) if f.kind in (tool.formats or devices.USUAL_FORMATS)
    )
    if not files:
        raise ConfigError(
            f"{bundle.root}: {tool.name} reads {', '.join(tool.formats)}, and none of the chosen "
            "files is that; widen --format and --precision"
        )
    opened = [devices.open_device(x, options.inventory) for x in options.devices]
    plan = plan_for(options.thorough, options.threads)
    measured: list[Measurement] = []
    unread: list[NotRun] = []
    facts = {
        "command": options.command,
        "model": f"{bundle.manifest.model.backbone}, weights {bundle.digest[:12]}",
        "figures": f"as {tool.name} gives them: inputs of its own making, no vectors compared, "
        "nobody watched clock and heat",
    }
    with reporter.bar("measure", len(files) * len(opened)) as bar:
        for item in files:
            for device in opened:
                path = bundle.path(item)
                done = devices.run_tool(device, tool, path, folder=output / "tools", plan=plan)
                place = Place(f"{device.name}, {tool.name}", item.kind, item.precision)
                rows = said(place, done.figures)
                measured += [place.measured("size", item.size_bytes / 2**20, "MiB"), *rows]
                facts[f"{item.kind} {item.precision} on {device.name}"] = _told(done, output)
                if not rows:
                    unread.append(
                        NotRun(
                            item.kind,
                            item.precision,
                            place.device,
                            f"what {tool.name} printed is in no form that is known here; all of "
                            f"it is in {_kept(done, output)}",
                        )
                    )
                bar.advance(1, f"{item.kind} {item.precision}")
    report = Report(
        subject=f"latency of {bundle.manifest.model.backbone}, by {tool.name}",
        measurements=tuple(measured),
        facts=facts,
        not_run=tuple(unread),
    )
    judged = report.judged_by(load_limits(options.limits) if options.limits else ())
    publish(judged, output)
    return judged


def said(place: Place, figures: Figures | None) -> list[Measurement]:
    """The figures as measurements; none of what the program did not say."""
    if figures is None:
        return []
    rows = [
        place.measured(
            name,
            getattr(figures, field) / 1e6,
            "ms",
            n=1 if field in ("load_ns", "first_ns") else figures.runs,
        )
        for field, name in _TIMES.items()
        if getattr(figures, field) is not None
    ]
    if figures.peak_memory_bytes is not None:
        rows.append(place.measured("peak_memory", figures.peak_memory_bytes / 2**20, "MiB"))
    return rows


def _told(done: ToolResult, output: Path) -> str:
    import shlex

    return f"ran {shlex.join(done.command)}; printed {_kept(done, output)}"


def _kept(done: ToolResult, output: Path) -> str:
    """Where the text is, relative to the report."""
    return (done.folder / "output.txt").relative_to(output).as_posix()
