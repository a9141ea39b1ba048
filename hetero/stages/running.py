"""Stage: exported files on devices, everything raw kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hetero.bundle import Artifact, Bundle
from hetero.check import Place, Reference
from hetero.errors import ConfigError
from hetero.progress import Reporter
from hetero.report import REFERENCE, Measurement, NotRun, Report, load_limits
from hetero.space import Embeddings
from hetero.stages.stopping import Asked, judged_limits, until_certain

#: Queries given to a reference execution (an interpreter is slow and its times mean nothing).
REFERENCE_QUERIES = 1000


@dataclass(frozen=True)
class CheckOptions:
    """How to check.

    Attributes:
        devices: Names as `hetero.devices.open_device` takes them.
        limits: A file of one's own, or None for the built-in limits.
        thorough: "quick", "normal" or "long" latency measurement.
        threads: Of the runtime on the device.
        formats, precisions: Only these exported files; empty for all.
        resume: Take over device runs that are already on disk and still fit.
        sequential: Ask a device only until the verdict is certain: see `hetero.sequential`.
        command: For the record.
    """

    devices: tuple[str, ...] = ("local",)
    limits: Path | None = None
    thorough: str = "normal"
    threads: int = 1
    formats: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    resume: bool = False
    sequential: bool = False
    command: str = ""


@dataclass(frozen=True, eq=False)
class Ran:
    """One file, run once."""

    place: Place
    file: Artifact
    vectors: Embeddings
    whole: bool
    measured: tuple[Measurement, ...]
    latency_ms: Float32[np.ndarray, " m"] | None
    facts: Mapping[str, str]
    asked: Asked | None = None


def plan_for(thorough: str, threads: int) -> Any:
    """The device plan of this name."""
    from hetero.devices import Plan

    if thorough == "quick":
        return Plan.quick(threads)
    if thorough == "long":
        return Plan.thorough(threads)
    if thorough != "normal":
        raise ConfigError(f"unknown length {thorough!r}; there are quick, normal, long")
    return Plan(warmup_runs=50, warmup_s=0.5, min_runs=1000, min_s=3.0, max_s=60.0, threads=threads)


def chosen(query: Bundle, options: CheckOptions) -> tuple[Artifact, ...]:
    """The exported files that the options leave.

    Raises:
        ConfigError: None.
    """
    files = tuple(
        f
        for f in query.exported()
        if (not options.formats or f.kind in options.formats)
        and (not options.precisions or f.precision in options.precisions)
    )
    if not files:
        have = ", ".join(f"{f.kind} {f.precision}" for f in query.exported()) or "none"
        raise ConfigError(
            f"{query.root}: no exported file to check (there are: {have}); "
            "run `hetero export` first, or widen --format and --precision"
        )
    return files


def run_files(
    query: Bundle,
    files: Sequence[Artifact],
    reference: Reference,
    pictures: Mapping[str, UInt8[np.ndarray, "s s 3"]],
    output: Path,
    options: CheckOptions,
    reporter: Reporter,
) -> list[Ran]:
    """Every file on every device that can run it; reference execution where none can."""
    from hetero import devices

    opened = [devices.open_device(name) for name in options.devices]
    runs: list[Ran] = []
    with reporter.bar("run", len(files)) as bar:
        for item in files:
            # One device for each, or none: then the file is read by reference.
            for device in opened if item.kind in devices.runnable() else [None]:
                if device is None:
                    ran = _by_reference(query, item, reference, pictures)
                else:
                    ran = _on_device(query, item, device, reference, pictures, output, options)
                name = f"{ran.place.device}-{item.kind}-{item.precision}.safetensors"
                ran.vectors.save(output / "embeddings" / name)
                runs.append(ran)
            bar.advance(1, f"{item.kind} {item.precision}")
    return runs


def _on_device(
    query: Bundle,
    item: Artifact,
    device: Any,
    reference: Reference,
    pictures: Mapping[str, UInt8[np.ndarray, "s s 3"]],
    output: Path,
    options: CheckOptions,
) -> Ran:
    from hetero import devices

    def embedder(plan: Any) -> devices.DeviceEmbedder:
        return devices.DeviceEmbedder(
            device, query, item, folder=output / "runs", plan=plan, resume=options.resume
        )

    timed = embedder(plan_for(options.thorough, options.threads))
    # Only the first chunk of a stopped run is warmed up and measures latency.
    untimed = embedder(devices.Plan(0, 0.0, 0, 0.0, threads=options.threads))

    def ask(ids: Sequence[str], timing: bool) -> Embeddings:
        pixels = np.stack([pictures[i] for i in ids])
        return (timed if timing else untimed).embed(tuple(ids), pixels)

    place = Place(device.name, item.kind, item.precision)
    limits = judged_limits(load_limits(options.limits), place) if options.sequential else ()
    if limits:
        asked = until_certain(
            reference,
            limits,
            ask,
            output / "sequential" / f"{device.name}-{item.kind}-{item.precision}",
            {"file": item.sha256, "space": query.space.digest, "reference": query.digest},
            resume=options.resume,
        )
        vectors, whole = asked.vectors, asked.whole
    else:
        asked, vectors, whole = None, ask(reference.task.ids, True), True
    result = timed.result
    return Ran(
        place,
        item,
        vectors,
        whole,
        tuple(performance(place, item, result)),
        (result.latency_ns / 1e6).astype(np.float32),
        {**result.facts, "execution": device.execution},
        asked,
    )


def _by_reference(
    query: Bundle,
    item: Artifact,
    reference: Reference,
    pictures: Mapping[str, UInt8[np.ndarray, "s s 3"]],
) -> Ran:
    """The file by this machine's own reading of it: right or wrong, but never a time."""
    from hetero import export

    queries = reference.task.query_ids
    picked = np.linspace(0, len(queries) - 1, min(REFERENCE_QUERIES, len(queries)))
    ids = tuple(queries[i] for i in sorted({int(p) for p in picked}))
    device = REFERENCE if export.module(item.kind).RUNS_HERE else "this machine"
    with export.FileEmbedder(query, item) as embedder:
        vectors = embedder.embed(ids, np.stack([pictures[i] for i in ids]))
        runtime = embedder.runtime
    place = Place(device, item.kind, item.precision)
    size = place.measured("size", item.size_bytes / 2**20, "MiB")
    return Ran(
        place, item, vectors, False, (size,), None, {"runtime": runtime, "execution": device}
    )


