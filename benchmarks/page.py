"""docs/results.md and its pictures, made from the files in benchmarks/results/."""

# Lines of a Markdown table cannot be broken.
# ruff: noqa: E501

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import index, interruptions, planner, upgrades
from benchmarks.acceptance.rules import judge, table
from benchmarks.bulk import page as bulk
from benchmarks.faults import page as faults
from benchmarks.flips import page as flips
from benchmarks.harness import page as harness
from benchmarks.lab import RESULTS, heterogeneous, in_percent, plots, svg
from benchmarks.lqf import page as lqf
from benchmarks.nas import page as nas
from benchmarks.nas.study import STUDIES

PAGE = Path("docs/results.md")

HEAD = """# Results

Every table here is made from raw files in `benchmarks/results/` by `python -m benchmarks.tables`; none is typed. Scores are on classes
(of classifiers: pictures) that no model was trained on. mAP and Recall@1 in percent.
"""


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for size in ("full", "quick"):
        path = RESULTS / f"acceptance-{size}.json"
        if path.exists():
            parts.append(_acceptance(json.loads(path.read_text())))
    for path in sorted(RESULTS.glob("tradeoff-*.json")):
        parts.append(_tradeoff(path.stem.removeprefix("tradeoff-"), json.loads(path.read_text())))
    for path in sorted(RESULTS.glob("rivals-*.json")):
        parts.append(_rivals(path.stem.removeprefix("rivals-"), json.loads(path.read_text())))
    for name in STUDIES:
        for stem, part in (
            ("nas", nas.section),
            ("nas-limits", nas.limits_section),
            ("nas-latency", nas.latency_section),
            ("nas-duration", nas.duration_section),
        ):
            path = RESULTS / f"{stem}-{name}.json"
            if path.exists():
                parts.append(part(name, json.loads(path.read_text())))
    for path in sorted(RESULTS.glob("flips-*.json")):
        # The quick form is about the program, not about the claims.
        if not path.stem.endswith("-quick"):
            parts.append(
                flips.section(path.stem.removeprefix("flips-"), json.loads(path.read_text()))
            )
    for name in upgrades.NAMES:
        path = RESULTS / f"upgrades-{name}.json"
        if path.exists():
            parts.append(upgrades.section(name, json.loads(path.read_text())))
    for name in planner.NAMES:
        path = RESULTS / f"planner-{name}.json"
        if path.exists():
            parts.append(planner.section(name, json.loads(path.read_text())))
    blends = {
        path.stem.removeprefix("blends-"): json.loads(path.read_text())
        for path in sorted(RESULTS.glob("blends-*.json"))
    }
    if blends:
        parts.append(_blends(blends))
    for name, section in (
        ("photographs", _photographs),
        ("int8", _int8),
        ("export-latency", _export_latency),
        ("throughput", _throughput),
        ("bulk", bulk.section),
        ("tuning", _tuning),
        ("faults", faults.section),
        ("fuzz", _fuzz),
        ("harness-faults", harness.faults),
        ("interruptions", interruptions.section),
        ("harness-overhead", harness.overhead),
        ("adbd", harness.adbd),
        ("latency-ab", harness.alarms),
        ("lqf-cifar10", lqf.section),
        ("index", index.section),
    ):
        path = RESULTS / f"{name}.json"
        if path.exists():
            parts.append(section(json.loads(path.read_text())))
    return "\n".join(parts).rstrip() + "\n"


def pictures() -> dict[Path, str]:
    """Path to SVG text of every picture on the page."""
    made = {
        Path(f"docs/img/{stem}-{name}.svg"): draw(json.loads(path.read_text()))
        for stem, draw in (("tradeoff", _curve), ("nas", nas.picture))
        for name in STUDIES
        if (path := RESULTS / f"{stem}-{name}.json").exists()
    }
    path = RESULTS / "index.json"
    if path.exists() and (raw := json.loads(path.read_text()))["engines"]:
        made[Path("docs/img/index.svg")] = index.picture(raw)
    return made


def _why(size: dict[str, Any]) -> str:
    """What a failed rule of a run means; the quick form's failures are answered by the full one."""
    full = RESULTS / "acceptance-full.json"
    if size["name"] == "full" or not full.exists():
        return "A rule that does not hold is a claim that this project does not make."
    held = {o.id: o for o in judge(json.loads(full.read_text())["seeds"])}
    return (
        f"The quick form trains for {size['query_epochs']} epochs on {size['keep']:.0%} of the classes, to end in "
        "minutes; what fails there for want of steps is judged by the full form above, where "
        f"{sum(o.passed for o in held.values())} of {len(held)} hold (A3 there: {held['A3'].seen})."
    )


