"""Plots of upgrades, as SVG documents: the frontier of a sweep, and refresh curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from hetero.errors import require
from hetero.refresh import Curve

#: Under which a figure gives the same text every time.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "hetero"}
#: Metric -> label of an axis.
NAMES = {"recall_at_1": "Recall@1, %", "recall_at_5": "Recall@5, %", "map": "mAP, %"}


def frontier(
    points: Sequence[tuple[str, float, float]],
    best: Sequence[str],
    chosen: str,
    before: float,
    free: float | None,
) -> str:
    """Searching the old gallery against searching the new one, a dot for each trained model.

    Args:
        points: Name, mAP in the old index, mAP in its own, 0..1.
        best: Names of those that no other one beats in both.
        chosen: The one that was taken.
        before: mAP of the old model in its own index: right of it the criterion is met.
        free: mAP of the unconstrained model in its own index, if there is one.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with require("matplotlib", "report").rc_context(STYLE):
        figure, axes = _canvas()
        where = {name: (100 * x, 100 * y) for name, x, y in points}
        line = sorted(where[name] for name in best)
        axes.plot([x for x, _ in line], [y for _, y in line], color="C0", linewidth=1)
        for name, (x, y) in where.items():
            mark = "*" if name == chosen else "o"
            axes.plot(
                [x],
                [y],
                mark,
                color="C0" if name in best else "C7",
                markersize=6 + 6 * (mark == "*"),
            )
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 4), fontsize=7)
        axes.axvline(100 * before, color="C3", linestyle=":", label="old model, old index")
        if free is not None:
            axes.axhline(100 * free, color="C2", linestyle=":", label="unconstrained, own index")
        axes.set_xlabel("new model in the old index, mAP, %")
        axes.set_ylabel("new model in the new index, mAP, %")
        axes.legend(fontsize=7)
        return text_of(figure)


def refresh(curves: Mapping[str, Curve], before: float, metric: str) -> str:
    """A metric over the re-embedded share of an index.

    Args:
        curves: By name.
        before: The old system's score.
        metric: Its name in reports.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with require("matplotlib", "report").rc_context(STYLE):
        figure, axes = _canvas()
        for name, curve in curves.items():
            dashed = "--" if "corrected" in name else ":" if name == "control" else "-"
            axes.plot(
                [100 * x for x in curve.shares],
                [100 * y for y in curve.scores],
                dashed,
                marker=".",
                label=f"{name}, area {100 * curve.area:.1f}",
            )
        axes.axhline(100 * before, color="black", linewidth=0.8, label="old model, old index")
        axes.set_xlabel("share of the index that is re-embedded, %")
        axes.set_ylabel(NAMES[metric])
        axes.legend(fontsize=7)
        return text_of(figure)


def _canvas() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    return figure, figure.add_subplot()


def text_of(figure: Any) -> str:
    """The SVG document of a figure, the same every time."""
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
