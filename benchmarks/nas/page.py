"""The section of docs/results.md on architecture search, and its picture."""

# Lines of a Markdown table cannot be broken.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.lab import heterogeneous, in_percent, plots, svg
from benchmarks.nas.study import BUDGET, NEAR

PREDICTORS = {
    "macs": "multiply-accumulates",
    "r1": "R1, its own index",
    "r2": "R2, the gallery's index",
    "r3": "R3, both",
    "brief": "validation classes, after a short training of its own",
}


def tau(predictor: list[float], final: list[float]) -> tuple[float, float, float]:
    """Kendall's tau with its 95 % interval, architectures resampled in pairs."""
    from scipy.stats import bootstrap, kendalltau

    def of(x: Any, y: Any) -> float:
        return float(kendalltau(x, y).statistic)

    found = bootstrap(
        (np.asarray(predictor), np.asarray(final)),
        of,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return of(predictor, final), float(found.low), float(found.high)


def hetero(record: dict[str, Any], key: str = "map") -> float:
    """A trained job's score in the gallery's index, 0..1."""
    return heterogeneous(record)[key]


def drawn_near(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The drawn architectures of about the budget's cost."""
    most = raw["gallery"]["macs"] / BUDGET
    return [d for d in raw["drawn"] if d["macs"] >= NEAR * most]


def median(raw: dict[str, Any], key: str = "map") -> float:
    """The median score of those, in the gallery's index, 0..1."""
    return float(np.median([hetero(d["job"], key) for d in drawn_near(raw)]))


def taus(raw: dict[str, Any]) -> list[dict[str, tuple[float, float, float]]]:
    """Of each supernet, predictor -> tau with the final heterogeneous mAP."""
    final = [hetero(d["job"]) for d in raw["drawn"]]
    alone = {
        "macs": [float(d["macs"]) for d in raw["drawn"]],
        "brief": [float(b["validation"]["map"]) for b in raw["brief"]],
    }
    return [
        {name: tau({**one, **alone}[name], final) for name in PREDICTORS}
        for one in raw["inherited"]
    ]


def rules(raw: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Claim, rule, what was seen, whether it holds."""
    found = taus(raw)
    value = [{k: v[0] for k, v in one.items()} for one in found]
    middle = median(raw)
    winners = [hetero(f["job"]) for f in raw["found"]]
    hand = {n: hetero(r) for n, r in raw["hand"].items()}
    changes = [
        max(
            abs(a - b)
            for a, b in zip(
                one["recalibration_r2"]["10"], one["recalibration_r2"]["40"], strict=True
            )
        )
        for one in raw["inherited"]
    ]
    none = [
        float(np.mean(one["recalibration_r2"]["10"]) - np.mean(one["recalibration_r2"]["0"]))
        for one in raw["inherited"]
    ]
    percent = lambda xs: " / ".join(f"{100 * x:.1f}" for x in xs)  # noqa: E731
    paragon = raw["gallery"]["scores"]["recall_at_1"]
    long = [paragon - x["tuned"]["heterogeneous"]["recall_at_1"] for x in raw["long"]]
    return [
        (
            "A20: R3 with inherited weights predicts final heterogeneous accuracy",
            "tau(R3) ≥ max(tau(R1), tau(R2)) - 0.1 and > 0.4, every supernet",
            " / ".join(f"{v['r3']:.2f}" for v in value),
            all(v["r3"] >= max(v["r1"], v["r2"]) - 0.1 and v["r3"] > 0.4 for v in value),
        ),
        (
            "A20: what is found beats the median of those drawn at equal cost",
            "mAP, every search",
            f"{percent(winners)} against {100 * middle:.1f}",
            all(w > middle for w in winners),
        ),
        (
            "what is found beats hand-designed networks of equal cost",
            "mAP, every search",
            f"{percent(winners)} against "
            + ", ".join(f"{n} {100 * h:.1f}" for n, h in hand.items()),
            min(winners) > max(hand.values()),
        ),
        (
            "A21: multiply-accumulates rank worse than the rewards R2 and R3",
            "tau, every supernet",
            " / ".join(f"{v['macs']:.2f} < {v['r2']:.2f}, {v['r3']:.2f}" for v in value),
            all(v["macs"] < min(v["r2"], v["r3"]) for v in value),
        ),
        (
            "A22: ten batches re-calibrate as well as forty, and none does not do",
            "R2 changes by less than 1 point; without, it is at least 1 point lower in the mean",
            f"changes by {percent(changes)}; without {percent(none)} lower",
            all(c < 0.01 for c in changes) and all(n > 0.01 for n in none),
        ),
        *(
            [
                (
                    f"{BUDGET}x cheaper queries within 0.3 points of the gallery model",
                    "Recall@1, every search",
                    f"{percent(long)} points below",
                    all(x <= 0.003 for x in long),
                )
            ]
            if long
            else []
        ),
    ]


def summary(name: str, raw: dict[str, Any]) -> str:
    """The study in one row of the README."""
    found = taus(raw)

    def of(key: str) -> str:
        return " / ".join(dict.fromkeys(f"{one[key][0]:.2f}" for one in found))

    cells = [
        " / ".join(f"{100 * hetero(f['job']):.1f}" for f in raw["found"]),
        f"{100 * median(raw):.1f}",
        f"{100 * max(hetero(r) for r in raw['hand'].values()):.1f}",
        *(of(key) for key in ("macs", "r3", "brief")),
        f"`{raw['command']}`",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def section(name: str, raw: dict[str, Any]) -> str:
    """The section of one data set."""
    study, macs = raw["study"], raw["gallery"]["macs"]
    paragon = raw["gallery"]["scores"]
    most = macs / BUDGET
    lines = [
        f"## Architecture search: {name}",
        "",
        f"`{raw['command']}`: space `{study['space']}`, supernets trained for {study['supernet_epochs']} epochs "
        f"({' / '.join(format(i['cpu_s'] / 60, '.0f') for i in raw['inherited'])} CPU minutes), method {raw['method']}; budget "
        f"{most / 1e6:.2f} MMAC, an {BUDGET}th of the gallery model's {macs / 1e6:.1f}. Every architecture on its own: "
        f"{study['epochs']} epochs, {study['views']} views. Found: {len(raw['found'][0]['tried'])} contenders of a search, half of them its "
        f"best and half drawn within the budget, are trained for {study['try_epochs']} epochs; the {len(raw['found'][0]['finalists'])} best of those on "
        "validation classes are trained as all others, and the best of these on validation classes is taken.",
        "",
        "| claim | rule | seen | |",
        "| --- | --- | --- | --- |",
        *(
            f"| {claim} | {rule} | {seen} | {'holds' if held else '**does not**'} |"
            for claim, rule, seen, held in rules(raw)
        ),
        "",
        f"Kendall's tau with the heterogeneous mAP of {len(raw['drawn'])} drawn architectures trained on their own, "
        "95 % intervals by resampling architectures:",
        "",
        "| predictor | " + " | ".join(f"supernet {i['seed']}" for i in raw["inherited"]) + " |",
        "| --- |" + " --- |" * len(raw["inherited"]),
    ]
    found = taus(raw)
    for key, words in PREDICTORS.items():
        cells = [f"{v:.2f} ({low:.2f} to {high:.2f})" for v, low, high in (o[key] for o in found)]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    lines += [
        "",
        "| at that budget | MMAC | Recall@1 / mAP in the gallery's index |",
        "| --- | --- | --- |",
    ]
    rows = [
        (f"found, search {f['seed']}: `{f['job']['job']['backbone']}`", f["job"])
        for f in raw["found"]
    ]
    rows += [(f"by hand: `{r['job']['backbone']}`", r) for r in raw["hand"].values()]
    for words, record in rows:
        lines.append(
            f"| {words} | {record['macs'][0] / 1e6:.2f} | {in_percent(heterogeneous(record))} |"
        )
    middle = [100 * median(raw, k) for k in ("recall_at_1", "map")]
    lines += [
        f"| median of {len(drawn_near(raw))} drawn at {NEAR:g} to 1 of it | | {middle[0]:.1f} / {middle[1]:.1f} |",
        "",
    ]
    if not raw["curve"]:
        return "\n".join(
            [*lines, "Costs further down, and the longest training, have not been run.", ""]
        )
    lines += [
        f"A whole search of this study, supernet to the model trained longest, takes {duration(raw):.1f} CPU hours.",
        "",
        f"The whole range of costs, one supernet; the gallery model itself has {in_percent(paragon)}. "
        f"Tuned: {study['tuned_epochs']} more epochs from inherited weights.",
        "",
        f"![cost against accuracy](img/nas-{name}.svg)",
        "",
        "| MACs, times fewer | inherited weights | tuned | gap of the tuned one | architecture |",
        "| --- | --- | --- | --- | --- |",
    ]
    for point in sorted(raw["curve"].values(), key=lambda p: -p["macs"]):
        cell = [in_percent(point[k]["heterogeneous"]) for k in ("inherited", "tuned")]
        gap = [
            100 * (paragon[k] - point["tuned"]["heterogeneous"][k]) for k in ("recall_at_1", "map")
        ]
        lines.append(
            f"| {macs / point['macs']:.0f} | {cell[0]} | {cell[1]} | {gap[0]:.1f} / {gap[1]:.1f} | `{point['asked']['backbone']}` |"
        )
    for point in raw["long"]:
        lines.append(
            f"| {macs / point['macs']:.0f}, {point['asked']['epochs']} epochs, {point['asked']['views']} views | "
            f"{in_percent(point['inherited']['heterogeneous'])} | {in_percent(point['tuned']['heterogeneous'])} | "
            f"{100 * (paragon['recall_at_1'] - point['tuned']['heterogeneous']['recall_at_1']):.1f} / "
            f"{100 * (paragon['map'] - point['tuned']['heterogeneous']['map']):.1f} | `{point['asked']['backbone']}` |"
        )
    return "\n".join([*lines, ""])


def duration(raw: dict[str, Any]) -> float:
    """CPU hours of one whole search of the study: supernet, search, tries, finalists, the best."""
    costs = [
        inherited["cpu_s"]
        + found["cpu_s"]
        + sum(t["cpu_s"] for t in [*found["tried"], *found["finalists"]])
        + long["cpu_s"]
        for inherited, found, long in zip(raw["inherited"], raw["found"], raw["long"], strict=True)
    ]
    return float(np.mean(costs)) / 3600


def duration_section(name: str, raw: dict[str, Any]) -> str:
    """The section on how long a search takes."""
    lines = [
        f"## How long a search takes: {name}",
        "",
        f"`{raw['command']}`: `{raw['searched']}` took {raw['wall_s'] / 60:.0f} minutes, {raw['cpu_s'] / 60:.0f} of a processor, on "
        f"{raw['machine']['cpus']} cores at a load of {raw['load_before']:.0f} to {raw['load_after']:.0f}. It found `{raw['backbone']}` "
        f"({raw['macs'] / 1e6:.2f} MMAC): {in_percent(raw['scores'])} Recall@1 / mAP in the gallery's index, test classes.",
    ]
    return "\n".join([*lines, ""])


def latency_section(name: str, raw: dict[str, Any]) -> str:
    """The section of a search by measured latency."""
    measured = raw["measured"]
    lines = [
        f"## Architecture search by measured latency: {name}",
        "",
        f"`{raw['command']}`: table of {raw['table']['device']}, {raw['table']['format']} {raw['table']['precision']}, "
        f"{raw['table']['threads']} thread; {raw['table']['held-out error']}. Cap: {raw['cap_ms']:.4f} ms, what the model found by "
        "multiply-accumulates took. Latencies below are of alternating blocks in one run: second over first "
        f"{measured['ratio'][0]:.3f} ({measured['ratio'][1]:.3f} to {measured['ratio'][2]:.3f}), {measured['grade']}"
        f"{': ' + measured['reason'] if measured['reason'] else ''}.",
        "",
        "| found by | MMAC | quiet latency, ms | Recall@1 / mAP in the gallery's index | architecture |",
        "| --- | --- | --- | --- | --- |",
    ]
    for at, (key, words) in enumerate(
        (("by_macs", "multiply-accumulates"), ("by_latency", "measured latency"))
    ):
        record = raw[key]["job"]
        lines.append(
            f"| {words} | {record['macs'][0] / 1e6:.2f} | {measured['quiet_ms'][at]:.4f} | "
            f"{in_percent(heterogeneous(record))} | `{record['job']['backbone']}` |"
        )
    if "seeds" in raw:
        macs, quick = (
            [heterogeneous(found[f"nas-latency-{key}"]) for found in raw["seeds"].values()]
            for key in ("by_macs", "by_latency")
        )
        ahead = [100 * (q["map"] - m["map"]) for m, q in zip(macs, quick, strict=True)]
        lines += [
            "",
            f"Both trained again with {len(ahead)} seeds (`--seeds`): by multiply-accumulates "
            f"{', '.join(map(in_percent, macs))}; by measured latency {', '.join(map(in_percent, quick))}: "
            f"{sum(ahead) / len(ahead):+.2f} points of mAP in the mean, ahead with {sum(a > 0 for a in ahead)} of {len(ahead)}.",
        ]
    return "\n".join([*lines, ""])


def limits_section(name: str, raw: dict[str, Any]) -> str:
    """The section on what limits the cheap models."""
    own, macs = raw["gallery"], raw["gallery"]["macs"]
    lines = [
        f"## What limits the cheap models: {name}",
        "",
        f"`{raw['command']}`: the tuned models of the curve and those trained longest, on the classes they were trained on and "
        "on test classes. The gap is the gallery model's own Recall@1 less theirs in its index: "
        f"it has {100 * own['train']['recall_at_1']:.1f} % on training classes and {100 * own['test']['recall_at_1']:.1f} % on test "
        "classes. Cosine: mean over pictures of the two models' vectors of one picture.",
        "",
        "| MACs, times fewer | gap, training classes | gap, test classes | cosine, training | cosine, test |",
        "| --- | --- | --- | --- | --- |",
    ]
    gaps = []
    for model, found in raw["models"].items():
        gap = [100 * (own[s]["recall_at_1"] - found[s]["recall_at_1"]) for s in ("train", "test")]
        gaps.append(gap)
        words = f"{macs / found['macs']:.0f}" + (", trained longest" if "long" in model else "")
        lines.append(
            f"| {words} | {gap[0]:.1f} | {gap[1]:.1f} | {found['train']['cosine_mean']:.3f} | {found['test']['cosine_mean']:.3f} |"
        )
    fitting = sum(a for a, _ in gaps) / sum(b for _, b in gaps)
    lines += [
        "",
        f"Over all of them the gap on training classes is {100 * fitting:.0f} % of that on test classes: "
        + (
            "most of what is lost is lost in fitting the gallery model at all, by weights and steps, not in meeting new classes."
            if fitting > 0.6
            else "most of what is lost is lost on new classes, for want of pictures; the models fit what they were trained on."
            if fitting < 0.4
            else "fitting the gallery model and meeting new classes cost about as much."
        ),
    ]
    best = max(raw["whitened"], key=lambda n: float(raw["whitened"][n]["recall_at_1"]))
    turned = raw["whitened"][best]
    lines += [
        "",
        f"The best point reached, {macs / raw['models'][best]['macs']:.0f} times fewer MACs, trained longest and whitened "
        f"(`hetero align --map whiten`): Recall@1 / mAP {in_percent(turned)} in the gallery's index, "
        f"{100 * (own['test']['recall_at_1'] - turned['recall_at_1']):.1f} / {100 * (own['test']['map'] - turned['map']):.1f} "
        "points below the gallery model itself.",
    ]
    return "\n".join([*lines, ""])


def picture(raw: dict[str, Any]) -> str:
    """SVG: accuracy over cost, inherited and tuned."""
    macs, paragon = raw["gallery"]["macs"], raw["gallery"]["scores"]
    points = sorted(raw["curve"].values(), key=lambda p: -p["macs"])
    with plots(2) as (figure, axes):
        for axis, (metric, label) in zip(
            axes, (("recall_at_1", "Recall@1, %"), ("map", "mAP, %")), strict=True
        ):
            cost = [macs / p["macs"] for p in points]
            for key, mark in (("tuned", "o-"), ("inherited", "s--")):
                values = [100 * p[key]["heterogeneous"][metric] for p in points]
                axis.plot(cost, values, mark, label=f"{key} weights")
            drawn = [macs / d["macs"] for d in raw["drawn"]]
            axis.plot(
                drawn,
                [100 * hetero(d["job"], metric) for d in raw["drawn"]],
                "x",
                label="drawn, on their own",
            )
            axis.axhline(100 * paragon[metric], color="black", lw=0.8, label="paragon")
            axis.set_xscale("log")
            axis.set_xlabel("times fewer MACs than the gallery model")
            axis.set_ylabel(label)
        axes[0].legend(fontsize=7)
        return svg(figure)
