"""Damaged and hostile files against every loader, counted by outcome.

    python -m benchmarks.fuzz --count 100000 --seed 0

Every case follows from (seed, number) alone. Cases run in a worker process with a memory limit; one
that ends the process, takes longer than --timeout-s, writes outside of its folder, raises anything
but an error of ours, or asks for more memory than there is, is a fault, and its input is saved.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.fuzz.runner import run


def main() -> None:
    """Run, write the result, exit 1 if there was a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=30.0, help="for one case")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fuzz.json"))
    parser.add_argument("--inputs", type=Path, default=Path("runs/fuzz"), help="inputs of faults")
    args = parser.parse_args()
    found = run(args.count, args.seed, args.inputs, args.timeout_s)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{args.output}: {found['outcomes']} in {found['seconds']} s, {found['faults']} faults")
    sys.exit(1 if found["faults"] else 0)


if __name__ == "__main__":
    main()
