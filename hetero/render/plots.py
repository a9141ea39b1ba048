"""The plots of a report, as inline SVG that takes colours and font from the page around it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO

import numpy as np

from hetero.errors import ConfigError, require
from hetero.history import Entry
from hetero.render import _drawing as draw
from hetero.render import _view as view
from hetero.render import _words as words
from hetero.report import Measurement, Report


@dataclass(frozen=True)
class Plot:
    """A plot and its words.

    Attributes:
        title: What it shows.
        caption: How to read it.
        svg: An `svg` element for use inside HTML.
    """

    title: str
    caption: str
    svg: str


def plots(report: Report) -> tuple[Plot, ...]:
    """The plots for which the report holds data.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    # Colours and fonts are settings of the whole process; they are put back when this is done.
    with require("matplotlib", "report").rc_context(draw.STYLE):
        made = (
            _standing(report),
            _lost(report),
            _ratio(report),
            _latency(report),
            _sustained(report),
            _cosine(report),
        )
    return tuple(x for x in made if x is not None)


def over_time(runs: Sequence[Entry]) -> str:
    """Quiet and median latency of each file on each device, run after run, as an SVG document.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: There is no run.
    """
    if not runs:
        raise ConfigError("no run to draw")
    plt = require("matplotlib", "report")
    from matplotlib.figure import Figure

    lines: dict[str, list[Entry]] = {}
    for run in runs:
        lines.setdefault(f"{run.subject} on {run.device} ({run.settings})", []).append(run)
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hetero"}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.xaxis_date()
        for number, (name, line) in enumerate(lines.items()):
            colour = f"C{number}"
            # matplotlib counts in days since 1970.
            when = [datetime.fromisoformat(x.at).timestamp() / 86_400 for x in line]
            quiet = [x.quiet_ns / 1e6 for x in line]
            axes.plot(when, quiet, color=colour, label=words.one_line(name))
            axes.plot(when, [x.p50_ns / 1e6 for x in line], color=colour, linestyle=":")
            for at, value, run in zip(when, quiet, line, strict=True):
                clean = run.validity in ("clean", "valid")
                axes.plot([at], [value], "o", color=colour, fillstyle="full" if clean else "none")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("ms; solid: quiet latency, dotted: median, hollow: not clean")
        axes.tick_params(axis="x", rotation=30)
        axes.legend(fontsize="small")
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


# --- the plots of a report ---------------------------------------------------------------------

_BASELINES = (
    ("paragon_recall_at_1", "Gallery model itself"),
    ("independent_recall_at_1", "Independent query model"),
    ("pixels_recall_at_1", "Raw pixels"),
    ("control_recall_at_1", "Negative control"),
    ("chance_recall_at_1", "Chance"),
)


def _standing(report: Report) -> Plot | None:
    """Recall@1 of every file, between what is above it and what is below."""
    name, name_of = "heterogeneous_recall_at_1", view.namer(report)
    rows: list[tuple[str, Measurement, str]] = []
    reference = view.whole(report, name)
    if reference is not None:
        rows.append(("Query model in PyTorch", reference, draw.INK))
    for x in view.files(report):
        m = x.get(name)
        if m is not None:
            rows.append((name_of(*x.place), m, draw.FAIL if m.outcome == "fail" else draw.ACCENT))
    if not rows:
        return None
    lower = [(label, view.whole(report, key), draw.MUTED) for key, label in _BASELINES]
    rows = [(a, b, c) for a, b, c in lower[:1] if b] + rows
    rows += [(a, b, c) for a, b, c in lower[1:] if b]
    rows = [row for row in rows if math.isfinite(row[1].value)]
    if not rows:
        return None
    figure, axes = draw.canvas([row[0] for row in rows])
    for y, (_, m, colour) in enumerate(rows):
        draw.limit_mark(axes, m, y, lambda x: 100 * x)
        draw.dot(axes, m, y, colour)
    axes.set_xlim(0, 100)
    axes.set_xlabel("right image found first, % of queries")
    described = ", ".join(f"{label} {words.number(m)}" for label, m, _ in rows)
    return Plot(
        "Who finds the right image first",
        "Recall@1 in the gallery's index. Bars are 95 % intervals, upright strokes limits; grey "
        "rows are for comparison.",
        draw.inline_svg(figure, "standing", f"Recall at 1: {described}."),
    )


def _lost(report: Report) -> Plot | None:
    """Points lost to PyTorch by each file, with the limit."""
    name_of = view.namer(report)
    rows = [
        (name_of(m.device, m.format, m.precision), m)
        for m in view.finite(report, "recall_at_1_lost")
    ]
    if not rows:
        return None
    figure, axes = draw.canvas([name for name, _ in rows])
    axes.axvline(0, color=draw.MUTED, linewidth=0.9)
    for y, (_, m) in enumerate(rows):
        draw.limit_mark(axes, m, y, lambda x: 100 * x)
        draw.dot(axes, m, y, draw.FAIL if m.outcome == "fail" else draw.ACCENT)
    axes.set_xlabel("points of Recall@1 lost to PyTorch; less is better")
    described = ", ".join(f"{name} {words.number(m)}" for name, m in rows)
    return Plot(
        "What the export cost",
        "The same queries, PyTorch less the file. Bars are 95 % intervals, the upright stroke is "
        "the limit.",
        draw.inline_svg(figure, "lost", f"Points of recall at 1 lost to PyTorch: {described}."),
    )


