"""How often does a comparison of latencies cry wolf, and how often does it see ten per cent?

    python -m benchmarks.latency_ab                  40 comparisons of each kind; about an hour
    python -m benchmarks.latency_ab --comparisons 1  one more of the kind that is behind
    python -m benchmarks.latency_ab --summary        judge what is stored, run nothing

Two files, of 20 and of 22 equal convolutions: the second really has ten per cent more work.
A/A compares the first with itself; A/B with the second. Kinds alternate, each comparison has a seed
of its own and ends in a verdict as `hetero bench A --against B` gives it. Every comparison goes to
the results as it ends, so that a stopped benchmark goes on; the load of the machine beside it too.
Several may run at once, each with an --output of its own, for noise: --merge puts them together.
What the second file really costs is measured by user CPU time, which waiting does not enter.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from benchmarks.lab import RESULTS
from hetero import latency
from hetero._files import write_atomically
from hetero.devices import BLOCK_PLAN, Load, alternate, open_device
from hetero.stages.contest import as_json, disturbance, outcome

LAYERS = {"A": 20, "B": 22}
GROUPS = 15
MARGIN = 0.05
Kind = Literal["A/A", "A/B"]


def write_stack(path: Path, layers: int, channels: int = 16, size: int = 24) -> Path:
    """An ONNX file of so many equal convolutions between a small head and a small tail."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    draw = np.random.default_rng(0)
    first = draw.normal(size=(channels, 3, 1, 1)) / 255
    weights = {"w": numpy_helper.from_array(first.astype(np.float32), "w")}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w"], ["x0"]),
    ]
    for n in range(layers):
        values = draw.normal(size=(channels, channels, 3, 3)) / 12
        weights[f"w{n}"] = numpy_helper.from_array(values.astype(np.float32), f"w{n}")
        nodes += [
            helper.make_node("Conv", [f"x{n}", f"w{n}"], [f"y{n}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"y{n}"], [f"x{n + 1}"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{layers}"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", channels])],
        list(weights.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save_model(model, path)
    return path


def comparison(kind: Kind, seed: int) -> dict[str, Any]:
    """One comparison from beginning to verdict, with everything to judge it again."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), dtype=np.uint8)
    began, load = time.time(), os.getloadavg()
    with TemporaryDirectory() as folder:
        first, second = (
            Load(write_stack(Path(folder) / f"{n}.onnx", n), "onnx", pixels)
            for n in (LAYERS["A"], LAYERS["A" if kind == "A/A" else "B"])
        )
        ran = alternate(
            open_device("local"),
            {"A": first, "B": second},
            latency.orders(GROUPS, seed),
            folder=Path(folder) / "runs",
        )
    disturbed, emulated = disturbance([r for group in ran.results for r in group])
    found = latency.compare(ran.groups, MARGIN, disturbed, emulated)
    return {
        "kind": kind,
        "seed": seed,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began, 1),
        "load_before": load[0],
        "load_after": os.getloadavg()[0],
        "outcome": outcome(found),
        "comparison": _short(as_json(found)),
        "blocks": [
            {
                "order": "".join(b.arm for b in group),
                "runs": [b.latency_ns.size for b in group],
                "quiet_ns": [round(latency.quiet(b.latency_ns)) for b in group],
                "p50_ns": [round(np.median(b.latency_ns)) for b in group],
                "cpu_share": [round(r.conditions.cpu_share or 0, 3) for r in results],
            }
            for group, results in zip(ran.groups, ran.results, strict=True)
        ],
    }


def _short(value: Any) -> Any:
    """Without the ratios of the groups, which follow from the blocks."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items() if k != "groups"}
    return [_short(v) for v in value] if isinstance(value, list) else value


def true_slowdown(rounds: int = 40, runs: int = 300) -> dict[str, Any]:
    """CPU time of B over that of A in one process, alternating; independent of the harness."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    pixels = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), dtype=np.uint8)
    with TemporaryDirectory() as folder:
        sessions = [
            onnxruntime.InferenceSession(
                str(write_stack(Path(folder) / f"{n}.onnx", n)),
                options,
                providers=["CPUExecutionProvider"],
            )
            for n in LAYERS.values()
        ]
    ratios = []
    for _ in range(rounds):
        spent = []
        for session in sessions:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            for _ in range(runs):
                session.run(None, {"pixels": pixels})
            spent.append(resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)
        ratios.append(spent[1] / spent[0])
    return {"median": statistics.median(ratios), "ratios": ratios}


def summary(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates with their 95 % intervals (Clopper-Pearson)."""
    from scipy.stats import binomtest

    out: dict[str, Any] = {}
    for kind, counted in (("A/A", "false_alarms"), ("A/B", "detected")):
        rows = [x for x in done if x["kind"] == kind]
        if not rows:
            continue
        alarms = sum(x["outcome"] == "fail" for x in rows)
        interval = binomtest(alarms, len(rows)).proportion_ci(0.95, "exact")
        ratios = [x["comparison"]["ratio"] for x in rows]
        out[kind] = {
            "comparisons": len(rows),
            counted: alarms,
            "rate": alarms / len(rows),
            "rate_95": [interval.low, interval.high],
            "outcomes": {
                o: sum(x["outcome"] == o for x in rows) for o in ("pass", "fail", "inconclusive")
            },
            "grades": {
                g: sum(x["comparison"]["grade"] == g for x in rows)
                for g in ("valid", "noisy", "invalid")
            },
            "ratio_median": statistics.median(r["value"] for r in ratios),
            "ratio_range": [min(r["value"] for r in ratios), max(r["value"] for r in ratios)],
            "interval_without_1": sum(not r["low"] <= 1 <= r["high"] for r in ratios),
            "interval_width_median": statistics.median(r["high"] - r["low"] for r in ratios),
            "detectable_median": statistics.median(x["comparison"]["detectable"] for x in rows),
            "load_median": statistics.median(x["load_after"] for x in rows),
            "load_range": [min(x["load_after"] for x in rows), max(x["load_after"] for x in rows)],
            "seconds_median": statistics.median(x["seconds"] for x in rows),
        }
    return out


def main() -> None:
    """Run what is missing, and write raw results and rates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "latency-ab.json")
    parser.add_argument("--comparisons", type=int, default=80, help="of both kinds together")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="other --output files")
    args = parser.parse_args()
    paths = [p for p in (args.output, *args.merge) if p.exists()]
    stored = [json.loads(p.read_text()) for p in paths]
    done = sorted((x for s in stored for x in s["comparisons"]), key=lambda x: x["began"])
    truth = next((s["true_slowdown"] for s in stored if s["true_slowdown"]), None)
    for _ in range(0 if args.summary or args.merge else args.comparisons):
        kind: Kind = "A/A" if len(done) % 2 == 0 else "A/B"
        found = comparison(kind, args.seed + len(done))
        done.append(found)
        ratio = found["comparison"]["ratio"]
        print(
            f"{len(done)} {kind} {found['outcome']}: {ratio['value']:.3f} ({ratio['low']:.3f} to "
            f"{ratio['high']:.3f}), {found['comparison']['grade']}, {found['seconds']} s",
            flush=True,
        )
        _save(args.output, done, truth)
    _save(args.output, done, truth or true_slowdown())
    print(json.dumps(summary(done), indent=1))


def _save(path: Path, done: list[dict[str, Any]], truth: object) -> None:
    """Write raw results, a line for each comparison."""
    content = {
        "command": "python -m benchmarks.latency_ab",
        "machine": {
            "cpus": os.cpu_count(),
            "cpu": platform.machine(),
            "onnxruntime": importlib.metadata.version("onnxruntime"),
        },
        "what": {
            "layers": LAYERS,
            "groups": GROUPS,
            "margin": MARGIN,
            "plan": asdict(BLOCK_PLAN),
            "load": "shared with other programs; load_before and load_after are 1-minute averages",
        },
        "true_slowdown": truth,
        "summary": summary(done),
    }
    lines = ",\n".join("  " + json.dumps(x, separators=(",", ":")) for x in done)
    head = json.dumps(content, indent=1).removesuffix("\n}")
    write_atomically(path, f'{head},\n "comparisons": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
