"""Proof of the verdict, raw results into benchmarks/results/verdict-*.json.

    python -m benchmarks.verdict                    2,000 simulated trials a cell, and faults
    python -m benchmarks.verdict --quick            200 trials a cell, into runs/, for a look
    python -m benchmarks.verdict --only faults --query QUERY_BUNDLE --gallery GALLERY_BUNDLE
    python -m benchmarks.verdict --page [--check]   write (or compare) the tables and the picture of
                                                    docs/verdict.md from what is in the result files

Without --query and --gallery a small pair of models is trained on the emoji collection first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")


def _write(folder: Path, name: str, found: dict[str, Any], begun: float) -> None:
    machine = {"cpu_count": os.cpu_count(), "machine": platform.machine()}
    path = folder / f"verdict-{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine, "seconds": round(time.monotonic() - begun), **found}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    print(path)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("simulation", "faults"))
    parser.add_argument("--query", type=Path, help="query bundle, in PyTorch")
    parser.add_argument("--gallery", type=Path, help="gallery bundle")
    parser.add_argument("--runs", type=Path, default=Path("runs/verdict"), help="to train into")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.page:
        from benchmarks.verdict import page

        page.write(RESULTS, Path("docs"), check=args.check)
        return
    if (args.query is None) != (args.gallery is None):
        parser.error("give both --query and --gallery, or neither")
    folder = args.runs if args.quick else RESULTS
    if args.only != "faults":
        from benchmarks.verdict import simulate

        begun = time.monotonic()
        _write(folder, "simulation", simulate.run(200 if args.quick else 2000, print), begun)
    if args.only != "simulation":
        from benchmarks.verdict import faults

        begun = time.monotonic()
        query, gallery = args.query, args.gallery
        if query is None:
            query, gallery = faults.train(args.runs)
        _write(folder, "faults", faults.run(query, gallery), begun)


if __name__ == "__main__":
    main()
