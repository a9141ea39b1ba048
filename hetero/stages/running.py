"""Stage: exported files on devices, everything raw kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from hetero.bundle import Artifact, Bundle
from hetero.check import Place, Reference
from hetero.errors import BundleError, ConfigError
from hetero.passport import DECLARED, Passport, beside, check_file
from hetero.report import REFERENCE, Measurement, Report, load_limits
from hetero.space import Embeddings
from hetero.stages.stopping import Asked, judged_limits, until_certain

if TYPE_CHECKING:
    from hetero.devices import Inventory

#: Queries given to a reference execution (an interpreter is slow and its times mean nothing).
REFERENCE_QUERIES = 1000
#: Queries given to an emulated device, which takes a hundred times as long as the real one.
EMULATED_QUERIES = 400


@dataclass(frozen=True)
class CheckOptions:
    """How to check.

    Attributes:
        devices: Names as `hetero.devices.open_device` takes them.
        inventory: Where names of one's own are looked up.
        limits: A file of one's own, or None for the built-in limits.
        thorough: "quick", "normal" or "long" latency measurement.
        threads: Of the runtime on the device.
        formats, precisions: Only these exported files; empty for all.
        resume: Take over device runs that are already on disk and still fit.
        sequential: Ask a device only until the verdict is certain: see `hetero.sequential`.
        command: For the record.
        baseline: An earlier run's folder or report.json, to be held to as well.
    """

    devices: tuple[str, ...] = ("local",)
    inventory: Inventory | None = None
    limits: Path | None = None
    thorough: str = "normal"
    threads: int = 1
    formats: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    resume: bool = False
    sequential: bool = False
    command: str = ""
    baseline: Path | None = None


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


def untimed(threads: int) -> Any:
    """The device plan that embeds and measures no latency."""
    from hetero.devices import Plan

    return Plan(0, 0.0, 0, 0.0, threads=threads)


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


def on_device(
    query: Bundle,
    item: Artifact,
    device: Any,
    reference: Reference,
    pictures: Mapping[str, UInt8[np.ndarray, "s s 3"]],
    output: Path,
    options: CheckOptions,
    heard: Callable[[Mapping[str, Any], int], None] | None = None,
) -> Ran:
    """One file run by one device.

    Args:
        query: Whose file it is.
        item: Which.
        device: From `hetero.devices.open_device`, and able to run the format.
        reference: Which pictures, and what the answer is held to while it comes in.
        pictures: Pixels by id.
        output: Folder for everything raw.
        options: How to check.
        heard: Called with each event of the worker, and the rows that it was asked for.

    Raises:
        DeviceError: The device, or the way to it, failed.
        BundleError: Its runtime refuses the file.
    """
    from hetero import devices

    rows = 0

    def on_event(event: Mapping[str, Any]) -> None:
        if heard is not None:
            heard(event, rows)

    def embedder(plan: Any) -> devices.DeviceEmbedder:
        return devices.DeviceEmbedder(
            device,
            query,
            item,
            folder=output / "runs",
            plan=plan,
            resume=options.resume,
            on_event=on_event,
        )

    native = device.execution == "native"
    # Only the first chunk of a stopped run is warmed up and measures latency.
    later = embedder(untimed(options.threads))
    first = embedder(plan_for(options.thorough, options.threads)) if native else later

    def ask(ids: Sequence[str], timing: bool) -> Embeddings:
        nonlocal rows
        rows = len(ids)
        pixels = np.stack([pictures[i] for i in ids])
        return (first if timing else later).embed(tuple(ids), pixels)

    place = Place(device.name, item.kind, item.precision)
    limits = judged_limits(load_limits(options.limits), place) if options.sequential else ()
    if limits:
        asked = until_certain(
            reference,
            limits,
            ask,
            output / "sequential" / file_name(place),
            {"file": item.sha256, "space": query.space.digest, "reference": query.digest},
            resume=options.resume,
        )
        vectors, whole = asked.vectors, asked.whole
    else:
        ids = reference.task.ids if native else some_queries(reference, EMULATED_QUERIES)
        asked, vectors, whole = None, ask(ids, True), native
    result = first.result
    # A board may turn out to be an emulator only now.
    execution = result.facts.get("execution", device.execution)
    facts = {**result.facts, "execution": execution}
    if execution != "native":
        facts["execution"] += ": numerics only"
        facts["queries"] = f"{len(vectors.ids)} of {len(reference.task.query_ids)}"
    return Ran(
        place,
        item,
        vectors,
        whole,
        tuple(performance(place, item, result)),
        (result.latency_ns / 1e6).astype(np.float32),
        facts,
        asked,
    )


def file_name(place: Place) -> str:
    """A name for files of this place; an address may hold what a file name may not."""
    plain = re.sub(r"[^\w:=,.@+-]", "-", place.device)
    return f"{plain}-{place.format}-{place.precision}"


def by_reference(
    query: Bundle,
    item: Artifact,
    reference: Reference,
    pictures: Mapping[str, UInt8[np.ndarray, "s s 3"]],
) -> Ran:
    """The file by this machine's own reading of it: right or wrong, but never a time."""
    from hetero import export

    ids = some_queries(reference, REFERENCE_QUERIES)
    device = REFERENCE if export.module(item.kind).RUNS_HERE else "this machine"
    with export.FileEmbedder(query, item) as embedder:
        vectors = embedder.embed(ids, np.stack([pictures[i] for i in ids]))
        runtime = embedder.runtime
    place = Place(device, item.kind, item.precision)
    size = place.measured("size", item.size_bytes / 2**20, "MiB")
    return Ran(
        place, item, vectors, False, (size,), None, {"runtime": runtime, "execution": device}
    )


def some_queries(reference: Reference, count: int) -> tuple[str, ...]:
    """At most this many queries of the task, evenly taken from all of it, so from most classes."""
    queries = reference.task.query_ids
    picked = np.linspace(0, len(queries) - 1, min(count, len(queries)))
    return tuple(queries[i] for i in sorted({int(p) for p in picked}))


def performance(place: Place, item: Artifact, result: Any) -> list[Measurement]:
    """Size, load time, latency and memory of a device's run, with doubts where there are any.

    Of an emulated one the size alone.
    """
    from hetero import devices

    size = place.measured("size", item.size_bytes / 2**20, "MiB")
    if result.conditions.execution != "native":
        return [size]
    timing = devices.timing(result)
    word = "invalid" if timing.validity == "emulated" else timing.validity
    doubt = "" if timing.validity == "clean" else f"{word}: {timing.reason}"
    out = [
        size,
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


def publish(report: Report, folder: Path) -> None:
    """Write report.json, report.md, report.html and junit.xml."""
    from hetero import render

    render.write_all(report, folder)
