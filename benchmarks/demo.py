"""The demo for several seeds, its reports kept without pictures and plot points.

    python -m benchmarks.demo --seeds 0 1 2
    python -m benchmarks.demo --take runs/demo --seconds 512     (a run that is there already)

writes benchmarks/results/demo-seed0.json ...: verdict, measurements and facts of each run's
report.json, and the seconds the whole chain took on this machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path("benchmarks/results")


def keep(run: Path, seconds: int) -> None:
    """Write what the tables need of a finished run."""
    report = json.loads((run / "check" / "report.json").read_text())
    kept = {k: report[k] for k in ("verdict", "subject", "measurements", "facts", "not_run")}
    seed = int(report["facts"]["query training"].rpartition("seed ")[2])
    kept |= {"seed": seed, "seconds": seconds}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"demo-seed{seed}.json"
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    print(f"{path}: {report['verdict']}")


def main() -> None:
    """Run the demo once per seed; a verdict of fail is a result, anything worse stops here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--take", type=Path, help="keep this finished run instead of making one")
    parser.add_argument("--seconds", type=int, default=0, help="what the run of --take took")
    args = parser.parse_args()
    if args.take:
        keep(args.take, args.seconds)
        return
    for seed in args.seeds:
        run = args.runs / f"demo-seed{seed}"
        begun = time.monotonic()
        command = [sys.executable, "-m", "hetero.cli", "demo", "-o", str(run), "--seed", str(seed)]
        code = subprocess.run(command, check=False).returncode
        if code not in (0, 1, 3):
            raise SystemExit(code)
        keep(run, round(time.monotonic() - begun))


if __name__ == "__main__":
    main()
