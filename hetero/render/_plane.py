"""The picture of query and gallery vectors on a plane, and the list of its classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from hetero.errors import require
from hetero.render import _drawing as draw
from hetero.render import _words as words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hetero.plane import Plane, Spot

#: Shorter moves than this part of the picture's width are not drawn.
_SEEN = 0.01


@dataclass(frozen=True)
class ClassRow:
    """A class in the list beside the picture: its number and colour there, and its queries."""

    number: int
    colour: str
    label: str
    queries: int
    before: int
    after: int


@dataclass(frozen=True)
class Drawn:
    """The picture, how much of the variance it shows, and its classes."""

    svg: str
    share: str
    place: str
    rows: tuple[ClassRow, ...]


def drawn(plane: Plane, name: Callable[[str, str, str], str]) -> Drawn:
    """The plane as inline SVG with a list of its classes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with require("matplotlib", "report").rc_context(draw.STYLE):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.0, 4.4), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.set_xticks([])
        axes.set_yticks([])
        for number, label in enumerate(plane.classes):
            _draw_class(axes, plane, label, draw.COLOURS[number % len(draw.COLOURS)])
        axes.set_aspect("equal", adjustable="datalim")
        # Limits are settled before numbers are pushed apart.
        figure.draw_without_rendering()
        _number(axes, plane)
        x, y = (f"{100 * s:.0f} %" for s in plane.shares)
        axes.set_xlabel(f"first component, {x} of the variance")
        axes.set_ylabel(f"second component, {y}", color=draw.MUTED)
        place = name(plane.device, plane.format, plane.precision)
        rows = tuple(_row(plane, at, label) for at, label in enumerate(plane.classes))
        said = ", ".join(f"{r.number} {r.label}: {r.after} of {r.queries} right" for r in rows)
        svg = draw.inline_svg(figure, "plane", f"Map of vectors by {place}. By class: {said}.")
    return Drawn(svg, f"{100 * sum(plane.shares):.0f} %", place, rows)


def _row(plane: Plane, at: int, label: str) -> ClassRow:
    mine = [q for q in plane.queries if q.before.label == label]
    return ClassRow(
        at + 1,
        draw.COLOURS[at % len(draw.COLOURS)],
        words.one_line(label),
        len(mine),
        sum(q.was_right for q in mine),
        sum(q.is_right for q in mine),
    )


def _draw_class(axes: Axes, plane: Plane, label: str, colour: str) -> None:
    spots = [s for s in plane.gallery if s.label == label]
    axes.plot(
        [s.x for s in spots], [s.y for s in spots], "o",
        color=colour, markersize=4, markeredgewidth=0, alpha=0.45,
    )  # fmt: skip
    width = float(np.ptp([s.x for s in plane.gallery])) or 1.0
    for q in (q for q in plane.queries if q.before.label == label):
        xs, ys = [q.before.x, q.after.x], [q.before.y, q.after.y]
        if np.hypot(xs[1] - xs[0], ys[1] - ys[0]) > _SEEN * width:
            axes.plot(xs, ys, color=colour, linewidth=0.9)
        if q.is_right:
            axes.plot(
                xs[1:], ys[1:], "o", markerfacecolor="none", markeredgecolor=colour, markersize=6
            )
        else:
            axes.plot(xs[1:], ys[1:], "X", color=colour, markersize=8, markeredgewidth=0)


def _number(axes: Axes, plane: Plane) -> None:
    """Writes each class's number in the middle of its gallery pictures, no two over each other."""
    from matplotlib import patheffects

    def middle(spots: list[Spot]) -> list[float]:
        return [float(np.mean([s.x for s in spots])), float(np.mean([s.y for s in spots]))]

    numbers = [at for at, c in enumerate(plane.classes) if any(s.label == c for s in plane.gallery)]
    middles = np.array(
        [middle([s for s in plane.gallery if s.label == plane.classes[at]]) for at in numbers]
    )
    pixels = axes.transData.transform(middles)
    places = axes.transData.inverted().transform(apart(pixels, 22.0))
    for at, (x, y) in zip(numbers, places, strict=True):
        axes.text(
            x, y, str(at + 1), ha="center", va="center", weight="bold", fontsize=11,
            path_effects=[patheffects.withStroke(linewidth=3.5, foreground=draw.CARD)],
        )  # fmt: skip


def apart(places: Float[np.ndarray, "n 2"], least: float) -> Float[np.ndarray, "n 2"]:
    """The places, those nearer to each other than `least` pushed apart along their line."""
    out = places.astype(np.float64)
    for _ in range(200):
        moved = False
        for i in range(len(out)):
            for j in range(i):
                line = out[i] - out[j]
                length = float(np.hypot(*line))
                if length < least - 1e-6:
                    # Two in one place are parted sideways.
                    way = line / length if length else np.array([1.0, 0.0])
                    out[i] += way * (least - length) / 2
                    out[j] -= way * (least - length) / 2
                    moved = True
        if not moved:
            break
    return out
