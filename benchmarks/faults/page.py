"""The section of docs/results.md on diagnoses, made from benchmarks/results/faults.json."""

# Lines of a Markdown table cannot be broken.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

from hetero.diagnose import STAGES


def section(raw: dict[str, Any]) -> str:
    """Heading, what was done, a table by stage, and every miss."""
    low, high = (100 * v for v in raw["ci"])
    alarms = f"**{raw['false_alarms']}** of {raw['n_controls']}"
    lines = [
        "## Does a diagnosis name the right stage?",
        "",
        f"`{raw['command']}`: {raw['distinct_faults']} seeded faults in an app, a runtime or a model file, each in "
        f"{' and '.join(f'`{b}`' for b in raw['models'].values())}, and {raw['n_controls']} controls in which nothing is wrong. The seed was "
        "not looked at before: hypotheses were written on other seeds, though on the same kinds of fault. Right is only the true stage named first.",
        "",
        f"Right stage first: **{raw['right_stage_first']} of {raw['n_faults']}**, {100 * raw['share']:.1f} % "
        f"(95 % interval {low:.1f} to {high:.1f}). False alarms: {alarms}, at most "
        f"{100 * raw['false_alarms_ci'][1]:.1f} % by the same interval; {raw['controls_inconclusive']} controls inconclusive. "
        f"Of the faults that are not right, {raw['wrong_stage']} are given another stage, {raw['inconclusive']} are inconclusive "
        f"and {raw['called_healthy']} pass for healthy. Faults of which no hypothesis does the very same: "
        f"{raw['without_a_hypothesis'][0]} of {raw['without_a_hypothesis'][1]}.",
        "",
        f"| stage | {' | '.join(raw['models'])} | both |",
        f"| --- |{' ---: |' * (len(raw['models']) + 1)}",
    ]
    for stage in (s for s in STAGES if s in raw["by_stage"]):
        cells = [_share(raw, stage, model) for model in raw["models"]]
        good, count = raw["by_stage"][stage]
        lines.append(f"| {stage} | {' | '.join(cells)} | {good} of {count} |")
    wrong = [r for r in raw["faults"] if r["named"] != r["true"]]
    if wrong:
        lines += [
            "",
            "What was not right:",
            "",
            "| model | true stage | fault | file | said |",
            "| --- | --- | --- | --- | --- |",
        ]
    for r in wrong:
        said = r["named"] or r["verdict"]
        lines.append(
            f"| {r['model']} | {r['true']} | {r['fault']} | {r['file'] or 'PyTorch'} | {said} |"
        )
    return "\n".join([*lines, ""])


def _share(raw: dict[str, Any], stage: str, model: str) -> str:
    rows = [r for r in raw["faults"] if (r["true"], r["model"]) == (stage, model)]
    return f"{sum(r['named'] == r['true'] for r in rows)} of {len(rows)}"
