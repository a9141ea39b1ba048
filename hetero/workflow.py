"""The stages end to end: what the command line calls, and what joins formats and devices to the core.

With `cli` this is the only module of the core that knows of exports and devices, and it imports them when
asked.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hetero import check as measuring
from hetero import data
from hetero._files import make_folder
from hetero.bundle import Artifact, Bundle
from hetero.check import Place, Reference
from hetero.data import Images, Split
from hetero.embedder import Embedder
from hetero.errors import ConfigError, DataError, SpaceMismatchError
from hetero.evaluate import Task, raw_pixels, task
from hetero.progress import Reporter
from hetero.report import Limit, Measurement, NotRun, Report, load_limits
from hetero.space import Embeddings

#: Training pictures given to int8 calibration.
CALIBRATION = 256
#: Queries given to a reference execution (an interpreter is slow and its times mean nothing).
REFERENCE_QUERIES = 200


def embed(
    bundle: Bundle, images: Images, rows: Sequence[int], reporter: Reporter
) -> tuple[Embeddings, UInt8[np.ndarray, "n s s 3"]]:
    """The bundle's PyTorch vectors of these pictures, and the pixels they were made from."""
    from hetero import models

    embedder: Embedder = models.TorchEmbedder(bundle)
    pixels = images.pixels(rows, bundle.preprocess)
    ids = [images.ids[r] for r in rows]
    parts: list[Embeddings] = []
    with reporter.bar(f"embed with the {bundle.role} model", len(rows)) as bar:
        for at in range(0, len(rows), 256):
            parts.append(embedder.embed(ids[at : at + 256], pixels[at : at + 256]))
            bar.advance(len(parts[-1]))
    vectors = np.concatenate([p.vectors for p in parts])
    return Embeddings(embedder.space, tuple(ids), vectors, embedder.name), pixels


def calibration_pixels(bundle: Bundle, images: Images) -> UInt8[np.ndarray, "n s s 3"]:
    """Training pictures for int8, spread evenly over the training rows."""
    rows = images.rows("train")
    if not rows:
        raise DataError(f"{images.name}: no training picture to calibrate int8 with")
    some = sorted({int(i) for i in np.linspace(0, len(rows) - 1, min(CALIBRATION, len(rows)))})
    return images.pixels([rows[i] for i in some], bundle.preprocess)


