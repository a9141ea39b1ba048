"""Plots of a report as inline SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from hetero.errors import require
from hetero.render import _view as view
from hetero.render import _words as words
from hetero.report import Measurement, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours that no plot shows: each is replaced by the page's variable of that name.
_INK, _MUTED, _GRID, _ACCENT, _FAIL = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "line", _ACCENT: "accent", _FAIL: "fail"}

_WIDTH_INCH = 5.0
_LONGEST = 34
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hetero",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _INK,
    "ytick.major.size": 0,
    "text.parse_math": False,
    "axes.unicode_minus": False,
}


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
    with require("matplotlib", "report").rc_context(_STYLE):
        made = (_standing(report), _lost(report), _latency(report), _cosine(report))
    return tuple(x for x in made if x is not None)


# --- the four plots ----------------------------------------------------------------------------

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
        rows.append(("Query model in PyTorch", reference, _INK))
    for x in view.files(report):
        m = x.get(name)
        if m is not None:
            rows.append((name_of(*x.place), m, _FAIL if m.outcome == "fail" else _ACCENT))
    if not rows:
        return None
    lower = [(label, view.whole(report, key), _MUTED) for key, label in _BASELINES]
    rows = [(a, b, c) for a, b, c in lower[:1] if b] + rows
    rows += [(a, b, c) for a, b, c in lower[1:] if b]
    rows = [row for row in rows if math.isfinite(row[1].value)]
    if not rows:
        return None
    figure, axes = _canvas([row[0] for row in rows])
    for y, (_, m, colour) in enumerate(rows):
        _limit_mark(axes, m, y, lambda x: 100 * x)
        _dot(axes, m, y, colour)
    axes.set_xlim(0, 100)
    axes.set_xlabel("right image found first, % of queries")
    described = ", ".join(f"{label} {words.number(m)}" for label, m, _ in rows)
    return Plot(
        "Who finds the right image first",
        "Recall@1 in the gallery's index. Bars are 95 % intervals, upright strokes limits; grey "
        "rows are for comparison.",
        _svg(figure, "standing", f"Recall at 1: {described}."),
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
    figure, axes = _canvas([name for name, _ in rows])
    axes.axvline(0, color=_MUTED, linewidth=0.9)
    for y, (_, m) in enumerate(rows):
        _limit_mark(axes, m, y, lambda x: 100 * x)
        _dot(axes, m, y, _FAIL if m.outcome == "fail" else _ACCENT)
    axes.set_xlabel("points of Recall@1 lost to PyTorch; less is better")
    described = ", ".join(f"{name} {words.number(m)}" for name, m in rows)
    return Plot(
        "What the export cost",
        "The same queries, PyTorch less the file. Bars are 95 % intervals, the upright stroke is the "
        "limit.",
        _svg(figure, "lost", f"Points of recall at 1 lost to PyTorch: {described}."),
    )


def _latency(report: Report) -> Plot | None:
    """The distribution of warm latencies of each file."""
    rows = _series(report, "latency_ms", lambda x: x > 0)
    if not rows:
        return None
    figure, axes = _canvas(list(rows))
    boxes = _boxes(axes, list(rows.values()), whiskers=(1, 99))
    if max(x["whishi"] for x in boxes) > 15 * min(x["whislo"] for x in boxes):
        _log_axis(axes, lambda x, _: f"{x:g}", (1, 2, 5))
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel("ms for one image")
    described = ", ".join(f"{a} {b['med']:.3g} ms" for a, b in zip(rows, boxes, strict=True))
    return Plot(
        "How long one image takes",
        "Every warm run. Box: the middle half; thick line: the median; whiskers: 1st to 99th "
        "percentile.",
        _svg(figure, "latency", f"Median latency: {described}."),
    )


#: Distances are drawn no smaller than this: closer is a matter of rounding.
_CLOSEST = 1e-6


def _cosine(report: Report) -> Plot | None:
    """The distribution of cosines to PyTorch, spread out near 1."""
    rows = _series(report, "cosine", lambda x: -1.01 <= x <= 1.01)
    if not rows:
        return None
    figure, axes = _canvas(list(rows))
    away = [[max(_CLOSEST, 1 - x) for x in v] for v in rows.values()]
    _boxes(axes, away, whiskers=(0, 100))
    # 0.999 and 0.9999 are far apart in what they do to a ranking, so the axis is one of 1 - cosine.
    _log_axis(axes, lambda x, _: f"{1 - x:.7f}".rstrip("0").rstrip("."), (1,))
    axes.invert_xaxis()
    name_of = view.namer(report)
    limits = {name_of(*x.place): x.get("cosine_worst") for x in view.files(report)}
    for y, name in enumerate(rows):
        _limit_mark(axes, limits.get(name), y, lambda x: max(_CLOSEST, 1 - x))
    axes.set_xlabel("cosine to PyTorch's vector; right is better")
    described = ", ".join(f"{name} {min(v):.5g}" for name, v in rows.items())
    return Plot(
        "How far the vectors moved",
        "Each image's vector against PyTorch's. Box: the middle half; whiskers: to the worst and "
        "the best; the upright stroke is the limit on the worst.",
        _svg(figure, "cosine", f"Worst cosine: {described}."),
    )


# --- drawing -----------------------------------------------------------------------------------


def _canvas(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """An empty figure with one labelled row per label, the first at the top."""
    from matplotlib.figure import Figure

    height = 0.75 + 0.3 * len(labels)
    figure = Figure(figsize=(_WIDTH_INCH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    shown = [x if len(x) <= _LONGEST else f"{x[: _LONGEST - 1]}…" for x in labels]
    axes.set_yticks(range(len(labels)), shown)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _dot(axes: Axes, m: Measurement, y: float, colour: str) -> None:
    """Draws a ratio in per cent with its interval; a failed one is a cross, so that colour is not the only sign."""
    if m.ci is not None and all(math.isfinite(end) for end in m.ci):
        axes.plot([100 * end for end in m.ci], [y, y], color=colour, linewidth=2.2, alpha=0.55)
    failed = colour == _FAIL
    axes.plot(
        [100 * m.value],
        [y],
        marker="X" if failed else "o",
        markersize=8 if failed else 6.5,
        color=colour,
        markeredgewidth=0,
        clip_on=False,
    )


def _limit_mark(axes: Axes, m: Measurement | None, y: float, at: Callable[[float], float]) -> None:
    """Draws each bound of the measurement's limit as an upright stroke in its own row."""
    if m is None or m.limit is None:
        return
    for bound in (m.limit.at_least, m.limit.at_most):
        if bound is not None:
            axes.plot([at(bound)] * 2, [y - 0.38, y + 0.38], color=_FAIL, linewidth=1.4)


