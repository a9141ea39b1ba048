"""The stream beside the model alone and the decoder alone, and its growth with the collection."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bulk.interrupt import embed_command

#: JPEGs in a folder; what is above that many distinct ones is hard links to them.
FOLDER = 1000


def make_pictures(folder: Path, spec: str, count: int, source_px: int, distinct: int) -> Path:
    """So many JPEG files of real pictures, square, of this side, quality 90."""
    from PIL import Image

    from hetero import data

    images = data.load(spec)
    rows = np.linspace(0, len(images) - 1, min(distinct, count, len(images))).astype(int)
    originals: list[Path] = []
    for n in range(count):
        path = folder / f"{n // FOLDER:04}" / f"{n:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if n < len(rows):
            picture = Image.fromarray(images.read(int(rows[n])))
            picture.resize((source_px, source_px), Image.Resampling.BICUBIC).save(path, quality=90)
            originals.append(path)
        else:
            os.link(originals[n % len(originals)], path)
    return folder


def make_bundle(folder: Path, backbone: str, size_px: int, dim: int) -> Any:
    """A bundle of an untrained net with its fp32 ONNX file: speed asks for no training."""
    import torch

    from hetero import export, models
    from hetero.preprocess import Preprocess
    from hetero.space import Space

    torch.manual_seed(0)
    net = models.build(backbone, dim, size_px).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (8, size_px, size_px, 3), dtype=np.uint8)
    made = models.as_it_is(
        folder, net, backbone, Space("speed", "0" * 64, dim), Preprocess(size_px), pixels
    )
    return export.export(made, "onnx", "fp32")


def together(work: Callable[..., None], processes: int, rows: int, *words: Any) -> float:
    """Pictures a second of so many processes that all begin at the same moment."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=_timed, args=(work, rows, barrier, queue, words))
        for _ in range(processes)
    ]
    for process in started:
        process.start()
    times = [queue.get() for _ in started]
    for process in started:
        process.join()
    return processes * rows / (max(t[1] for t in times) - min(t[0] for t in times))


def _timed(work: Any, rows: int, barrier: Any, queue: Any, words: tuple[Any, ...]) -> None:
    run = work(rows, *words)
    next(run)
    barrier.wait()
    begun = time.monotonic()
    for _ in run:
        pass
    queue.put((begun, time.monotonic()))


def model_alone(rows: int, bundle: str, pixels: str, batch: int) -> Any:
    """The model file on pictures that are decoded and in memory already.

    In batches as large as the stream's, since its speed depends on that.
    """
    from hetero.bundle import Bundle
    from hetero.stages.bulk import file_of
    from hetero.stages.sharding import embedder_of

    array = np.load(pixels)
    made = Bundle.load(Path(bundle))
    with embedder_of(made, file_of(made, format="onnx")) as embedder:
        embedder.embed([str(n) for n in range(8)], array[:8])
        yield
        for begin in range(0, rows, batch):
            at = begin % max(1, len(array) - batch + 1)
            part = array[at : at + min(batch, rows - begin)]
            embedder.embed([str(n) for n in range(len(part))], part)
            yield


def decoder_alone(rows: int, bundle: str, pictures: str) -> Any:
    """Files read, decoded and brought to the model's size, and no model."""
    from hetero.bundle import Bundle
    from hetero.preprocess import decode

    preprocess = Bundle.load(Path(bundle)).preprocess
    files = sorted(Path(pictures).rglob("*.jpg"))
    preprocess.pixels(decode(files[0]))
    yield
    for n in range(rows):
        preprocess.pixels(decode(files[n % len(files)].read_bytes()))
    yield


def stream(
    bundle: Path, pictures: Path, out: Path, workers: int, decoders: int, shard_rows: int
) -> dict[str, float]:
    """One `hetero embed` from files to a verified folder.

    Returns:
        "images_per_s" between the ledger's lines, without loading and verifying; "wall_s" and
        "cpu_s" of the whole command; "rows"; peak memory in bytes of the main process and of the
        largest worker.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = embed_command(
        bundle, str(pictures), "--format", "onnx", "--shard-rows", str(shard_rows),
        "--workers", str(workers), "--decoders", str(decoders), "-o", str(out), "-q",
    )  # fmt: skip
    begun = time.monotonic()
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    main, worker = _watched(run)
    _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - begun
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {run.returncode}")
    lines = sorted((out / "ledger").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
    times = [p.stat().st_mtime_ns / 1e9 for p in lines]
    sizes = [_rows(p) for p in lines]
    # The first shard of every worker began before the first line.
    skip = min(workers, len(lines) - 1)
    span = times[-1] - times[skip - 1] if skip else wall
    return {
        "rows": sum(sizes),
        "images_per_s": sum(sizes[skip:]) / span if span > 0 else float("nan"),
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "main_peak_bytes": main,
        "worker_peak_bytes": worker,
    }


def _rows(line: Path) -> int:
    import json

    found = json.loads(line.read_text())
    return int(found["rows"]) + len(found["skipped"])


def _watched(run: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Peak resident memory of a command and of its largest worker, looked at ten times a second."""
    import psutil

    most = [0, 0]
    root = psutil.Process(run.pid)
    while True:
        try:
            if root.status() == psutil.STATUS_ZOMBIE:
                return most[0], most[1]
            most[0] = max(most[0], root.memory_info().rss)
            for child in root.children(recursive=True):
                most[1] = max(most[1], child.memory_info().rss)
        except psutil.Error:
            if not psutil.pid_exists(run.pid):
                return most[0], most[1]
        time.sleep(0.1)


def rates(
    folder: Path, backbone: str, size_px: int, pictures: Path, rows: int, repeats: int, cores: int
) -> dict[str, Any]:
    """Model alone, decoder alone and stream of one model, in turns, so that all see the same noise.

    Each side runs once with one worker, which has a thread to decode beside the model's, and once
    with as many as there are cores.
    """
    from hetero.preprocess import decode
    from hetero.stages.sharding import batch_of

    bundle = make_bundle(folder / "bundle", backbone, size_px, 128)
    files = sorted(pictures.rglob("*.jpg"))[:512]
    array = np.stack([bundle.preprocess.pixels(decode(f)) for f in files])
    np.save(folder / "pixels.npy", array)
    root, pixels = str(bundle.root), str(folder / "pixels.npy")
    shard_rows = max(16, rows // (16 * cores))
    batch = min(shard_rows, batch_of(bundle.preprocess))
    found: list[dict[str, Any]] = []
    for repeat in range(repeats):
        for workers in sorted({1, cores}):
            share = max(1, rows // workers)
            found.append(
                {
                    "repeat": repeat,
                    "workers": workers,
                    "model": together(model_alone, workers, share, root, pixels, batch),
                    "decoder": together(decoder_alone, workers, share, root, str(pictures)),
                    "stream": stream(bundle.root, pictures, folder / "out", workers, 1, shard_rows),
                }
            )
            print(f"{backbone} {size_px} px, {workers} workers: {found[-1]}", flush=True)
    stored = [p for p in (folder / "out").rglob("*") if p.is_file()]
    return {
        "backbone": backbone,
        "size_px": size_px,
        "dim": 128,
        "macs": bundle.manifest.model.macs,
        "bytes_per_row": sum(p.stat().st_size for p in stored) / found[-1]["stream"]["rows"],
        "runs": found,
    }