def export_all(
    bundle: Bundle,
    formats: Sequence[str],
    precisions: Sequence[str],
    *,
    images: Images | None,
    bake: bool,
    batch: int | None,
    resume: bool,
    reporter: Reporter,
) -> Bundle:
    """The bundle with every format × precision exported, each proved on the probe.

    Args:
        bundle: Of a query (or gallery) model.
        formats, precisions: Which; see `hetero.export`.
        images: For int8 calibration; needed only then.
        bake: Put preprocessing into the files.
        batch: Pictures a call; None for what the format likes.
        resume: Leave files alone that are there already and still from these weights.
        reporter: Told what happens.
    """
    from hetero import export

    wanted = [(f, p) for f in formats for p in precisions]
    for name in formats:
        export.module(name)
    calibration = None
    if "int8" in precisions:
        if images is None:
            raise ConfigError("int8 needs calibration pictures; name a collection with --data")
        calibration = calibration_pixels(bundle, images)
    with reporter.bar("export", len(wanted)) as bar:
        for format, precision in wanted:
            have = any(
                f.kind == format and f.precision == precision and (f.input == "uint8_nhwc") == bake
                for f in bundle.exported()
            )
            if not (resume and have):
                bundle = export.export(
                    bundle,
                    format,
                    precision,
                    calibration=calibration if precision == "int8" else None,
                    bake=bake,
                    batch=batch,
                    on_line=reporter.line,
                )
            bar.advance(1, f"{format} {precision}")
    return bundle


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
        command: For the record.
    """

    devices: tuple[str, ...] = ("local",)
    limits: Path | None = None
    thorough: str = "normal"
    threads: int = 1
    formats: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    resume: bool = False
    command: str = ""


def check(
    query: Bundle,
    gallery: Bundle,
    images: Images,
    output: Path,
    options: CheckOptions,
    *,
    control: Bundle | None = None,
    reporter: Reporter,
) -> Report:
    """The report of a query bundle's exported files, run on devices and searched in the gallery.

    Everything raw goes to `output` before it is judged: embeddings/*.safetensors and the run folders
    with every latency. Then report.json, report.md, report.html and junit.xml.

    Args:
        query: With exported files.
        gallery: Whose space the query model was trained into.
        images: Its test split is used.
        output: Folder for results.
        options: Devices, limits, length.
        control: An independently trained model of the query model's architecture.
        reporter: Shows progress.

    Raises:
        SpaceMismatchError: The query bundle belongs to another gallery model.
        DataError: A test class was trained on, or nothing can be evaluated.
        DeviceError: A device failed; what was measured before is on disk.
    """
    limits = load_limits(options.limits)
    gallery.space.must_match(query.space, f"query bundle {query.root}")
    if query.preprocess != gallery.preprocess:
        raise SpaceMismatchError(
            f"{query.root}: its preprocessing differs from that of {gallery.root}; train it again"
        )
    files = _chosen(query, options)
    job = task(images, "test")
    for bundle in filter(None, (query, gallery, control)):
        _unseen(bundle, images)
    make_folder(output)
    reference, pictures, measured = _in_pytorch(query, gallery, control, images, job, reporter)
    store = output / "embeddings"
    reference.gallery.save(store / "gallery.safetensors")
    reference.query.save(store / "query-pytorch-fp32.safetensors")
    runs = _run_files(query, files, reference, pictures, output, options, reporter)
    series: dict[str, list[float]] = {}
    shown: list[dict[str, Any]] = []
    worst: tuple[float, _Ran, Reference] | None = None
    with reporter.bar("judge", len(runs)) as bar:
        for run in runs:
            held = reference if run.whole else reference.only(run.vectors.ids)
            found = measuring.file(held, run.place, run.vectors)
            measured += [*found, *run.measured]
            key = f"{run.place.device}|{run.place.format}|{run.place.precision}"
            if run.latency_ms is not None and len(run.latency_ms):
                series[f"latency_ms|{key}"] = measuring.points(run.latency_ms)
            cosine = _cosines(held, run.vectors)
            series[f"cosine|{key}"] = measuring.points(cosine)
            flipped = next(m.value for m in found if m.name == "query_negative_flip_rate")
            if worst is None or (flipped, -cosine.min()) > (worst[0], -_cosines(worst[2], worst[1].vectors).min()):
                worst = (flipped, run, held)
            bar.advance(1)
    if worst is not None:
        shown = measuring.examples(worst[2], worst[1].place, worst[1].vectors, pictures)
    report = Report(
        subject=f"{query.manifest.model.backbone} ({query.manifest.recipe.get('method', '')}) "
        f"searching the index of {gallery.manifest.model.backbone} on {images.name}",
        measurements=tuple(measured),
        facts=_facts(query, gallery, control, images, job, runs, options),
        not_run=_not_run(files, runs),
        examples=tuple(shown),
        series=series,
    )
    judged = report.judged_by(_fitting(limits, report, options.limits))
    publish(judged, output)
    return judged


def publish(report: Report, folder: Path) -> None:
    """Write report.json, report.md, report.html and junit.xml."""
    from hetero import render

    render.write_all(report, folder)


def judge_again(folder: Path, limits: Path | None) -> Report:
    """A stored report judged by these limits (or as it was judged) and written again."""
    report = Report.load(folder / "report.json")
    if limits is not None:
        plain: list[Measurement] = []
        for m in report.measurements:
            bare = replace(m, limit=None, outcome="unjudged")
            if bare not in plain:
                plain.append(bare)
        report = replace(report, measurements=tuple(plain)).judged_by(load_limits(limits))
    publish(report, folder)
    return report


# -- the pieces of a check ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Ran:
    """One file, run once."""

    place: Place
    file: Artifact
    vectors: Embeddings
    whole: bool
    measured: tuple[Measurement, ...]
    latency_ms: Float32[np.ndarray, " m"] | None
    facts: Mapping[str, str]


def _chosen(query: Bundle, options: CheckOptions) -> tuple[Artifact, ...]:
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


def _unseen(bundle: Bundle, images: Images) -> None:
    """Refuses to score a model on classes it was trained on."""
    seen = set(bundle.train_classes())
    both = sorted(seen & set(images.classes("test")))
    if both:
        raise DataError(
            f"{bundle.root}: {len(both)} test classes of {images.name} were trained on (first "
            f"{both[0]!r}), so a score on them would mean nothing; use the collection and split it "
            "was trained with, or other data"
        )


def _in_pytorch(
    query: Bundle,
    gallery: Bundle,
    control: Bundle | None,
    images: Images,
    job: Task,
    reporter: Reporter,
) -> tuple[Reference, dict[str, UInt8[np.ndarray, "s s 3"]], list[Measurement]]:
    """Both models' vectors, the pictures by id, and what the models do without any export."""
    theirs, pixels = embed(gallery, images, job.rows, reporter)
    ours, _ = embed(query, images, job.rows, reporter)
    alone = None
    if control is not None:
        if control.space.dim != gallery.space.dim:
            raise SpaceMismatchError(
                f"{control.root}: the control model has dim {control.space.dim}, the gallery "
                f"{gallery.space.dim}; train it with --dim {gallery.space.dim}"
            )
        alone, _ = embed(control, images, job.rows, reporter)
    reference = Reference.make(job, theirs, ours)
    ratio = gallery.manifest.model.macs / max(1, query.manifest.model.macs)
    measured = measuring.models(
        reference, pixels=raw_pixels(job.ids, pixels), control=alone, compute_ratio=ratio
    )
    return reference, dict(zip(job.ids, pixels, strict=True)), measured


def _run_files(
    query: Bundle,
    files: Sequence[Artifact],
    reference: Reference,
    pictures: Mapping[str, UInt8[np.ndarray, "s s 3"]],
    output: Path,
    options: CheckOptions,
    reporter: Reporter,
) -> list[_Ran]:
    """Every file on every device that can run it; reference execution where none can."""
    from hetero import devices

    opened = [devices.open_device(name) for name in options.devices]
    runs: list[_Ran] = []
    with reporter.bar("run", len(files)) as bar:
        for item in files:
            if item.kind in devices.runnable():
                for device in opened:
                    runs.append(_on_device(query, item, device, reference, pictures, output, options))
            else:
                runs.append(_by_reference(query, item, reference, pictures))
            last = runs[-1]
            last.vectors.save(
                output / "embeddings" / f"{last.place.device}-{item.kind}-{item.precision}.safetensors"
            )
            bar.advance(1, f"{item.kind} {item.precision}")
    return runs


def _on_device(
    query: Bundle,
    item: Artifact,
    device: Any,  # noqa: ANN401 (hetero.devices.Device; naming it would import devices early)
    reference: Reference,
    pictures: Mapping[str, UInt8[np.ndarray, "s s 3"]],
    output: Path,
    options: CheckOptions,
) -> _Ran:
    from hetero import devices

    ids = reference.task.ids
    embedder = devices.DeviceEmbedder(
        device,
        query,
        item,
        folder=output / "runs",
        plan=plan_for(options.thorough, options.threads),
        resume=options.resume,
    )
    vectors = embedder.embed(ids, np.stack([pictures[i] for i in ids]))
    result = embedder.result
    place = Place(device.name, item.kind, item.precision)
    return _Ran(
        place,
        item,
        vectors,
        True,
        tuple(performance(place, item, result)),
        (result.latency_ns / 1e6).astype(np.float32),
        {**result.facts, "execution": device.execution},
    )


def performance(place: Place, item: Artifact, result: Any) -> list[Measurement]:  # noqa: ANN401
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


def plan_for(thorough: str, threads: int) -> Any:  # noqa: ANN401
    """The device plan of this name."""
    from hetero.devices import Plan

    if thorough == "quick":
        return Plan.quick(threads)
    if thorough == "long":
        return Plan.thorough(threads)
    if thorough != "normal":
        raise ConfigError(f"unknown length {thorough!r}; there are quick, normal, long")
    return Plan(warmup_runs=50, warmup_s=0.5, min_runs=1000, min_s=3.0, max_s=60.0, threads=threads)


def _by_reference(
    query: Bundle,
    item: Artifact,
    reference: Reference,
    pictures: Mapping[str, UInt8[np.ndarray, "s s 3"]],
) -> _Ran:
    """The file by this machine's own reading of it: right or wrong, but never a time."""
    from hetero import export

    queries = reference.task.query_ids
    picked = np.linspace(0, len(queries) - 1, min(REFERENCE_QUERIES, len(queries)))
    ids = tuple(queries[i] for i in sorted({int(p) for p in picked}))
    device = "reference" if export.module(item.kind).RUNS_HERE else "this machine"
    with export.FileEmbedder(query, item) as embedder:
        vectors = embedder.embed(ids, np.stack([pictures[i] for i in ids]))
        runtime = embedder.runtime
    place = Place(device, item.kind, item.precision)
    size = place.measured("size", item.size_bytes / 2**20, "MiB")
    return _Ran(place, item, vectors, False, (size,), None, {"runtime": runtime, "execution": device})


def _cosines(held: Reference, vectors: Embeddings) -> Float32[np.ndarray, " n"]:
    ids = held.task.query_ids
    a, b = held.query.take(ids), vectors.take(ids)
    return np.einsum("nd,nd->n", a.vectors, b.vectors)


def _not_run(files: Sequence[Artifact], runs: Sequence[_Ran]) -> tuple[NotRun, ...]:
    from hetero import export

    done = {(r.place.format, r.place.precision) for r in runs if r.place.device != "reference"}
    return tuple(
        NotRun(f.kind, f.precision, "any", export.module(f.kind).RUNS_HERE)
        for f in files
        if (f.kind, f.precision) not in done
    )


def _fitting(
    limits: Sequence[Limit], report: Report, own: Path | None
) -> tuple[Limit, ...]:
    """One's own limits as they are; of the built-in ones those that have something to lie on."""
    if own is not None:
        return tuple(limits)
    return tuple(x for x in limits if any(x.covers(m) for m in report.measurements))


def _facts(
    query: Bundle,
    gallery: Bundle,
    control: Bundle | None,
    images: Images,
    job: Task,
    runs: Sequence[_Ran],
    options: CheckOptions,
) -> dict[str, str]:
    facts = {
        "command": options.command,
        "space": gallery.space.id,
        "gallery model": f"{gallery.manifest.model.backbone}, weights {gallery.digest[:12]}",
        "query model": f"{query.manifest.model.backbone}, weights {query.digest[:12]}",
    }
    if control is not None:
        facts["control model"] = f"{control.manifest.model.backbone}, weights {control.digest[:12]}"
    for name, bundle in (("gallery", gallery), ("query", query), ("control", control)):
        if bundle is not None:
            m = bundle.manifest
            facts[f"{name} size"] = f"{m.model.parameters:,} parameters, {m.model.macs / 1e6:.2f} MMAC"
            facts[f"{name} training"] = (
                f"{m.recipe.get('method')}, {m.recipe.get('train.epochs')} epochs, "
                f"seed {m.recipe.get('train.seed')}"
            )
    facts |= {
        "data": f"{images.name}, split checksum {images.digest[:12]}",
        "test classes": str(len(images.classes("test"))),
        "queries": str(len(job.query_ids)),
        "gallery pictures": str(len(job.gallery_ids)),
        "skipped files": str(len(images.skipped)),
        "limits": str(options.limits or "built in"),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "hetero": _version("hetero"),
        "torch": _version("torch"),
    }
    for run in runs:
        p = run.place
        facts[f"{p.format} {p.precision} on {p.device}"] = f"SHA-256 {run.file.sha256[:12]}, " + ", ".join(
            f"{k} {run.facts[k]}"
            for k in ("runtime", "version", "execution", "threads", "cpu")
            if k in run.facts
        )
    return facts


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def load_images(spec: str, bundle: Bundle | None = None) -> Images:
    """The collection of this name, or, for an empty one, that a bundle was trained on."""
    if not spec and bundle is not None:
        spec = str(bundle.manifest.data.get("source", ""))
    if not spec:
        raise ConfigError("name a collection of pictures with --data")
    return data.load(spec)


def embed_split(
    bundle: Bundle, images: Images, split: Split | None, output: Path, reporter: Reporter
) -> Embeddings:
    """The vectors of a split (or of everything), written to a safetensors file."""
    rows = images.rows(split) if split else tuple(range(len(images)))
    if not rows:
        raise DataError(f"{images.name}: the {split} split is empty")
    made, _ = embed(bundle, images, rows, reporter)
    made.save(output)
    return made


def bench(bundle: Bundle, output: Path, options: CheckOptions, *, reporter: Reporter) -> Report:
    """The report of a bundle's exported files' load time, latency and memory on devices.

    The inputs are the bundle's probe pictures; latencies go to `output` one by one.
    """
    from hetero import devices

    files = tuple(f for f in _chosen(bundle, options) if f.kind in devices.runnable())
    if not files:
        raise ConfigError(
            f"{bundle.root}: none of the chosen files runs on a worker; "
            f"workers run {', '.join(devices.runnable())}"
        )
    limits = load_limits(options.limits) if options.limits else ()
    probe = bundle.probe()
    measured: list[Measurement] = []
    facts = {"command": options.command, "model": f"{bundle.manifest.model.backbone}, weights {bundle.digest[:12]}"}
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
                        *(f"{k} {v}" for k, v in result.facts.items() if k in ("runtime", "version", "cpu", "threads")),
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


def installation() -> list[tuple[str, str, str, str]]:
    """What is installed and what is not, as (check, status, detail, fix)."""
    extras = {
        "torch": "train",
        "accelerate": "train",
        "onnx": "onnx",
        "onnxruntime": "onnx",
        "litert_torch": "tflite",
        "ai_edge_litert": "tflite",
        "coremltools": "coreml",
        "jinja2": "report",
        "matplotlib": "report",
        "timm": "timm",
        "pyarrow": "parquet",
    }
    from importlib.util import find_spec

    found = [("hetero", "ok", f"{_version('hetero')}, Python {platform.python_version()}", "")]
    for module, extra in extras.items():
        there = find_spec(module) is not None
        name = module.replace("_", "-")
        found.append(
            (name, "ok", _version(name), "")
            if there
            else (name, "warn", "not installed", f"pip install 'hetero[{extra}]'")
        )
    return found


def inspect(path: Path) -> dict[str, Any]:
    """What a bundle, model file, embeddings file or report folder says of itself.

    Raises:
        ConfigError: There is nothing, or nothing this program knows.
        BundleError: It is torn or altered.
    """
    from hetero import export

    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    for name in export.formats():
        if path.suffix == export.module(name).SUFFIX:
            found = dict(export.module(name).metadata(path))
            if not found:
                raise ConfigError(f"{path}: a {name} file without hetero metadata")
            return {"file": str(path), "format": name, **found}
    if path.suffix == ".safetensors":
        vectors = Embeddings.load(path)
        return {
            "file": str(path),
            "rows": len(vectors),
            "space": vectors.space.id,
            "dim": vectors.space.dim,
            "made_by": vectors.made_by,
        }
    if path.is_dir() and (path / "report.json").exists():
        report = Report.load(path / "report.json")
        return {"report": str(path), "subject": report.subject, "verdict": report.verdict, **report.facts}
    bundle = Bundle.load(path)
    m = bundle.manifest
    return {
        "bundle": str(path),
        "role": m.role,
        "space": bundle.space.id,
        "dim": m.model.dim,
        "backbone": m.model.backbone,
        "parameters": m.model.parameters,
        "macs": m.model.macs,
        "preprocess": m.preprocess,
        "parent": m.parent or "none: a gallery model",
        "recipe": m.recipe,
        "data": m.data,
        "files": {
            f.path: f"{f.sha256[:12]}, {f.size_bytes} bytes" + (f", {f.precision}" if f.precision else "")
            for f in m.files
        },
    }
