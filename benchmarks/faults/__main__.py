"""Seeded faults of every stage and healthy controls, into benchmarks/results/faults.json.

    python -m benchmarks.faults --query QUERY_BUNDLE --gallery GALLERY_BUNDLE
    python -m benchmarks.faults --query Q --gallery G --seed 3 --output runs/faults.json

The gallery model itself is the second query model (it is one of its own space): another
architecture, larger, and without depthwise layers. The bundles are copied to --runs and files that
they lack are exported there. A run that was cut off goes on where it stopped; --models runs one of
the two models alone, so that two processes can share the work before a last call joins them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
from pathlib import Path

from hetero import data
from hetero.bundle import Bundle
from hetero.progress import Reporter
from hetero.stages.exporting import export_all

PRECISIONS = ("fp32", "fp16", "int8")


def _copy(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle in a folder of our own, with the files that the benchmark needs."""
    if not (folder / "manifest.json").exists():
        shutil.copytree(bundle.root, folder)
    return export_all(
        Bundle.load(folder),
        ("onnx", "tflite"),
        PRECISIONS,
        images=data.load("emoji"),
        bake=True,
        batch=None,
        resume=True,
        reporter=Reporter(),
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--query", type=Path, required=True)
    parser.add_argument("--gallery", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", choices=("query", "gallery"), help="only this one")
    parser.add_argument("--runs", type=Path, default=Path("runs/faults"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/faults.json"))
    args = parser.parse_args()
    import torch

    from benchmarks.faults import run
    from benchmarks.faults.subject import Subject

    torch.set_num_threads(1)
    images = data.load("emoji")
    gallery = Bundle.load(args.gallery)
    rows, models, digest = [], {}, run.digest()
    for name, path in (("query", args.query), ("gallery", args.gallery)):
        if args.models not in (None, name):
            continue
        models[name] = Bundle.load(path).manifest.model.backbone
        kept = args.runs / f"{name}-seed{args.seed}-{digest}.jsonl"

        def subject(path: Path = path, name: str = name) -> Subject:
            return Subject(_copy(Bundle.load(path), args.runs / name), gallery, images)

        rows += run.run(name, subject, args.seed, kept, lambda line: print(line, flush=True))
    faults = [r for r in rows if r["true"]]
    healthy = [r for r in rows if not r["true"]]
    command = ["python", "-m", "benchmarks.faults", "--seed", str(args.seed)]
    whole = {
        "command": shlex.join(command) + " --query QUERY --gallery GALLERY",
        "seed": args.seed,
        "models": models,
        "machine": {"cpu_count": os.cpu_count(), "machine": platform.machine()},
        "python": platform.python_version(),
        "sources": digest,
        "cpu_seconds": round(sum(r["cpu_s"] for r in rows)),
        **run.summary(faults, healthy),
        "faults": faults,
        "controls": healthy,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(whole, indent=1) + "\n")
    shown = {k: v for k, v in whole.items() if k not in ("faults", "controls")}
    json.dump(shown, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
