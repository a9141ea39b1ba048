"""The section of docs/results.md on linearised fine-tuning, and its rules."""

# Lines of a Markdown table cannot be broken.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

from benchmarks.acceptance.rules import Outcome, table

#: "Within 2 points", and what counts as few and as many samples a class.
WITHIN, FEW, MANY = 2.0, 20, 100

WAYS = {"probe": "linear probe", "fine_tuning": "fine-tuning", "lqf": "LQF"}


def means(raw: dict[str, Any]) -> dict[int, dict[str, list[float]]]:
    """Samples a class -> way -> test accuracy of each seed, in percent."""
    out: dict[int, dict[str, list[float]]] = {}
    for cell in raw["cells"]:
        at = out.setdefault(cell["samples"], {way: [] for way in WAYS})
        for way in WAYS:
            at[way].append(100 * cell[way]["test"])
    return out


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def fastest(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Optimiser -> its run that reached the loss in the fewest steps, or one that did not."""
    out: dict[str, dict[str, Any]] = {}
    for run in raw["races"]:
        best = out.get(run["optimizer"])
        if best is None or (run["steps"] or 10**9) < (best["steps"] or 10**9):
            out[run["optimizer"]] = run
    return out


def rules(raw: dict[str, Any]) -> list[Outcome]:
    """The outcome of every claim, in order."""
    found = {n: {way: _mean(v) for way, v in at.items()} for n, at in means(raw).items()}
    few = {n: at for n, at in found.items() if n <= FEW}
    many = {n: at for n, at in found.items() if n >= MANY}

    def leads(cells: dict[int, dict[str, float]], other: str) -> str:
        said = ", ".join(f"{at['lqf'] - at[other]:+.1f} at {n}" for n, at in cells.items())
        return f"{said} points" if said else "not run"

    two, exact, fast = raw["two_seeds"], raw["exactness"], fastest(raw)
    kfac, adam = fast["kfac"]["steps"], fast["adam"]["steps"]
    given = len(fast["adam"]["objective"])
    quicker = kfac is not None and 3 * kfac <= (given if adam is None else adam)
    return [
        Outcome(
            "A23",
            "LQF does what fine-tuning does with many samples",
            f"at least {MANY} samples a class: mean accuracy at most {WITHIN:g} points below",
            leads(many, "fine_tuning"),
            bool(many) and all(at["lqf"] >= at["fine_tuning"] - WITHIN for at in many.values()),
        ),
        Outcome(
            "A23",
            "and better with few",
            f"at most {FEW} samples a class: mean accuracy not below",
            leads(few, "fine_tuning"),
            bool(few) and all(at["lqf"] >= at["fine_tuning"] for at in few.values()),
        ),
        Outcome(
            "A23",
            "and better than a linear probe",
            "every number of samples: mean accuracy above",
            leads(found, "probe"),
            all(at["lqf"] > at["probe"] for at in found.values()),
        ),
        Outcome(
            "A24",
            "one optimum, whatever the seed",
            "two changes drawn at random, trained: outputs on test pictures within 0.01",
            f"{two['apart']:.2g} after {two['steps']} steps, {two['apart_before']:.1f} before; outputs up to {two['largest_output']:.1f}",
            two["apart"] < 1e-2,
        ),
        Outcome(
            "A25",
            "the two-stream graph is the Jacobian-vector product",
            "float32 outputs within 0.0001; relative to finite differences in float64 below 0.001",
            f"{exact['graph_to_jvp']:.2g}; {exact['finite_differences']:.2g}",
            exact["graph_to_jvp"] < 1e-4 and exact["finite_differences"] < 1e-3,
        ),
        Outcome(
            "A26",
            "K-FAC needs at most a third of Adam's steps",
            f"to {100 * raw['left']:g} % of the way from the start to the optimum, each at its best rate",
            f"K-FAC {kfac or 'never'}, Adam {adam or f'not in {given}'}",
            quicker,
        ),
    ]


def section(raw: dict[str, Any]) -> str:
    """The section's text."""
    size, outcomes = raw["size"], rules(raw)
    seeds = size["seeds"]
    lines = [
        f"## Linearised fine-tuning, {raw['name']}: {sum(o.passed for o in outcomes)} of {len(outcomes)} hold",
        "",
        f"`{raw['command']}`: `{size['backbone']}` at {size['size_px']} px, trained on {', '.join(raw['classes']['known'])} "
        f"({size['pretrain']:,} pictures a class, {size['epochs']} epochs) and adapted to {', '.join(raw['classes']['new'])}. Probe, "
        "fine-tuning (new head or the probe's) and LQF (from the probe's head) change the same weights, batch norms stay; settings by "
        f"{raw['validation']} validation pictures a class, scores on {size['tested']:,} test pictures a class. Seeds "
        f"{', '.join(map(str, seeds))} of pre-training, samples and order; {raw['cpu_s'] / 60:.0f} CPU minutes.",
        "",
        *table(outcomes),
        "",
        "Accuracy in percent, mean over seeds, lowest and highest:",
        "",
        f"| samples a class | {' | '.join(WAYS.values())} | LQF over fine-tuning | over the probe |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for count, at in means(raw).items():
        cells = [f"{_mean(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in at.values()]
        over = [_mean(at["lqf"]) - _mean(at[other]) for other in ("fine_tuning", "probe")]
        lines.append(f"| {count} | {' | '.join(cells)} | {over[0]:+.1f} | {over[1]:+.1f} |")
    lines += [
        "",
        f"To the optimum, all {size['racing']} samples a class in every step, rates on a cosine over {size['race']} steps:",
        "",
        "| optimiser | rate | steps to within "
        f"{100 * raw['left']:g} % | CPU seconds, preparation included |",
        "| --- | --- | --- | --- |",
        *(
            f"| {r['optimizer']} | {r['lr']:g} | {r['steps'] or 'not reached'} | {r['cpu_s']:.0f} |"
            for r in raw["races"]
        ),
    ]
    return "\n".join([*lines, ""])
