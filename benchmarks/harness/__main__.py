"""The device harness under fault, into benchmarks/results/harness-faults.json.

    python -m benchmarks.harness faults                 every fault on every kind of device
    python -m benchmarks.harness faults --only cut      a look at those whose name has this in it
    python -m benchmarks.harness faults --kind ssh      a look at one kind

A look writes nothing. The far end of each run is a process on this machine: for `ssh` behind a real
OpenSSH server, with a proxy in the way that cuts it.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

# The doubles of servers and runtimes are the tests' own.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from benchmarks.harness import faults
from benchmarks.harness.scene import KINDS, NotHere
from benchmarks.lab import RESULTS
from hetero._files import write_json


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


def main() -> int:
    """Run what is asked for; 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("faults",))
    parser.add_argument("--only", default="", help="a part of a fault's name")
    parser.add_argument("--kind", choices=KINDS)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    found = played(args.only, (args.kind,) if args.kind else KINDS)
    whole = {
        "command": "python -m benchmarks.harness faults",
        "machine": {"cpus": os.cpu_count(), "cpu": platform.machine()},
        "seconds": round(time.monotonic() - begun),
        **found,
    }
    print(whole["summary"])
    if not args.only and not args.kind:
        write_json(RESULTS / "harness-faults.json", whole)
    sums = found["summary"]
    kept = sums["as_promised"] == sums["runs"]
    return int(not kept or sums["rows_lost"] > 0 or sums["rows_duplicated"] > 0)


if __name__ == "__main__":
    sys.exit(main())
