"""The tables and the picture of docs/verdict.md, made from the result files and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLOURS = {"pass": "#1a7f37", "fail": "#cf222e", "inconclusive": "#9a6700"}
GATES = ("median cosine >= 0.99", "worst cosine >= 0.99", "largest difference <= 0.01")


def _percent(found: dict[str, Any]) -> str:
    low, high = found["ci"]
    return f"{100 * found['rate']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def rates(raw: dict[str, Any]) -> list[str]:
    """False passes and false fails of the fixed test, and of what else is in use."""
    trials = raw["at_margin"][0]["trials"]
    out = [
        f"{trials:,} simulated trials a row, the true loss exactly at the margin, so that each "
        "pass and each fail is false. In percent; in brackets the Clopper-Pearson interval, 95 %.",
        "",
        "| classes | margin | outcomes | **false passes** | false fails | false passes of a "
        "bootstrap of queries | of a bootstrap of classes | of a t interval by class |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for x in raw["at_margin"]:
        others = " | ".join(
            f"{100 * x['pass'][name]['rate']:.1f}"
            for name in ("bootstrap of queries", "bootstrap of classes", "t")
        )
        out.append(
            f"| {x['classes']} | {100 * x['margin']:g} points | {x['truth']} "
            f"| **{_percent(x['pass']['hetero'])}** | {_percent(x['fail'])} | {others} |"
        )
    out += [
        "",
        "Where the truth is clear, how often it is decided, in percent:",
        "",
        "| classes | margin | truth | passes | fails |",
        "| ---: | ---: | --- | ---: | ---: |",
    ]
    for x in raw["clear"]:
        out.append(
            f"| {x['classes']} | {100 * x['margin']:g} points | loss {100 * x['loss']:g} points, "
            f"{x['truth']} | {_percent(x['pass']['hetero'])} | {_percent(x['fail'])} |"
        )
    return out


def sequence(raw: dict[str, Any]) -> list[str]:
    """Error rates under optional stopping, and what it asks."""
    rows = raw["sequential"]
    margin = rows[0]["margin"]
    out = [
        f"{rows[0]['trials']:,} trials a row, {rows[0]['classes']} classes, margin "
        f"{100 * margin:g} points, looked at after every class; in percent.",
        "",
        "| truth | passes | fails | stopped early | queries, mean | of | times fewer |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for x in rows:
        at = " (the margin)" if x["loss"] == margin else ""
        out.append(
            f"| loss {100 * x['loss']:g} points{at}, {x['truth']} | {_percent(x['pass'])} "
            f"| {_percent(x['fail'])} | {100 * x['stopped_early']['rate']:.1f} "
            f"| {x['queries_mean']:,.0f} | {x['queries_fixed']:,.0f} | {x['times_fewer']:.1f} |"
        )
    reached = [x for x in rows if x["loss"] != margin and x["times_fewer"] >= 3]
    clear = [x for x in rows if x["loss"] != margin]
    out += [
        "",
        f"At least three times fewer queries in {len(reached)} of {len(clear)} clear cases. Not "
        "reached: "
        + (
            "; ".join(
                f"loss {100 * x['loss']:g} points, {x['truth']} ({x['times_fewer']:.1f} times)"
                for x in clear
                if x["times_fewer"] < 3
            )
            or "none"
        )
        + ".",
    ]
    return out


def faults(raw: dict[str, Any]) -> list[str]:
    """Every fault by every judge."""
    half = raw["faults"][0]["verdict_queries"]
    out = [
        f"Query model {raw['query_model']}, gallery model {raw['gallery_model']}, {raw['data']}; "
        f"{raw['queries']:,} queries of {raw['classes']} classes give the truth, {half:,} queries "
        f"of half of the classes the verdict; margin {100 * raw['margin']:g} points. "
        "Recall@1 without a fault: "
        f"{100 * raw['recall_at_1']:.1f} %. A gate or verdict in **bold** is wrong about the "
        "truth.",
        "",
        "| fault | cosine, worst | median | truth: lost, points | "
        + " | ".join(f"{g}" for g in GATES)
        + " | hetero | hetero, sequential (queries) |",
        "| --- | ---: | ---: | ---: | --- | --- | --- | --- | --- |",
    ]
    for x in raw["faults"]:
        right = "fail" if x["harmful"] else "pass"
        gates = ("pass" if x["gates"][g] else "fail" for g in GATES)
        verdicts = [*gates, x["verdict"]]
        shown = [v if v in (right, "inconclusive") else f"**{v}**" for v in verdicts]
        later = x["sequential"]
        later = later if later in (right, "inconclusive") else f"**{later}**"
        out.append(
            f"| {x['fault']} | {x['cosine_worst']:.4f} | {x['cosine_median']:.4f} "
            f"| {100 * x['lost']:.2f} | {' | '.join(shown)} "
            f"| {later} ({x['sequential_queries']:,}) |"
        )
    return [*out, "", *_score(raw)]


def _score(raw: dict[str, Any]) -> list[str]:
    def wrong(said: list[tuple[str, bool]]) -> str:
        passed = sum(v == "pass" and harmful for v, harmful in said)
        failed = sum(v == "fail" and not harmful for v, harmful in said)
        return f"{passed} | {failed} | {sum(v == 'inconclusive' for v, _ in said)}"

    harmful = [x["harmful"] for x in raw["faults"]]
    out = [
        "| judge | harmful, passed | harmless, failed | inconclusive |",
        "| --- | --: | --: | --: |",
    ]
    for gate in GATES:
        said = ["pass" if x["gates"][gate] else "fail" for x in raw["faults"]]
        out.append(f"| {gate} | {wrong(list(zip(said, harmful, strict=True)))} |")
    for name, key in (("hetero", "verdict"), ("hetero, sequential", "sequential")):
        said = [x[key] for x in raw["faults"]]
        out.append(f"| {name} | {wrong(list(zip(said, harmful, strict=True)))} |")
    count = len(harmful)
    return [f"Of {count} faults, {sum(harmful)} lose the margin or more:", "", *out]


def picture(simulation: dict[str, Any], found: dict[str, Any], path: Path) -> None:
    """Left the faults with their bounds, right the false passes of four tests."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "hetero", "svg.fonttype": "none", "font.size": 9}
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 5.2), width_ratios=(1.15, 1), layout="constrained"
    )
    rows = found["faults"][::-1]
    for y, x in enumerate(rows):
        left.plot(
            [100 * x["verdict_low"], 100 * x["verdict_high"]],
            [y, y],
            color=COLOURS[x["verdict"]],
            lw=4,
            solid_capstyle="butt",
        )
        left.plot(100 * x["lost"], y, "k|", ms=11, mew=1.5)
    names = [x["fault"] if len(x["fault"]) < 48 else x["fault"][:46] + "…" for x in rows]
    left.set_yticks(range(len(rows)), names)
    left.axvline(100 * found["margin"], color="black", ls="--", lw=1)
    left.set_xlabel("Recall@1 lost, points; black: the truth, dashed: the margin")
    for outcome, colour in COLOURS.items():
        left.plot([], [], color=colour, lw=4, label=outcome)
    left.legend(loc="lower right", frameon=False)
    left.set_title("A verdict is where the bounds lie", loc="left")

    cells = simulation["at_margin"]
    tests = (
        ("bootstrap of queries", "#bc4c00", "s"),
        ("bootstrap of classes", "#8250df", "^"),
        ("t", "#57606a", "v"),
        ("hetero", "#0969da", "o"),
    )
    for name, colour, mark in tests:
        rates_ = [100 * x["pass"][name]["rate"] for x in cells]
        right.plot(rates_, range(len(cells)), mark, color=colour, label=name, ms=6)
    right.axvline(100 * simulation["alpha"], color="black", ls="--", lw=1)
    right.set_yticks(
        range(len(cells)),
        [f"{x['classes']} classes, {100 * x['margin']:g} pts: {x['truth']}" for x in cells],
        fontsize=7,
    )
    right.invert_yaxis()
    right.set_xlabel("false passes, %; dashed: alpha")
    right.legend(loc="upper right", bbox_to_anchor=(1, 0.62), frameon=False)
    right.set_title("False passes at the margin", loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    # A trailing blank in an SVG is a diff for nothing.
    path.write_text("\n".join(x.rstrip() for x in path.read_text().splitlines()) + "\n")


def write(results: Path, docs: Path, *, check: bool) -> None:
    """Rewrite the tables between the markers and the picture, or compare the tables."""
    simulation = json.loads((results / "verdict-simulation.json").read_text())
    found = json.loads((results / "verdict-faults.json").read_text())
    page = docs / "verdict.md"
    text = page.read_text()
    made = text
    for name, lines in (
        ("rates", rates(simulation)),
        ("sequence", sequence(simulation)),
        ("faults", faults(found)),
    ):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, rest = made.split(begin)
        body = "\n".join(lines)
        made = f"{head}{begin}\n\n{body}\n\n{end}{rest.split(end)[1]}"
    if check:
        if made != text:
            raise SystemExit(
                f"{page} does not show what {results} holds; "
                "run python -m benchmarks.verdict --page"
            )
        return
    page.write_text(made)
    picture(simulation, found, docs / "verdict.svg")
