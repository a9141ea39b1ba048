"""What the plots are drawn with: rows, dots, boxes, and SVG that a page can dye.

matplotlib knows no CSS, so everything is drawn in colours that no plot would show, and each is
replaced in the finished SVG by a variable of the page. Text stays text, in the page's font.
"""

from __future__ import annotations

import math
import re
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from hetero.render import _words as words
from hetero.report import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours that no plot shows: each is replaced by the page's variable of that name.
INK, MUTED, GRID, ACCENT, FAIL = "#010101", "#020202", "#030303", "#040404", "#050505"
CARD = "#060606"
_VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "line", ACCENT: "accent", FAIL: "fail", CARD: "card",
}  # fmt: skip

#: For classes and lines: at least 3:1 against the card, light and dark alike.
COLOURS = (
    "#3b7dd8", "#c8641b", "#2c9658", "#d6455d", "#8e6bd1", "#a0734a", "#d1549f", "#1c8f99",
    "#84871d", "#7c8794",
)  # fmt: skip

_DASHES = ("-", "--", ":", "-.")

_WIDTH_INCH = 5.0
_LONGEST = 34
_LONGEST_LINE = 22
_LONGEST_NAME = 60
_BETWEEN_PX = 6.0
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hetero",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "ytick.major.size": 0,
    "text.parse_math": False,
    "axes.unicode_minus": False,
}


def canvas(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """An empty figure with one labelled row per label, the first at the top."""
    from matplotlib.figure import Figure

    shown = [_in_lines(x) for x in labels]
    height = 0.75 + (0.38 if any("\n" in x for x in shown) else 0.3) * len(labels)
    figure = Figure(figsize=(_WIDTH_INCH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_yticks(range(len(labels)), shown)
    axes.tick_params(axis="y", pad=7)  # a dot at 0 reaches beyond the axis
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure, axes


def chart(lines: int) -> tuple[Figure, Axes]:
    """An empty figure for so many lines over time, with room for their names below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCH, 2.4 + 0.2 * lines), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", colors=MUTED)
    return figure, axes


def line_style(at: int) -> tuple[str, str]:
    """Colour and dashes of a chart's line of this number; no two of the first forty are alike."""
    return COLOURS[at % len(COLOURS)], _DASHES[at // len(COLOURS) % len(_DASHES)]


def legend(axes: Axes) -> None:
    """Names of the lines below the chart, one a row."""
    handles, labels = axes.get_legend_handles_labels()
    shown = [x if len(x) <= _LONGEST_NAME else f"{x[: _LONGEST_NAME - 1]}…" for x in labels]
    axes.figure.legend(
        handles, shown, loc="outside lower left", frameon=False, fontsize="small", borderaxespad=0
    )


def _in_lines(label: str) -> str:
    """A row's label, its device on a line of its own where the two are long."""
    if len(label) > _LONGEST_LINE:
        label = label.replace(" on ", "\non ", 1)
    lines = (x if len(x) <= _LONGEST else f"{x[: _LONGEST - 1]}…" for x in label.split("\n"))
    return "\n".join(lines)


def _fit(figure: Figure) -> None:
    """Keep the words of the horizontal axis inside the figure and apart from each other."""
    (axes,) = figure.axes
    figure.draw_without_rendering()
    end = -math.inf
    for tick in sorted(axes.get_xticklabels(), key=lambda x: x.get_window_extent().x0):
        box = tick.get_window_extent()
        if tick.get_text() and box.x0 < end + _BETWEEN_PX:
            tick.set_visible(False)
        elif tick.get_text():
            end = box.x1
    label = axes.xaxis.label
    box = label.get_window_extent()
    if box.x0 < 0 or box.x1 > figure.bbox.x1:
        # Room on the nearer side, twice, is what a centred line may take; letters differ in width.
        middle = (box.x0 + box.x1) / 2
        room = 0.85 * 2 * min(middle, figure.bbox.x1 - middle) / box.width
        label.set_text(textwrap.fill(label.get_text(), max(12, int(room * len(label.get_text())))))


def dot(axes: Axes, m: Measurement, y: float, colour: str) -> None:
    """Draws a ratio in per cent with its interval.

    A failed one is a cross, so that colour is not the only sign.
    """
    if m.ci is not None and all(math.isfinite(end) for end in m.ci):
        axes.plot([100 * end for end in m.ci], [y, y], color=colour, linewidth=2.2, alpha=0.55)
    failed = colour == FAIL
    axes.plot(
        [100 * m.value],
        [y],
        marker="X" if failed else "o",
        markersize=8 if failed else 6.5,
        color=colour,
        markeredgewidth=0,
        clip_on=False,
    )


def limit_mark(axes: Axes, m: Measurement | None, y: float, at: Callable[[float], float]) -> None:
    """Draws each bound of the measurement's limit as an upright stroke in its own row."""
    if m is None or m.limit is None:
        return
    for bound in (m.limit.at_least, m.limit.at_most):
        if bound is not None:
            axes.plot([at(bound)] * 2, [y - 0.38, y + 0.38], color=FAIL, linewidth=1.4)


def boxes(
    axes: Axes, rows: Sequence[Sequence[float]], whiskers: tuple[float, float]
) -> list[dict[str, float]]:
    """The statistics drawn: one box per row."""
    from matplotlib.cbook import boxplot_stats

    stats = [boxplot_stats(list(row), whis=whiskers)[0] for row in rows]
    line = {"color": ACCENT, "linewidth": 1.2}
    axes.bxp(
        stats,
        positions=range(len(rows)),
        orientation="horizontal",
        widths=0.52,
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": ACCENT, "edgecolor": "none", "alpha": 0.35},
        whiskerprops=line,
        capprops=line,
        medianprops={"color": INK, "linewidth": 2.2},
    )
    return stats


def log_axis(axes: Axes, label: Callable[[float, float], str], steps: tuple[int, ...]) -> None:
    """Makes the axis logarithmic, with ticks that leave their labels room."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(label)


_SVG = "{http://www.w3.org/2000/svg}"


def inline_svg(figure: Figure, name: str, described: str) -> str:
    """The figure as an inline `svg` element, with ids of its own and the page's colours."""
    _fit(figure)
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
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
