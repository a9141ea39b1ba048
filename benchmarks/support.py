"""What works: architectures x formats x precisions, each file run and held against PyTorch.

    python -m benchmarks.support            every cell that is not there yet, then the page
    python -m benchmarks.support --page     docs/support.md from the raw file, nothing else
    python -m benchmarks.support --latency  times alone, anew; for a quiet machine

Interrupted, it goes on at the first missing cell.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lab import RESULTS, WORK
from hetero._files import write_json

RAW = RESULTS / "support.json"
FORMATS = ("onnx", "tflite", "coreml")

#: Probe pictures, which no range was fitted to, and calibration pictures.
PROBES, CALIBRATION = 32, 64

#: Rounds of timing; in each round every file of an architecture is called once.
ROUNDS = 20

_TOOLS = (
    *("torch", "timm", "onnx", "onnxscript", "onnxruntime", "litert-torch", "litert-quantizer"),
    *("ai-edge-litert", "coremltools", "numpy"),
)


def wanted(format: str) -> tuple[str, ...]:
    """The precisions that are tried; of two names for one file only one."""
    from hetero import export

    return tuple(p for p in export.precisions(format) if (format, p) != ("coreml", "int8w"))


def bundle(name: str, folder: Path) -> Any:
    """A bundle of this architecture, made once."""
    import hashlib

    from benchmarks import support_nets as nets
    from hetero import models
    from hetero.bundle import Bundle
    from hetero.errors import BundleError
    from hetero.space import Space

    try:
        return Bundle.load(folder, verify=False)
    except BundleError:
        pass
    net, preprocess = nets.net(name)
    pixels = nets.pictures("test", PROBES)
    space = Space("support", hashlib.sha256(name.encode()).hexdigest(), nets.DIM)
    return models.as_it_is(folder, net, nets.spec(name), space, preprocess, pixels)


def fill(name: str, folder: Path, precisions: Sequence[str] | None = None) -> None:
    """Missing cells of an architecture, each kept in its own file as soon as it is known."""
    import torch

    from benchmarks import support_nets as nets

    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    made = bundle(name, folder / "bundle")
    calibration = nets.pictures("train", CALIBRATION)
    for format in FORMATS:
        left = [p for p in wanted(format) if not precisions or p in precisions]
        left = [p for p in left if not _cell(folder, format, p).exists()]
        while left:
            for cell in _tried(made, format, left, calibration):
                write_json(_cell(folder, format, cell["precision"]), {"architecture": name, **cell})
                left = left[1:]
                print(name, format, cell["precision"], _said(cell), flush=True)
    if not precisions and not (folder / "latency.json").exists():
        write_json(folder / "latency.json", timed(folder / "bundle"))


def _cell(folder: Path, format: str, precision: str) -> Path:
    return folder / f"{format}-{precision}.json"


def _said(cell: dict[str, Any]) -> str:
    return f"cosine {cell['cosine_worst']:.6f}" if cell["works"] else cell["reason"]


def _tried(
    made: Any, format: str, precisions: Sequence[str], calibration: np.ndarray
) -> Iterator[dict[str, Any]]:
    """A cell for each precision up to the first that fails."""
    from hetero import export
    from hetero.bundle import Bundle
    from hetero.errors import HeteroError

    todo = iter(precisions)
    fresh = Bundle.load(made.root, verify=False)
    try:
        for done in export.export_each(fresh, format, precisions, calibration=calibration):
            precision = next(todo)
            item = done.artifact(format, precision)
            facts = item.facts
            kept = (
                *("cosine_worst", "cosine_median", "centred_cosine_worst", "max_abs_diff"),
                *("conversion_s", "parity_s", "compared_with", "exporter", "fallback", "compute"),
            )
            yield {
                "format": format,
                "precision": precision,
                "works": True,
                "size_bytes": item.size_bytes,
                **{k: facts[k] for k in kept if k in facts},
            }
    except HeteroError as error:
        yield {
            "format": format,
            "precision": next(todo),
            "works": False,
            # Where to look further is no reason.
            "reason": " ".join(str(error).split()).partition("; see ")[0],
        }


def timed(root: Path) -> dict[str, Any]:
    """What `latency` gives, and how many processes wanted a processor before it began."""
    return {"load_average": round(os.getloadavg()[0], 1), "files": latency(root)}


def latency(root: Path) -> dict[str, dict[str, float]]:
    """Milliseconds a picture, and the ratio to the fp32 ONNX file, by "format precision".

    All files take turns, one picture each; a time is this thread's own on the processor, so that a
    busy machine disturbs little, and a ratio is the median of the rounds' ratios. Core ML is not
    timed: the reference interpreter says nothing about speed.
    """
    from hetero import export
    from hetero.bundle import Bundle

    made = Bundle.load(root, verify=False)
    probe = made.probe()
    items = [f for f in made.exported() if f.kind != "coreml"]
    times: dict[str, list[int]] = {f"{f.kind} {f.precision}": [] for f in items}
    with ExitStack() as stack:
        runners = [stack.enter_context(export.load(made.path(f), f.kind)) for f in items]
        for at in range(ROUNDS + 3):
            pixels = probe.pixels[at % len(probe.pixels)][None]
            for key, runner in zip(times, runners, strict=True):
                begin = time.thread_time_ns()
                runner(pixels)
                if at >= 3:
                    times[key].append(time.thread_time_ns() - begin)
    base = np.array(times.get("onnx fp32") or [np.nan], float)
    return {
        k: {"ms": round(float(np.median(v)) / 1e6, 3), "ratio": round(_ratio(v, base), 3)}
        for k, v in times.items()
    }


def _ratio(mine: list[int], base: np.ndarray) -> float:
    return float(np.median(np.array(mine, float) / base))


def assembled(work: Path) -> dict[str, Any]:
    """The raw file, of all cells that are there."""
    from benchmarks import support_nets as nets
    from hetero.bundle import Bundle

    cells, about = [], {}
    for name in nets.ARCHITECTURES:
        folder = work / name
        if not (folder / "bundle").exists():
            continue
        model = Bundle.load(folder / "bundle", verify=False).manifest.model
        path = folder / "latency.json"
        times = json.loads(path.read_text()) if path.exists() else {"files": {}}
        about[name] = {
            "parameters": model.parameters,
            "macs": model.macs,
            "load_average": times.get("load_average"),
        }
        for format in FORMATS:
            for precision in wanted(format):
                if _cell(folder, format, precision).exists():
                    cell = json.loads(_cell(folder, format, precision).read_text())
                    found = times["files"].get(f"{format} {precision}")
                    cells.append({**cell, "latency": found})
    return {
        "command": "python -m benchmarks.support",
        "size_px": nets.SIZE,
        "dim": nets.DIM,
        "probes": PROBES,
        "calibration": CALIBRATION,
        "rounds": ROUNDS,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "versions": {t: importlib.metadata.version(t) for t in _TOOLS},
        "architectures": about,
        "cells": cells,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    from benchmarks import support_page

    parser = argparse.ArgumentParser(prog="python -m benchmarks.support")
    parser.add_argument("--page", action="store_true", help="only write docs/support.md")
    parser.add_argument("--latency", action="store_true", help="only measure times anew")
    parser.add_argument("--only", nargs="*", help="these architectures")
    parser.add_argument("--precisions", nargs="*", help="these, others later")
    parser.add_argument("--jobs", type=int, default=1, help="architectures at a time")
    args = parser.parse_args(argv)
    if not args.page:
        from benchmarks import support_nets as nets

        work = WORK / "support"
        names = [n for n in nets.ARCHITECTURES if not args.only or n in args.only]
        if args.latency:
            for name in names:  # one at a time: they are to be quiet
                write_json(work / name / "latency.json", timed(work / name / "bundle"))
        else:
            context = get_context("spawn")
            with ProcessPoolExecutor(args.jobs, mp_context=context, max_tasks_per_child=1) as pool:
                for done in [pool.submit(fill, n, work / n, args.precisions) for n in names]:
                    done.result()
        write_json(RAW, assembled(work))
    support_page.PAGE.write_text(support_page.render(json.loads(RAW.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
