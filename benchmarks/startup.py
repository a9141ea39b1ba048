"""How long `hetero --help` takes, as a process of its own.

python -m benchmarks.startup
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Write every time and their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/startup.json"))
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    command = [sys.executable, "-m", "hetero.cli", "--help"]
    seconds = []
    for _ in range(args.repeats + 1):
        begun = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.monotonic() - begun)
    # The first fills the file cache and is not counted.
    found = {"median_s": statistics.median(seconds[1:]), "seconds": seconds[1:]}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"hetero --help: median {found['median_s']:.3f} s of {args.repeats}")


if __name__ == "__main__":
    main()
