"""A plot of approximate search: recall over time, a line for each query model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hetero.errors import require
from hetero.render.upgrades import STYLE, text_of


def curves(*found: Mapping[str, Any]) -> str:
    """Recall over a query's time, as an SVG document.

    Args:
        found: What `hetero.stages.indexing.Recall.to_json` gives; of several indexes of one
            gallery, to stand in one plot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with require("matplotlib", "report").rc_context(STYLE):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.5, 4.5), layout="constrained")
        axes = figure.add_subplot()
        line = 0
        for one in found:
            engine = one["index"].partition(":")[0]
            for model in one["models"]:
                points = model["points"]
                x = [p["ms"] for p in points]
                y = [100 * p["recall"] for p in points]
                low, high = (
                    [
                        abs(100 * ((p["ci"] or [p["recall"]] * 2)[side] - p["recall"]))
                        for p in points
                    ]
                    for side in (0, 1)
                )
                axes.errorbar(
                    x,
                    y,
                    yerr=[low, high],
                    color=f"C{line}",
                    marker=".",
                    capsize=2,
                    label=f"{engine}, {model['made_by']}",
                )
                for at, p in enumerate(points):
                    if one["effort"]:
                        where = (p["ms"], 100 * p["recall"])
                        text = f"{one['effort']} {p['effort']}" if not at else f"{p['effort']}"
                        axes.annotate(
                            text, where, textcoords="offset points", xytext=(4, -9), fontsize=6
                        )
                axes.axvline(model["exact_ms"], color=f"C{line}", linestyle=":", linewidth=0.8)
                line += 1
        axes.set_xscale("log")
        axes.set_xlabel("ms for one query of a batch; dotted: exact search")
        axes.set_ylabel(f"of the {found[0]['k']} nearest rows, found, %")
        axes.legend(fontsize=7, loc="lower right")
        return text_of(figure)
