"""Bulk embedding side by side with the model alone, its growth, and 100 interruptions.

    python -m benchmarks.bulk                 about two hours on two cores
    python -m benchmarks.bulk --quick         minutes, to see that it works

Model, decoder and stream take turns in one run. The JPEGs are real pictures (``--data``) at 224 px,
some 2,000 different ones; what is beyond is hard links to them. Files are in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bulk import interrupt, speed
from benchmarks.lab import RESULTS, machine, save

#: Backbone and input side: a query model, and two as large as gallery models are.
MODELS = (("mobilenet:width=0.5", 32), ("resnet:width=32", 128), ("resnet:width=64", 224))


def main() -> None:
    """Write raw rates, sizes and tallies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--data", default="emoji", help="real pictures, as `hetero embed` takes them"
    )
    parser.add_argument("--source-px", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--parts", nargs="*", default=["rates", "growth", "kills"],
        choices=["rates", "growth", "kills"],
    )  # fmt: skip
    args = parser.parse_args()
    quick = args.quick
    output = args.output or RESULTS / f"bulk{'-quick' if quick else ''}.json"
    cores = len(os.sched_getaffinity(0))
    raw: dict[str, Any] = {
        "command": "python -m benchmarks.bulk" + (" --quick" if quick else ""),
        "machine": {**machine(), "cores": cores},
        "data": args.data,
        "source_px": args.source_px,
    }
    if output.exists():  # parts that an earlier run measured, and this one is not asked for
        kept = json.loads(output.read_text())
        if all(kept[k] == raw[k] for k in ("command", "data", "source_px")):
            raw |= {k: v for k, v in kept.items() if k in ("rates", "growth", "kills")}
    with tempfile.TemporaryDirectory(prefix="hetero-bulk-") as name:
        home = Path(name)
        if "rates" in args.parts:
            raw["rates"] = _rates(home, args, cores)
            save(output, raw)
        if "growth" in args.parts:
            raw["growth"] = _growth(home, args, cores)
            save(output, raw)
        if "kills" in args.parts:
            raw["kills"] = _kills(home, args)
            save(output, raw)


def _rates(home: Path, args: argparse.Namespace, cores: int) -> list[dict[str, Any]]:
    out = []
    for backbone, size in MODELS[: 1 if args.quick else None]:
        # So many that a side takes some 20 s on a core.
        rows = 400 if args.quick else {32: 8000, 128: 1200, 224: 240}[size]
        folder = home / f"rates-{size}"
        pictures = speed.make_pictures(
            folder / "pictures", args.data, rows, args.source_px, distinct=2000
        )
        repeats = 2 if args.quick else args.repeats
        out.append(speed.rates(folder, backbone, size, pictures, rows, repeats, cores))
    return out


def _growth(home: Path, args: argparse.Namespace, cores: int) -> list[dict[str, Any]]:
    backbone, size = MODELS[0]
    bundle = speed.make_bundle(home / "growth-bundle", backbone, size, 128)
    out = []
    for count in (200, 800) if args.quick else (1_000, 10_000, 100_000):
        pictures = speed.make_pictures(
            home / f"growth-{count}", args.data, count, args.source_px, distinct=2000
        )
        shard_rows = 100 if args.quick else 1000
        found = speed.stream(bundle.root, pictures, home / "growth-out", cores, 1, shard_rows)
        out.append({"images": count, "backbone": backbone, "size_px": size, **found})
        print(out[-1], flush=True)
    return out


def _kills(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    backbone, size = MODELS[0]
    bundle = speed.make_bundle(home / "kills-bundle", backbone, size, 128)
    pictures = speed.make_pictures(home / "kills", args.data, 400, args.source_px, distinct=400)
    (pictures / "0000" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    words = ("--format", "onnx", "--shard-rows", "20", "--workers", "2")
    command = interrupt.embed_command(bundle.root, str(pictures), *words)
    begun = time.monotonic()
    if interrupt._start(command, home / "kills-reference").wait():
        raise SystemExit("the undisturbed run failed")
    span = time.monotonic() - begun
    times = 6 if args.quick else args.kills
    tally = interrupt.interrupt(
        command, home / "kills-out", home / "kills-reference", times, args.seed, span
    )
    print(tally, flush=True)
    return {"images": 401, "undisturbed_s": span, "seed": args.seed, **tally.to_json()}


if __name__ == "__main__":
    main()