def _boxes(
    axes: Axes, rows: Sequence[Sequence[float]], whiskers: tuple[float, float]
) -> list[dict[str, float]]:
    """The statistics drawn: one box per row."""
    from matplotlib.cbook import boxplot_stats

    stats = [boxplot_stats(list(row), whis=whiskers)[0] for row in rows]
    line = {"color": _ACCENT, "linewidth": 1.2}
    axes.bxp(
        stats,
        positions=range(len(rows)),
        orientation="horizontal",
        widths=0.52,
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": _ACCENT, "edgecolor": "none", "alpha": 0.35},
        whiskerprops=line,
        capprops=line,
        medianprops={"color": _INK, "linewidth": 2.2},
    )
    return stats


def _log_axis(axes: Axes, label: Callable[[float, int], str], steps: tuple[int, ...]) -> None:
    """Makes the axis logarithmic, with ticks that leave their labels room."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(label)


def _series(
    report: Report, kind: str, keep: Callable[[float], bool]
) -> Mapping[str, list[float]]:
    """Name of the file -> its numbers, for the series of one kind that hold any."""
    out: dict[str, list[float]] = {}
    name_of = view.namer(report)
    for key, values in report.series.items():
        name, _, where = key.partition("|")
        device, *rest = where.rsplit("|", 2)
        numbers = [float(x) for x in values if math.isfinite(x) and keep(x)]
        if name == kind and len(rest) == 2 and numbers:
            out[name_of(device, *rest)] = numbers
    return out


_SVG = "{http://www.w3.org/2000/svg}"


def _svg(figure: Figure, name: str, described: str) -> str:
    """The figure as an `svg` element without namespaces, with ids of its own and the page's colours."""
    text = StringIO()
    figure.savefig(
        text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
    )
    root = ET.fromstring(text.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # A style sheet in an inline SVG would apply to the whole page.
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            plain = key.rpartition("}")[2]
            element.set(plain, _adapted(plain, value, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    root.set("role", "img")
    root.set("aria-label", words.one_line(described))
    return ET.tostring(root, encoding="unicode")


def _adapted(key: str, value: str, name: str) -> str:
    """An attribute's value: ids made the plot's own, colours and fonts made the page's."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    value = value.replace("url(#", f"url(#{name}-")
    if key == "style":
        value = re.sub(r"font-family:[^;]*;?\s*", "", value)
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, f"var(--{variable})")
    return value
