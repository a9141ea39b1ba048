"""The demo for several seeds, its reports kept without pictures and plot points.

    python -m benchmarks.demo --seeds 0 1 2

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


def main() -> None:
    """Run the demo once per seed; a verdict of fail is a result, anything worse stops here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    args = parser.parse_args()
    for seed in args.seeds:
        output = args.runs / f"demo-seed{seed}"
        begun = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "hetero.cli",
            "demo",
            "-o",
            str(output),
            "--seed",
            str(seed),
        ]
        code = subprocess.run(command, check=False).returncode
        if code not in (0, 1, 3):
            raise SystemExit(code)
        report = json.loads((output / "check" / "report.json").read_text())
        kept = {k: report[k] for k in ("verdict", "subject", "measurements", "facts", "not_run")}
        kept |= {"seed": seed, "seconds": round(time.monotonic() - begun)}
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"demo-seed{seed}.json"
        path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        print(f"{path}: {report['verdict']}")


if __name__ == "__main__":
    main()
