"""Train, score and judge the acceptance experiments.

    python -m benchmarks.acceptance            quick, three seeds, ten minutes on two cores
    python -m benchmarks.acceptance --full     all training classes, a larger gallery model, longer

Raw scores of every model go to benchmarks/results/acceptance-SIZE.json; the table in
docs/results.md is made from that file by `python -m benchmarks.tables`. Exit code 1 if a rule does
not hold. Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.acceptance.jobs import SIZES, jobs
from benchmarks.acceptance.measure import procrustes, score
from benchmarks.acceptance.rules import judge, told
from benchmarks.lab import RESULTS, WORK, chance, machine, run, save


def main() -> int:
    """Run and print the outcomes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    size = SIZES["full" if args.full else "quick"]
    work = args.work / f"acceptance-{size.name}"
    begun = time.monotonic()
    found = run(
        jobs(size),
        args.data,
        32,
        args.seeds,
        work,
        keep=size.keep,
        workers=args.workers,
        then=score,
    )
    level = chance(args.data)
    raw = [
        {
            "seed": seed,
            "jobs": found[seed],
            "chance": level,
            "procrustes": procrustes(work / f"seed-{seed}", args.data, size.keep),
        }
        for seed in args.seeds
    ]
    save(
        args.results / f"acceptance-{size.name}.json",
        {
            "command": "python -m benchmarks.acceptance" + (" --full" if args.full else ""),
            "size": asdict(size),
            "data": args.data,
            "machine": machine(),
            "wall_s": round(time.monotonic() - begun),
            "seeds": raw,
        },
    )
    return told(judge(raw))


if __name__ == "__main__":
    sys.exit(main())
