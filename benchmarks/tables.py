"""The tables of README.md, docs/results.md and docs/scale.md, made from benchmarks/results/ alone.

python -m benchmarks.tables            rewrite them
python -m benchmarks.tables --check    fail if they do not show what the files hold
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import page, scale
from benchmarks.lab import in_percent
from benchmarks.nas import page as nas
from benchmarks.nas.study import BUDGET, STUDIES

RESULTS = Path("benchmarks/results")
README = Path("README.md")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def _find(
    report: dict[str, Any], name: str, format: str = "", precision: str = ""
) -> dict[str, Any]:
    for m in report["measurements"]:
        if (m["name"], m["format"], m["precision"]) == (name, format, precision):
            found: dict[str, Any] = m
            return found
    raise SystemExit(
        f"benchmarks/results: a demo report lacks {name} {format} {precision}; run it again"
    )


def _percent(m: dict[str, Any]) -> str:
    text = f"{100 * m['value']:.1f}"
    return text if m["ci"] is None else f"{text} ({100 * m['ci'][0]:.1f} to {100 * m['ci'][1]:.1f})"


def _demo(path: Path) -> list[str]:
    report = json.loads(path.read_text())
    facts = report["facts"]
    n = _find(report, "heterogeneous_recall_at_1", "pytorch", "fp32")["n"]
    torch = ("pytorch", "fp32")
    less = _find(report, "compute_ratio")["value"]
    rows = [
        ("gallery model searches its own index (paragon)", "paragon", ("", "")),
        ("**query model searches the gallery's index**", "heterogeneous", torch),
        ("query model searches its own index", "homogeneous_query", torch),
        ("the same small model trained alone, its own index", "independent", ("", "")),
        ("the same, in the gallery's index (negative control)", "control", ("", "")),
    ]
    out = [
        f"`hetero demo --seed {report['seed']}`: {facts['gallery size']} (gallery) against "
        f"{facts['query size']} (query), {less:.0f}x less compute; "
        f"{facts['test classes']} classes never trained on, {n:,} queries, the query's own design "
        f"family hidden from the gallery. Verdict: **{report['verdict']}**, "
        f"{report['seconds']} s on "
        "2 shared cores. In percent, with 95 % intervals resampled by class.",
        "",
        "| search | Recall@1 | mAP |",
        "| --- | --- | --- |",
    ]
    for label, corner, place in rows:
        recall, found = (_find(report, f"{corner}_{x}", *place) for x in ("recall_at_1", "map"))
        out.append(f"| {label} | {_percent(recall)} | {_percent(found)} |")
    pixels, chance = (_find(report, f"{x}_recall_at_1") for x in ("pixels", "chance"))
    out += [f"| raw pixels | {_percent(pixels)} | |", f"| chance | {_percent(chance)} | |", ""]
    out += [
        "| query model file | executed by | Recall@1 | lost to PyTorch, points | negative flips, % "
        "| worst cosine | MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for m in report["measurements"]:
        if m["name"] != "size":
            continue
        place = (m["format"], m["precision"])
        recall, lost, flips, cosine = (
            _find(report, x, *place)
            for x in (
                "heterogeneous_recall_at_1",
                "recall_at_1_lost",
                "query_negative_flip_rate",
                "cosine_worst",
            )
        )
        n = recall["n"]
        by = {"local": "its runtime", "reference": f"reference interpreter, {n} queries"}.get(
            m["device"], m["device"]
        )
        out.append(
            f"| {m['format']} {m['precision']} | {by} | {100 * recall['value']:.1f} "
            f"| {100 * lost['value']:.2f} | "
            f"{100 * flips['value']:.2f} | {cosine['value']:.5f} | {m['value']:.2f} |"
        )
    return [*out, ""]


def _speed() -> list[str]:
    rows = []
    training = RESULTS / "training.json"
    if training.exists():
        for r in json.loads(training.read_text())["results"]:
            rows.append(
                f"| training loop over bare forward/backward, `{r['backbone']}` "
                f"| {r['ratio_median']:.2f} of its speed | `python -m benchmarks.training` |"
            )
    throughput = RESULTS / "throughput.json"
    if throughput.exists():
        r = max(json.loads(throughput.read_text())["results"], key=lambda r: r["ratio_median"])
        rows.append(
            f"| query training with stored vectors over running `{r['gallery']}` each batch, "
            f"`{r['query']}` | {r['ratio_median']:.1f} times as fast "
            "| `python -m benchmarks.throughput` |"
        )
    retrieval = RESULTS / "retrieval.json"
    if retrieval.exists():
        r = json.loads(retrieval.read_text())
        rows.append(
            f"| exact evaluation (ranks of all right answers) over faiss-cpu flat top-{r['k']}, "
            f"{r['gallery']:,} x {r['dim']}, {r['queries']:,} queries "
            f"| {r['ratio_median']:.2f} of its time | `python -m benchmarks.retrieval` |"
        )
    indexes = RESULTS / "index.json"
    r = json.loads(indexes.read_text()) if indexes.exists() else {}
    if e := r.get("exact"):
        rows += [
            f"| {words} over bare faiss-cpu flat, top-{e['k']}, {r['gallery']:,} x "
            f"{r['dim']}, {e['queries']:,} queries "
            f"| {e['ratio_median'][name]:.2f} of its time | `{r['command']}` |"
            for name, words in (
                ("exact", "engine `exact`"),
                *(
                    (
                        name,
                        f"exact evaluation (ranks of all {e['answers'][name]:.0f} right answers)",
                    )
                    for name in ("ten of the picture", "picture")
                ),
            )
        ]
    startup = RESULTS / "startup.json"
    if startup.exists():
        r = json.loads(startup.read_text())
        rows.append(f"| `hetero --help` | {r['median_s']:.2f} s | `python -m benchmarks.startup` |")
    return (
        ["| speed, side by side in one run | | command |", "| --- | --- | --- |", *rows, ""]
        if rows
        else []
    )


def _tradeoffs() -> list[str]:
    """One row a data set: what query models of a 4th, a 20th and an 80th of the cost find."""
    rows = []
    for path in sorted(RESULTS.glob("tradeoff-*.json")):
        raw = json.loads(path.read_text())
        jobs = raw["jobs"]

        def of(name: str, corner: str, jobs: dict[str, Any] = jobs) -> str:
            (scores,) = jobs[name]["scores"].values()
            return in_percent(scores[corner])

        cells = [of("gallery", "own"), *(of(f"query-{x}x", "heterogeneous") for x in (4, 20, 80))]
        rows.append(
            f"| {path.stem.removeprefix('tradeoff-')} | {' | '.join(cells)} "
            f"| {of('alone-20x', 'own')} | `{raw['command']}` |"
        )
    if not rows:
        return []
    return [
        "At most 15 CPU minutes of training for a query model; Recall@1 / mAP in the gallery's "
        "index. [docs/results.md](docs/results.md) has methods beside it, and what else was tried.",
        "",
        "| | paragon | 4x fewer MACs | 20x | 80x | at 20x trained alone, its own index | command |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
    ]


def _searches() -> list[str]:
    """What architecture search found, beside what else is to be had at its cost."""
    rows = [
        nas.summary(path.stem.removeprefix("nas-"), json.loads(path.read_text()))
        for name in STUDIES
        if (path := RESULTS / f"nas-{name}.json").exists()
    ]
    if not rows:
        return []
    return [
        f"Architecture search at an {BUDGET}th of the gallery model's multiply-accumulates; mAP in "
        "the gallery's index, equal trainings. Kendall's tau: how well architectures are ranked "
        "before they are trained.",
        "",
        "| | found, by search | median drawn | best by hand | tau of MACs | of inherited weights "
        "| of a short training | command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
    ]


def render() -> str:
    """The results block as Markdown."""
    lines: list[str] = []
    for path in sorted(RESULTS.glob("demo-seed*.json"))[:1]:
        lines += _demo(path)
    others = sorted(RESULTS.glob("demo-seed*.json"))
    if len(others) > 1:
        lines += [
            "| seed | verdict | query in the gallery's index, Recall@1 | the small model alone "
            "| paragon |"
        ]
        lines += ["| --- | --- | --- | --- | --- |"]
        for path in others:
            r = json.loads(path.read_text())
            cells = (
                _find(r, "heterogeneous_recall_at_1", "pytorch", "fp32"),
                _find(r, "independent_recall_at_1"),
                _find(r, "paragon_recall_at_1"),
            )
            shown = " | ".join(f"{100 * c['value']:.1f}" for c in cells)
            lines.append(f"| {r['seed']} | {r['verdict']} | {shown} |")
        lines.append("")
    lines += _tradeoffs()
    lines += _searches()
    lines += _speed()
    return "\n".join(lines).strip()


def main() -> None:
    """Rewrite, or check, the block between the markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = README.read_text()
    head, rest = text.split(BEGIN)
    made = {
        README: f"{head}{BEGIN}\n{render()}\n{END}{rest.split(END)[1]}",
        page.PAGE: page.render(),
        scale.PAGE: scale.render(),
    }
    if args.check:
        for path, wanted in made.items():
            if not path.exists() or path.read_text() != wanted:
                raise SystemExit(
                    f"{path} does not show what benchmarks/results holds; "
                    "run python -m benchmarks.tables"
                )
        return
    for path, wanted in (made | page.pictures()).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted)


if __name__ == "__main__":
    main()