def performance(place: Place, item: Artifact, result: Any) -> list[Measurement]:
    """Size, load time, latency and memory of a device's run, with doubts where there are any."""
    from hetero import devices

    timing = devices.timing(result)
    word = "invalid" if timing.validity == "emulated" else timing.validity
    doubt = "" if timing.validity == "clean" else f"{word}: {timing.reason}"
    out = [
        place.measured("load_time", result.load_ns / 1e6, "ms", n=1),
        place.measured("first_latency", result.first_ns / 1e6, "ms", n=1),
        place.measured("latency_p50", timing.p50_ns / 1e6, "ms", n=timing.runs),
        place.measured("latency_p90", timing.p90_ns / 1e6, "ms", n=timing.runs),
    ]
    if timing.p99_ns is not None:
        out.append(place.measured("latency_p99", timing.p99_ns / 1e6, "ms", n=timing.runs))
    out.append(place.measured("throughput", timing.throughput_per_s, "1/s", n=timing.runs))
    out = [replace(m, doubt=doubt) for m in out]
    out.insert(0, place.measured("size", item.size_bytes / 2**20, "MiB"))
    if result.peak_memory_bytes:
        out.append(place.measured("peak_memory", result.peak_memory_bytes / 2**20, "MiB"))
    return out


def not_run(files: Sequence[Artifact], runs: Sequence[Ran]) -> tuple[NotRun, ...]:
    """The files that no runtime of their own executed, and why."""
    from hetero import export

    done = {(r.place.format, r.place.precision) for r in runs if r.place.device != REFERENCE}
    return tuple(
        NotRun(f.kind, f.precision, "its own runtime", export.module(f.kind).RUNS_HERE)
        for f in files
        if (f.kind, f.precision) not in done
    )


def publish(report: Report, folder: Path) -> None:
    """Write report.json, report.md, report.html and junit.xml."""
    from hetero import render

    render.write_all(report, folder)
