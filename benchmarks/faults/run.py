"""Every fault and every control diagnosed; what was true and what was named.

Right is only a diagnosis whose first fault has the true stage. A file that the runtime refuses is
one too, since `hetero diagnose` then says so and blames the conversion, or the quantisation where
the float file runs: right if that is where the damage was done, and wrong if it was put into the
file's pooling, L2 or normalisation. Nothing else is forgiven; inconclusive counts as not named.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.cases import app_cases, file_cases, model_cases
from benchmarks.faults.healthy import controls
from benchmarks.faults.subject import Case, Subject
from hetero.diagnose import Diagnosis, Trace


def _recorded(trace: Trace | None) -> list[str]:
    """What a trace holds beside the vectors."""
    if trace is None:
        return []
    found = [n for n in ("pixels", "tensor", "raw") if getattr(trace, n) is not None]
    return [*found, "decoded"] if trace.decoded else found


def record(subject: str, case: Case, found: Diagnosis, cpu_s: float) -> dict[str, Any]:
    """One row of the raw results."""
    layer = found.layer
    return {
        "model": subject,
        "true": case.stage,
        "fault": case.name,
        "known": case.known,
        "file": case.home,
        "recorded": _recorded(case.trace),
        "refused": case.item is not None and case.trace is None,
        "verdict": found.verdict,
        "named": found.stage,
        "cause": found.faults[0].cause if found.faults else "",
        "exact": found.faults[0].exact if found.faults else False,
        "others": [f.stage for f in found.faults[1:]],
        "cosine_lost": round(found.cosine_lost, 8),
        "recall_lost": round(found.recall_lost, 4),
        "adds_up": bool(
            abs(sum(x.cosine_lost for x in found.losses) - found.cosine_lost) < 1e-9
            and abs(sum(x.recall_lost for x in found.losses) - found.recall_lost) < 1e-9
        ),
        "damaged": case.hint,
        "layer": layer.module if layer else "",
        "suspects": [[s.stage, s.what, round(s.explained, 3)] for s in found.suspects[:3]],
        "cpu_s": round(cpu_s, 2),
    }


def run(
    name: str, subject: Callable[[], Subject], seed: int, kept: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row a fault or control of a model.

    Args:
        name: Of the model.
        subject: Opens it; not called if nothing is left to do.
        seed: Draws the faults.
        kept: A line a row, written as they come: a run that was cut off goes on there.
        say: Shows a line.
    """
    lines = kept.read_text().splitlines() if kept.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    if rows and rows[-1].get("end"):
        return rows[:-1]
    kept.parent.mkdir(parents=True, exist_ok=True)
    opened, begun = subject(), time.process_time()
    with kept.open("a") as out:
        for at, case in enumerate(_cases(opened, seed)):
            if at < len(rows):
                begun = time.process_time()
                continue
            found = opened.solve(case)
            row = record(name, case, found, time.process_time() - begun)
            begun = time.process_time()
            rows.append(row)
            print(json.dumps(row), file=out, flush=True)
            say(_line(row))
        print(json.dumps({"end": True}), file=out)
    return rows


def _cases(subject: Subject, seed: int) -> Iterator[Case]:
    for cases in (app_cases, model_cases, file_cases, controls):
        yield from cases(subject, seed)


def _line(row: dict[str, Any]) -> str:
    mark = "ok  " if row["named"] == row["true"] else "MISS"
    true, named = row["true"] or "healthy", row["named"] or row["verdict"]
    what = f"{row['fault']} [{row['file']}] {row['cause'][:60]} {row['cpu_s']}s"
    return f"{mark} {row['model']} {true:12} -> {named:12} {what}"


def digest() -> str:
    """Of the sources that a result depends on: rows of other sources are not gone on with."""
    root = Path(__file__).parents[2]
    whole = hashlib.sha256()
    for folder in ("hetero/diagnose", "benchmarks/faults"):
        for path in sorted((root / folder).rglob("*.py")):
            if path.name != "page.py":  # which only shows results
                whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


def interval(count: int, of: int) -> list[float]:
    """Clopper-Pearson, 95 %."""
    from scipy.stats import binomtest

    found = binomtest(count, max(1, of)).proportion_ci(0.95, method="exact")
    return [round(float(found.low), 4), round(float(found.high), 4)]


def summary(faults: Sequence[dict[str, Any]], healthy: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The counts that a reader looks for first."""
    right = [r for r in faults if r["named"] == r["true"]]
    by_stage = Counter(r["true"] for r in faults)
    hit = Counter(r["true"] for r in right)
    unknown = [r for r in faults if not r["known"]]
    models = dict.fromkeys(r["model"] for r in (*faults, *healthy))
    return {
        "n_faults": len(faults),
        "distinct_faults": len({(r["true"], r["fault"]) for r in faults}),
        "right_stage_first": len(right),
        "share": round(len(right) / max(1, len(faults)), 4),
        "ci": interval(len(right), len(faults)),
        "by_model": {
            m: [sum(r["model"] == m for r in right), sum(r["model"] == m for r in faults)]
            for m in models
        },
        "refused": sum(r["refused"] for r in faults),
        "without_a_hypothesis": [sum(r["named"] == r["true"] for r in unknown), len(unknown)],
        "wrong_stage": sum(r["verdict"] == "fault" and r["named"] != r["true"] for r in faults),
        "inconclusive": sum(r["verdict"] == "inconclusive" for r in faults),
        "called_healthy": sum(r["verdict"] == "healthy" for r in faults),
        "by_stage": {s: [hit[s], n] for s, n in sorted(by_stage.items())},
        "n_controls": len(healthy),
        "false_alarms": sum(r["verdict"] == "fault" for r in healthy),
        "false_alarms_ci": interval(sum(r["verdict"] == "fault" for r in healthy), len(healthy)),
        "controls_inconclusive": sum(r["verdict"] == "inconclusive" for r in healthy),
        "sums_add_up": all(r["adds_up"] for r in (*faults, *healthy)),
    }