def _ratio(report: Report) -> Plot | None:
    """Every group's ratio of a comparison, and of a file with itself."""
    pairs = [
        (label, numbers)
        for kind, label in (("latency_ratio", "B over A"), ("latency_same_ratio", "B over B"))
        for numbers in _series(report, kind).values()
    ]
    if not pairs:
        return None
    figure, axes = draw.canvas([label for label, _ in pairs])
    axes.axvline(1, color=draw.MUTED, linewidth=0.9)
    found = [view.finite(report, name) for name in ("latency_ratio", "latency_same_ratio")]
    for y, ((_, numbers), made) in enumerate(zip(pairs, found, strict=True)):
        draw.limit_mark(axes, made[-1], y, lambda x: x)
        axes.plot(numbers, [y] * len(numbers), "o", color=draw.ACCENT, markersize=4, alpha=0.5)
        if made[-1].ci is not None:
            axes.plot(made[-1].ci, [y + 0.25] * 2, color=draw.INK, linewidth=2.2)
    axes.set_xlabel("quiet latency over quiet latency, each dot a group of blocks")
    doubt = found[0][-1].doubt
    described = ", ".join(f"{label} {np.median(numbers):.3f}" for label, numbers in pairs)
    return Plot(
        "Is B slower than A" + (f" ({words.one_line(doubt)})" if doubt else ""),
        "Dots: groups of alternating blocks; the bar below: the 95 % interval of their median; the "
        "upright stroke: the margin. The second row is the same file against itself.",
        draw.inline_svg(figure, "ratio", f"Ratios of latency: {described}."),
    )


def _latency(report: Report) -> Plot | None:
    """The distribution of warm latencies of each file."""
    rows = _series(report, "latency_ms")
    if not rows:
        return None
    figure, axes = draw.canvas(list(rows))
    drawn = draw.boxes(axes, list(rows.values()), whiskers=(1, 99))
    if max(x["whishi"] for x in drawn) > 15 * min(x["whislo"] for x in drawn) > 0:
        draw.log_axis(axes, lambda x, _: f"{x:g}", (1, 2, 5))
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel("ms for one image")
    described = ", ".join(f"{a} {b['med']:.3g} ms" for a, b in zip(rows, drawn, strict=True))
    return Plot(
        "How long one image takes",
        "Every warm run. Box: the middle half; thick line: the median; whiskers: 1st to 99th "
        "percentile.",
        draw.inline_svg(figure, "latency", f"Median latency: {described}."),
    )


def _sustained(report: Report) -> Plot | None:
    """Latency over the minutes of a sustained run, each file a line."""
    times, lines = _series(report, "sustained_s"), _series(report, "sustained_ms")
    rows = {k: (times[k], v) for k, v in lines.items() if len(times.get(k, ())) == len(v) > 1}
    if not rows:
        return None
    figure, axes = draw.chart(len(rows))
    for at, (name, (seconds, values)) in enumerate(rows.items()):
        colour, dashes = draw.line_style(at)
        minutes = [x / 60 for x in seconds]
        axes.plot(minutes, values, dashes, color=colour, marker=".", markersize=4, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes of uninterrupted work")
    axes.set_ylabel("ms, median", color=draw.MUTED)
    draw.legend(axes)
    described = ", ".join(f"{k} {v[0]:.3g} to {v[-1]:.3g} ms" for k, (_, v) in rows.items())
    return Plot(
        "How latency holds up",
        "The median of each short stretch of a sustained run. A line that climbs is a device that "
        "grows warm and slows down.",
        draw.inline_svg(figure, "sustained", f"Latency at first and at last: {described}."),
    )


#: Distances are drawn no smaller than this: closer is a matter of rounding.
_CLOSEST = 1e-6


def _cosine(report: Report) -> Plot | None:
    """The distribution of cosines to PyTorch, spread out near 1."""
    rows = _series(report, "cosine")
    if not rows:
        return None
    figure, axes = draw.canvas(list(rows))
    away = [[max(_CLOSEST, 1 - x) for x in v] for v in rows.values()]
    draw.boxes(axes, away, whiskers=(0, 100))
    # 0.999 and 0.9999 are far apart in what they do to a ranking, so the axis is one of 1 - cosine.
    draw.log_axis(axes, lambda x, _: f"{1 - x:.7f}".rstrip("0").rstrip("."), (1,))
    axes.invert_xaxis()
    name_of = view.namer(report)
    limits = {name_of(*x.place): x.get("cosine_worst") for x in view.files(report)}
    for y, name in enumerate(rows):
        draw.limit_mark(axes, limits.get(name), y, lambda x: max(_CLOSEST, 1 - x))
    axes.set_xlabel("cosine to PyTorch's vector; right is better")
    described = ", ".join(f"{name} {min(v):.5g}" for name, v in rows.items())
    return Plot(
        "How far the vectors moved",
        "Each image's vector against PyTorch's. Box: the middle half; whiskers: to the worst and "
        "the best; the upright stroke is the limit on the worst.",
        draw.inline_svg(figure, "cosine", f"Worst cosine: {described}."),
    )


def _series(report: Report, kind: str) -> Mapping[str, list[float]]:
    """Name of the file -> its finite numbers, for the series of one kind that hold any."""
    out: dict[str, list[float]] = {}
    name_of = view.namer(report)
    for key, values in report.series.items():
        name, _, where = key.partition("|")
        device, *rest = where.rsplit("|", 2)
        numbers = [float(x) for x in values if math.isfinite(x)]
        if name == kind and len(rest) == 2 and numbers:
            out[name_of(device, *rest)] = numbers
    return out