# -- the claims of the papers -----------------------------------------------------------------------


def _acceptance(raw: dict[str, Any]) -> str:
    size, seeds = raw["size"], raw["seeds"]
    outcomes = judge(seeds)
    held = sum(o.passed for o in outcomes)
    minutes = sum(record["cpu_s"] for s in seeds for record in s["jobs"].values()) / 60
    lines = [
        f"## The papers' claims, {size['name']}: {held} of {len(outcomes)} hold",
        "",
        f"`{raw['command']}`: {raw['data']}, {size['keep']:.0%} of the training classes, gallery model "
        f"`{size['gallery']}` ({size['gallery_epochs']} epochs), query models `mobilenet:width=0.5` "
        f"({size['query_epochs']} epochs, {size['views']} stored views), seeds "
        f"{', '.join(str(s['seed']) for s in seeds)}; {minutes:.0f} CPU minutes of training.",
        "",
        *table(outcomes),
    ]
    if not all(o.passed for o in outcomes):
        lines += ["", _why(size)]
    lines += ["", "Means over seeds behind it, mAP:", ""]
    lines += ["| query model | in its gallery's index | in its own index |", "| --- | --- | --- |"]
    # Other gallery models are there to train query models of their own.
    names = [
        n
        for n, record in seeds[0]["jobs"].items()
        if "heterogeneous" in _only(record, n) and not n.startswith("gallery-")
    ]
    for name in ["gallery", *names]:
        cells = []
        for corner in ("heterogeneous", "own"):
            found = [
                100 * _only(s["jobs"][name], name)[corner]["map"]
                for s in seeds
                if corner in _only(s["jobs"][name], name)
            ]
            cells.append(f"{sum(found) / len(found):.1f}" if found else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    rotated = sum(100 * s["procrustes"]["map"] for s in seeds) / len(seeds)
    lines.append(f"| independent, rotated by Procrustes | {rotated:.1f} | |")
    return "\n".join([*lines, ""])


def _only(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The scores of a job with one bundle; of one with several, nothing."""
    found: dict[str, Any] = record["scores"].get(name, {})
    return found


# -- cost against accuracy --------------------------------------------------------------------------


def _points(raw: dict[str, Any]) -> list[tuple[int, str, dict[str, Any], dict[str, Any]]]:
    """Times fewer MACs, backbone, query job and the job of the same model alone."""
    jobs = raw["jobs"]
    out = []
    for name, record in jobs.items():
        if name.startswith("query-"):
            less = int(name.removeprefix("query-").removesuffix("x"))
            out.append((less, record["job"]["backbone"], record, jobs[f"alone-{less}x"]))
    return sorted(out, key=lambda x: x[0])


def _cell(record: dict[str, Any], corner: str) -> str:
    (scores,) = record["scores"].values()
    if corner not in scores:
        return ""
    return in_percent(scores[corner])


def _tradeoff(name: str, raw: dict[str, Any]) -> str:
    gallery = raw["jobs"]["gallery"]
    macs = gallery["macs"][0]
    paragon = gallery["scores"]["gallery"]["own"]
    lines = [
        f"## Query cost against accuracy: {name}",
        "",
        f"`{raw['command']}`, seed {raw['seed']}: gallery model `{gallery['job']['backbone']}`, "
        f"{macs / 1e6:.1f} MMAC, {gallery['parameters'][0]:,} parameters; method {raw['method']}. "
        f"Recall@1 / mAP. The paragon, the gallery model on both sides, has "
        f"{in_percent(paragon)}.",
        "",
        f"![cost against accuracy](img/tradeoff-{name}.svg)",
        "",
        "| at most | query model | MACs, times fewer | trained, CPU minutes | **in the gallery's index** | "
        "gap to the paragon | distilled, in its own index | trained alone, in its own index |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for less, backbone, record, alone in _points(raw):
        (scores,) = record["scores"].values()
        gap = [100 * (paragon[k] - scores["heterogeneous"][k]) for k in ("recall_at_1", "map")]
        lines.append(
            f"| 1/{less} | `{backbone}` | {macs / record['macs'][0]:.0f} | {record['cpu_s'] / 60:.1f} "
            f"| **{_cell(record, 'heterogeneous')}** | {gap[0]:.1f} / {gap[1]:.1f} "
            f"| {_cell(record, 'own')} | {_cell(alone, 'own')} |"
        )
    jobs = raw["jobs"]
    pushed = {
        n.removeprefix("push-").replace("-", " "): r
        for n, r in jobs.items()
        if n.startswith("push-")
    }
    if pushed:
        base = jobs["ours"]
        lines += [
            "",
            f"What else could be done, one change at a time from {raw['method']} above:",
            "",
            "| change | in the gallery's index | bought, points | CPU time, times as much |",
            "| --- | --- | --- | --- |",
        ]
        (was,) = base["scores"].values()
        for name_of, record in pushed.items():
            (now,) = record["scores"].values()
            bought = " / ".join(
                f"{100 * (now['heterogeneous'][k] - was['heterogeneous'][k]):+.1f}"
                for k in ("recall_at_1", "map")
            )
            lines.append(
                f"| {name_of} | {_cell(record, 'heterogeneous')} | {bought} "
                f"| {record['cpu_s'] / base['cpu_s']:.1f} |"
            )
    return "\n".join([*lines, ""])


def _rivals(name: str, raw: dict[str, Any]) -> str:
    seeds, top = raw["seeds"], raw["gallery"]["scores"]["gallery"]["own"]
    of = seeds["0"]["ours"]["job"]

    def lists(scores: list[dict[str, float]]) -> list[list[float]]:
        return [[100 * s[k] for s in scores] for k in ("recall_at_1", "map")]

    lines = [
        f"## Methods at equal budget: {name}",
        "",
        f"`{raw['command']}`: gallery model `{raw['gallery']['job']['backbone']}` (paragon {in_percent(top)}), "
        f"query model `{of['backbone']}`, {of['epochs']} epochs, {of['views']} stored views, the same "
        "order of pictures. Recall@1 / mAP in the gallery's index, mean over seeds of the query model, lowest and highest; "
        "those far behind have one seed. Names ending in _batch are AIR-Distiller's form, with neighbours from the batch. "
        "Whitened: after `hetero align --map whiten`, whose settings were chosen by validation classes; ours is with it.",
        "",
        "| method | seeds | Recall@1 | mAP | Recall@1, whitened | mAP, whitened |",
        "| --- | --- | --- | --- | --- | --- |",
    ]

    def cell(values: list[float]) -> str:
        mean = sum(values) / len(values)
        if len(values) == 1:
            return f"{mean:.1f}"
        return f"{mean:.2f} ({min(values):.1f} to {max(values):.1f})"

    found = {}
    for job in seeds["0"]:
        records = [seed[job] for seed in seeds.values() if job in seed]
        plain = lists([heterogeneous(r) for r in records])
        found[job] = (plain, lists([r["whitened"] for r in records if "whitened" in r]))
    for job, (plain, turned) in sorted(
        found.items(), key=lambda x: -sum(x[1][0][1]) / len(x[1][0][1])
    ):
        label = f"**{raw['ours']}**" if job == "ours" else job.removeprefix("rival-")
        cells = [cell(v) for v in plain] + [cell(v) if v else "" for v in turned]
        if job == "ours":
            cells[2:] = [f"**{c}**" for c in cells[2:]]
        lines.append(f"| {label} | {len(plain[0])} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _blends(raws: dict[str, dict[str, Any]]) -> str:
    names = list(raws)
    lines = [
        "## Sums of losses, by validation classes",
        "",
        "The setting of the comparison at equal budget above, scored on the validation classes: "
        "what `--method auto` is chosen by. Recall@1 / mAP in the gallery's index, one seed; "
        + ", ".join(f"`{raw['command']}`" for raw in raws.values())
        + ".",
        "",
        f"| method | settings | {' | '.join(names)} |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    for job in raws[names[0]]["jobs"]:
        cells = []
        for raw in raws.values():
            cells.append(in_percent(raw["jobs"][job]["scores"]))
        of = raws[names[0]]["jobs"][job]["job"]
        settings = ", ".join(f"{k} {v:g}" for k, v in of["settings"].items()) or "defaults"
        lines.append(f"| {of['method']} | {settings} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _fuzz(raw: dict[str, Any]) -> str:
    lines = [
        "## Damaged and hostile files",
        "",
        f"`python -m benchmarks.fuzz --count {raw['count']} --seed {raw['seed']}`: {raw['count']:,} mutated manifests and "
        "model headers, each given to what loads it in a process with a memory limit. A fault is a "
        "crash, a hang, a write outside of the case's folder, an error that is not a line of ours, or more "
        f"memory than there is. Faults: **{raw['faults']}**.",
        "",
        "| loader | cases | refused with one line | loaded, the change was harmless | faults |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, counts in raw["by_target"].items():
        refused, loaded = counts.get("refused", 0), counts.get("loaded", 0)
        total = sum(counts.values())
        lines.append(
            f"| {name} | {total:,} | {refused:,} | {loaded:,} | {total - refused - loaded} |"
        )
    return "\n".join([*lines, ""])


def _curve(raw: dict[str, Any]) -> str:
    """SVG of accuracy over cost."""
    macs = raw["jobs"]["gallery"]["macs"][0]
    paragon = raw["jobs"]["gallery"]["scores"]["gallery"]["own"]
    with plots(2) as (figure, axes):
        for axis, (metric, label) in zip(
            axes, (("recall_at_1", "Recall@1, %"), ("map", "mAP, %")), strict=True
        ):
            points = _points(raw)
            cost = [macs / record["macs"][0] for _, _, record, _ in points]
            for at, corner, mark, words in (
                (2, "heterogeneous", "o-", "query model in the gallery's index"),
                (2, "own", "s--", "the same, in its own index"),
                (3, "own", "^:", "trained alone, in its own index"),
            ):
                values = [
                    100 * next(iter(p[at]["scores"].values()))[corner][metric]  # type: ignore[index,union-attr]
                    for p in points
                ]
                axis.plot(cost, values, mark, label=words)
            axis.axhline(100 * paragon[metric], color="black", lw=0.8, label="paragon")
            axis.set_xscale("log")
            axis.set_xticks(cost, [f"1/{c:.0f}" for c in cost])
            axis.minorticks_off()
            axis.set_xlabel("query model's MACs, share of the gallery model's")
            axis.set_ylabel(label)
        axes[0].legend(fontsize=7)
        return svg(figure)


def _photographs(raw: dict[str, Any]) -> str:
    gallery, query, how = raw["gallery"], raw["query"], raw["arguments"]

    def cell(corner: str) -> str:
        return in_percent(raw["scores"][corner])

    return "\n".join(
        [
            "## A pretrained gallery model and photographs without labels",
            "",
            f"`{raw['command']}`, seed {how['seed']}: EfficientNet-Lite0 with ImageNet weights, as it is, at {how['size']} px "
            f"({gallery['macs'] / 1e6:.0f} MMAC), its features on {gallery['dim']} principal axes; query model `{query['backbone']}` "
            f"({query['macs'] / 1e6:.1f} MMAC, {gallery['macs'] / query['macs']:.0f} times fewer), from random weights, {how['method']}, "
            f"{how['epochs']} epochs, {how['views']} stored views, {raw['cpu_s'] / 60:.1f} CPU minutes. Trained on "
            f"{raw['training_pictures']:,} photographs whose labels are never read; scored on {raw['test_pictures']:,} others of the "
            "same ten kinds of garment: unseen photographs, not unseen classes. Recall@1 / mAP.",
            "",
            "| | |",
            "| --- | --- |",
            f"| paragon: the gallery model on both sides | {cell('paragon')} |",
            f"| **query model in the gallery's index** | **{cell('heterogeneous')}** |",
            f"| the query model in its own index | {cell('own')} |",
            f"| raw pixels | {cell('pixels')} |",
            "",
        ]
    )


def _int8(raw: dict[str, Any]) -> str:
    trained = "with int8 epochs" in {r["training"] for r in raw["files"]}
    epochs = (
        f"; with int8 epochs: {raw['qat_epochs']} epochs of quantisation-aware training at the end"
    )
    lines = [
        "## What int8 costs search",
        "",
        f"`{raw['command']}`, RUN being the demo's of seed {raw['seed']}: its query model in int8, held to itself in PyTorch on the "
        f"demo's test classes{epochs if trained else ''}. Mixed: the fewest "
        "layers in float that keep to 0.5 points of Recall@1 and 1 % negative flips on validation classes. Core ML: by the reference "
        "interpreter, not Apple's runtime. 95 % intervals.",
        "",
        "| trained | file | queries | layers in float | Recall@1 | lost to PyTorch, points | negative flips, % | worst cosine | KiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in raw["files"]:
        if "refused" in r:
            lines.append(
                f"| {r['training']} | {r['format']}{', mixed' if r['mixed'] else ''} | refused: {r['refused']} | | | | | | |"
            )
            continue
        lost, flipped = (
            [100 * x for x in r[f"{k}_ci"]]
            for k in ("recall_at_1_lost", "query_negative_flip_rate")
        )
        lines.append(
            f"| {r['training']} | {r['format']}{', mixed' if r['mixed'] else ''} | {r['queries']:,} | {r['layers_in_float']} "
            f"| {100 * r['heterogeneous_recall_at_1']:.1f} | {100 * r['recall_at_1_lost']:.2f} ({lost[0]:.2f} to {lost[1]:.2f}) "
            f"| {100 * r['query_negative_flip_rate']:.2f} ({flipped[0]:.2f} to {flipped[1]:.2f}) | {r['cosine_worst']:.4f} "
            f"| {r['size_bytes'] / 1024:.0f} |"
        )
    return "\n".join([*lines, ""])


def _export_latency(raw: dict[str, Any]) -> str:
    lines = [
        "## Our files beside the stock route's",
        "",
        f"`{raw['command']}`: timm's {raw['model']}, {raw['size_px']} px, {raw['dim']} numbers. Stock: torch.onnx.export and "
        "litert_torch.convert as they come, int8 by quantize_static and litert-quantizer's static recipe without settings; float32 in, "
        "normalised by the app and not timed. Ours: uint8 in, normalising and L2 inside. One picture each in turn, processor time of one "
        f"thread, {raw['rounds']} rounds; ratio: the median of the rounds' ratios, 95 % interval. Operators that move or convert numbers are "
        "counted in the graph that the runtime runs; between layers: not before the first or behind the last one, where our files prepare "
        "the picture and give float32, and with the stock route the app does.",
        "",
        "| file | ours over stock | ms, ours, stock | median cosine to PyTorch, ours, stock | KiB, ours, stock | moving operators between layers, ours, stock | all of them, ours | stock |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    sides = {(f["runtime"], f["precision"], f["route"]): f for f in raw["files"]}
    for r in raw["ratios"]:
        ours, stock = (sides[r["runtime"], r["precision"], route] for route in ("ours", "stock"))
        counts = [
            ", ".join(
                f"{n} {kind}"
                for kind, n in side["moves"].items()
                if n and kind not in ("all", "inside")
            )
            for side in (ours, stock)
        ]
        lines.append(
            f"| {r['runtime']} {r['precision']} | {r['ratio']:.2f} ({r['ci'][0]:.2f} to {r['ci'][1]:.2f}) "
            f"| {ours['ms']:.2f}, {stock['ms']:.2f} | {ours['cosine_median']:.4f}, {stock['cosine_median']:.4f} "
            f"| {ours['size_bytes'] / 1024:.0f}, {stock['size_bytes'] / 1024:.0f} "
            f"| {ours['moves']['inside']}, {stock['moves']['inside']} "
            f"| {counts[0] or 'none'} of {ours['moves']['all']} | {counts[1] or 'none'} of {stock['moves']['all']} |"
        )
    return "\n".join([*lines, ""])


# -- speed and settings -----------------------------------------------------------------------------


def _throughput(raw: dict[str, Any]) -> str:
    lines = [
        "## Training with stored gallery vectors",
        "",
        f"`{raw['command']}`: the same query model, views and loss; the usual loop runs the gallery model for each "
        f"batch. Side by side in one run, median of {len(raw['results'][0]['pairs'])}. The ratio is the gallery model's: the "
        "more it costs over the query model, the more there is to save.",
        "",
        "| gallery model | query model | gallery's MACs over the query's | pictures per second, stored over usual | "
        "a stored view is paid back after |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{r['gallery']}` | `{r['query']}` | {r['gallery_macs'] / r['query_macs']:.0f} "
        f"| {r['ratio_median']:.1f} | {r['view_paid_back_after_epochs']:.1f} epochs |"
        for r in raw["results"]
    ]
    return "\n".join([*lines, ""])


def _tuning(raw: dict[str, Any]) -> str:
    best: dict[str, list[dict[str, Any]]] = {}
    for trial in raw["trials"]:
        best.setdefault(trial["method"], []).append(trial)
    lines = [
        "## The study behind the defaults",
        "",
        f"`{raw['command']}`: {raw['data']}, seed {raw['seed']}, {raw['epochs']} epochs a trial, scored on validation "
        "classes only. Differences below a point are noise.",
        "",
        "| method | trials | mAP with the defaults of then | best mAP | with |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, trials in sorted(best.items(), key=lambda x: -max(t["map"] for t in x[1])):
        top = max(trials, key=lambda t: t["map"])
        settings = ", ".join(
            f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in top["settings"].items()
        )
        lines.append(
            f"| {method} | {len(trials)} | {100 * trials[0]['map']:.1f} | {100 * top['map']:.1f} | {settings} |"
        )
    return "\n".join([*lines, ""])
