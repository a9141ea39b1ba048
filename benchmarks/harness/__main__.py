"""The device harness under fault, and what it costs; into benchmarks/results/harness-*.json.

    python -m benchmarks.harness faults                 every fault on every kind of device
    python -m benchmarks.harness faults --only cut      a look at those whose name has this in it
    python -m benchmarks.harness faults --kind ssh      a look at one kind
    python -m benchmarks.harness overhead               latency and host time, three times
    python -m benchmarks.harness overhead --only host   the latter anew
    python -m benchmarks.harness adbd [--again]         build AOSP's adbd, run the tests of phones

A look at faults writes nothing. The far end of each is a process on this machine: for `ssh` behind
a real OpenSSH server, with a proxy in the way that cuts it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.harness import faults
from benchmarks.harness.scene import KINDS, NotHere
from benchmarks.lab import RESULTS, WORK
from hetero._files import write_json

REPEATS = 3
FORMATS = ("onnx", "tflite")
#: Short runs for latency, so that on a busy machine many are undisturbed; real work for the host.
LATENCY_PX, HOST_PX = 96, 224


def played(only: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The table of all faults whose name has `only` in it, on these kinds of device."""
    rows: list[dict[str, Any]] = []
    absent: list[dict[str, str]] = []
    for fault in faults.FAULTS:
        for kind in fault.kinds:
            if only not in fault.name or kind not in kinds:
                continue
            try:
                row = faults.play(fault, kind)
            except NotHere as error:
                absent.append({"fault": fault.name, "kind": kind, "why": str(error)})
                print(f"- {kind}: {fault.name}: {error}", flush=True)
                continue
            rows.append(row)
            print(
                f"{len(rows)} {kind}: {fault.name}: {row['outcome']}, {row['rows_lost']} lost, "
                f"{row['rows_duplicated']} doubled, {row['seconds']} s",
                flush=True,
            )
    return {"summary": summary(rows), "faults": rows, "not_made_here": absent}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over the table."""
    return {
        "faults": len({row["fault"] for row in rows}),
        "runs": len(rows),
        "by_kind": dict(Counter(row["kind"] for row in rows)),
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "as_promised": sum(row["outcome"] == row["promised"] for row in rows),
        "rows": sum(row["rows"] for row in rows),
        "rows_lost": sum(row["rows_lost"] for row in rows),
        "rows_duplicated": sum(row["rows_duplicated"] for row in rows),
    }


def overhead(only: str) -> dict[str, Any]:
    """Each comparison three times; with `only` "host" the latencies stay as they are stored."""
    from benchmarks.harness import overhead as costs

    latencies, hosts = [], []
    if only == "host":
        latencies = json.loads((RESULTS / "harness-overhead.json").read_text())["latency"]
    for seed in range(REPEATS if not latencies else 0):
        for format in FORMATS:
            found = costs.side_by_side(_model(LATENCY_PX, format), format, LATENCY_PX, seed)
            latencies.append(found)
            ratio = found["agent_over_own"]
            print(
                f"{format} {seed}: {ratio['value']:.3f} ({ratio['low']:.3f} to "
                f"{ratio['high']:.3f}), {found['grade']}, {found['seconds']} s",
                flush=True,
            )
    for format in FORMATS:
        hosts.append(costs.over_ssh(_model(HOST_PX, format), format, HOST_PX, 2 * REPEATS - 1))
        print(f"{format}: host {hosts[-1]['host_over_device']:.3f} of the device's", flush=True)
    packages = ("onnxruntime", "ai-edge-litert", "asyncssh")
    return {
        "model": "mobilenetv3_small_100, fp32",
        "latency_px": LATENCY_PX,
        "host_px": HOST_PX,
        "margin": costs.MARGIN,
        "host_limit": costs.HOST_LIMIT,
        "plan": {"warmup": costs.WARMUP, "runs": costs.RUNS, "groups": costs.GROUPS},
        "versions": {x: importlib.metadata.version(x) for x in packages},
        "latency": latencies,
        "host": hosts,
    }


def _model(size: int, format: str) -> Path:
    """An exported file, made once."""
    from benchmarks.export_latency import exported

    work = WORK / f"export-latency-{size}"
    work.mkdir(parents=True, exist_ok=True)
    bundle = exported(work, size, ("fp32",))
    return Path(bundle.path(bundle.artifact(format, "fp32")))


def main() -> int:
    """Run what is asked for; 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("faults", "overhead", "adbd"))
    parser.add_argument("--only", default="", help="a part of a fault's name; or: host")
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--again", action="store_true", help="build adbd anew")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    if args.what == "faults":
        found = played(args.only, (args.kind,) if args.kind else KINDS)
        sums = found["summary"]
        kept = sums["as_promised"] == sums["runs"]
        kept = kept and sums["rows_lost"] == sums["rows_duplicated"] == 0
    elif args.what == "overhead":
        found = overhead(args.only)
        kept = all(x["within_margin"] for x in found["latency"])
        kept = kept and all(x["within_limit"] for x in found["host"])
    else:
        from benchmarks.harness import adbd

        found = adbd.tried(args.again)
        kept = not found["tests"]["failed"]
    whole = {
        "command": f"python -m benchmarks.harness {args.what}",
        "machine": {"cpus": os.cpu_count(), "cpu": platform.machine()},
        "seconds": round(time.monotonic() - begun),
        **found,
    }
    print(found.get("summary") or found.get("tests") or "")
    if args.what != "faults" or not (args.only or args.kind):
        name = "adbd" if args.what == "adbd" else f"harness-{args.what}"
        write_json(RESULTS / f"{name}.json", whole)
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
