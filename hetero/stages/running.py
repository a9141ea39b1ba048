"""Stage: exported files on devices, everything raw kept; the latencies alone make a report too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hetero import check as measuring
from hetero.bundle import Artifact, Bundle
from hetero.check import Place, Reference
from hetero.errors import BundleError, ConfigError
from hetero.passport import DECLARED, Passport, beside, check_file
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
    for item in files:
        _identified(query, item)
    return files


def _identified(query: Bundle, item: Artifact) -> None:
    """Nothing, if the passport beside a file, where there is one, is of this file and bundle.

    Raises:
        BundleError: It is of another file, other weights, another preprocessing or another space.
    """
    path = query.path(item)
    if not beside(path).exists():
        return
    held = Passport.load(beside(path))
    check_file(held, item.sha256, path)
    own = {
        "hetero.space_digest": query.space.digest,
        "hetero.preprocess_sha256": query.preprocess.sha256,
        "hetero.weights_sha256": query.digest,
    }
    for key, text in held.declared().items():
        if text != own[key]:
            raise BundleError(
                f"{beside(path)}: {DECLARED[key]}: {key} is {text[:12]}…, the bundle has "
                f"{own[key][:12]}…; export again"
            )


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
    """Size, load time, latency and memory of a device's run."""
    from hetero import devices

    timing = devices.timing(result)
    out = [
        place.measured("size", item.size_bytes / 2**20, "MiB"),
        place.measured("load_time", result.load_ns / 1e6, "ms", n=1),
        place.measured("first_latency", result.first_ns / 1e6, "ms", n=1),
        place.measured("latency_p50", timing.p50_ns / 1e6, "ms", n=timing.runs),
        place.measured("latency_p90", timing.p90_ns / 1e6, "ms", n=timing.runs),
    ]
    if timing.p99_ns is not None:
        out.append(place.measured("latency_p99", timing.p99_ns / 1e6, "ms", n=timing.runs))
    out.append(place.measured("throughput", timing.throughput_per_s, "1/s", n=timing.runs))
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


def bench(bundle: Bundle, output: Path, options: CheckOptions, *, reporter: Reporter) -> Report:
    """The report of a bundle's exported files' load time, latency and memory on devices.

    The inputs are the bundle's probe pictures; latencies go to `output` one by one.
    """
    from hetero import devices

    files = tuple(f for f in chosen(bundle, options) if f.kind in devices.runnable())
    if not files:
        raise ConfigError(
            f"{bundle.root}: none of the chosen files runs on a worker; "
            f"workers run {', '.join(devices.runnable())}"
        )
    limits = load_limits(options.limits) if options.limits else ()
    probe = bundle.probe()
    measured: list[Measurement] = []
    facts = {
        "command": options.command,
        "model": f"{bundle.manifest.model.backbone}, weights {bundle.digest[:12]}",
    }
    series: dict[str, list[float]] = {}
    with reporter.bar("measure", len(files) * len(options.devices)) as bar:
        for item in files:
            for device in [devices.open_device(name) for name in options.devices]:
                result = devices.run(
                    device,
                    bundle.path(item),
                    item.kind,
                    bundle.inputs(item, probe.pixels),
                    folder=output / "runs",
                    plan=plan_for(options.thorough, options.threads),
                    resume=options.resume,
                )
                place = Place(device.name, item.kind, item.precision)
                measured += performance(place, item, result)
                key = f"{device.name}|{item.kind}|{item.precision}"
                series[f"latency_ms|{key}"] = measuring.points(result.latency_ns / 1e6)
                timing = devices.timing(result)
                facts[f"{item.kind} {item.precision} on {device.name}"] = ", ".join(
                    [
                        f"{timing.validity}{': ' if timing.reason else ''}{timing.reason}",
                        *(
                            f"{k} {v}"
                            for k, v in result.facts.items()
                            if k in ("runtime", "version", "cpu", "threads")
                        ),
                    ]
                )
                bar.advance(1, f"{item.kind} {item.precision}")
    report = Report(
        subject=f"latency of {bundle.manifest.model.backbone}",
        measurements=tuple(measured),
        facts=facts,
        series=series,
    )
    judged = report.judged_by(limits)
    publish(judged, output)
    return judged


def publish(report: Report, folder: Path) -> None:
    """Write report.json, report.md, report.html and junit.xml."""
    from hetero import render

    render.write_all(report, folder)
