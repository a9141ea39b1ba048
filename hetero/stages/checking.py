"""Stage: the verdict. Exported files run on devices and searched in the gallery's index."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from hetero import baseline as earlier
from hetero import check as measuring
from hetero import plane
from hetero._files import make_folder
from hetero.bundle import Bundle
from hetero.check import Place, Reference
from hetero.data import Images
from hetero.errors import ConfigError, DataError, SpaceMismatchError
from hetero.evaluate import Task, raw_pixels, task
from hetero.outcomes import FILE, Outcomes
from hetero.progress import Reporter
from hetero.report import Limit, Measurement, Report, load_limits
from hetero.retrieval import Ranks, pairwise_cosine
from hetero.slices import by_brightness
from hetero.stages import fleet
from hetero.stages.embedding import embed
from hetero.stages.inspecting import version
from hetero.stages.running import CheckOptions, Ran, chosen, publish
from hetero.stages.stopping import with_evidence


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

    Everything raw goes to `output` before it is judged: embeddings/*.safetensors, the run folders
    with every latency, the map of vectors, plane.json, and outcomes.safetensors with what each
    query got. Then report.json, report.md, report.html and junit.xml.

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
        ConfigError: The baseline is of other data, another space, or a bundle of another role.
        DeviceError: Every device failed. One of several leaves its files out of the report.
        Interrupted: Ctrl-C; what was measured before is on disk.
    """
    if options.baseline is not None and options.sequential:
        raise ConfigError(
            "--sequential asks only until the other limits are certain, a --baseline needs every "
            "query; leave one of the two away"
        )
    limits, on_baseline = earlier.limits_apart(load_limits(options.limits))
    gallery.space.must_match(query.space, f"query bundle {query.root}")
    if query.preprocess != gallery.preprocess:
        raise SpaceMismatchError(
            f"{query.root}: its preprocessing differs from that of {gallery.root}; train it again"
        )
    files = chosen(query, options)
    job = task(images, "test")
    for bundle in filter(None, (query, gallery, control)):
        unseen(bundle, images)
    # Read before anything is run, and before an older report in the same folder is replaced.
    before = None if options.baseline is None else earlier.load(options.baseline)
    if before is not None:
        earlier.must_match(before, _question(query, gallery, images))
    make_folder(output)
    reference, pictures, measured = _in_pytorch(query, gallery, control, images, job, reporter)
    store = output / "embeddings"
    reference.gallery.save(store / "gallery.safetensors")
    reference.query.save(store / "query-pytorch-fp32.safetensors")
    outcome = fleet.run_files(query, files, reference, pictures, output, options, reporter)
    runs = outcome.runs
    series: dict[str, list[float]] = {}
    shown: list[dict[str, Any]] = []
    worst: tuple[tuple[float, float], Ran, Reference] | None = None
    names = job.query_ids
    ranked: dict[Place, tuple[Sequence[str], Ranks]] = {
        Place(format="pytorch", precision="fp32"): (names, reference.ranks)
    }
    with reporter.bar("judge", len(runs)) as bar:
        for run in runs:
            held = reference if run.whole else reference.only(run.vectors.ids)
            ranks = held.task.rank(run.vectors, held.gallery)
            ranked[run.place] = (held.task.query_ids, ranks)
            found = with_evidence(
                measuring.file(held, run.place, run.vectors, ranks),
                run.asked,
                run.place,
                len(job.query_ids),
            )
            measured += [*found, *run.measured]
            key = f"{run.place.device}|{run.place.format}|{run.place.precision}"
            if run.latency_ms is not None and len(run.latency_ms):
                series[f"latency_ms|{key}"] = measuring.points(run.latency_ms)
            cosine = pairwise_cosine(held.query.take(held.task.query_ids), run.vectors)
            series[f"cosine|{key}"] = measuring.points(cosine)
            flipped = next(m.value for m in found if m.name == "query_negative_flip_rate")
            harm = (flipped, -float(cosine.min()))
            if worst is None or harm > worst[0]:
                worst = (harm, run, held)
            bar.advance(1)
    if worst is not None:
        _, run, held = worst
        shown = measuring.examples(held, run.place, run.vectors, pictures)
        if (
            found_plane := plane.lay(held, run.place, run.vectors, ranked[run.place][1])
        ) is not None:
            found_plane.save(output / plane.FILE)
    report = Report(
        subject=f"{query.manifest.model.backbone} ({query.manifest.recipe.get('method', '')}) "
        f"searching the index of {gallery.manifest.model.backbone} on {images.name}",
        measurements=tuple(measured),
        facts=_facts(query, gallery, control, images, job, runs, options),
        not_run=outcome.not_run,
        examples=tuple(shown),
        series=series,
        cells=outcome.cells,
        agreement=fleet.agreed(reference, outcome),
    )
    judged = report.judged_by(_fitting(limits, report, options.limits))
    outcomes = Outcomes.of(names, reference.ranks, ranked)
    outcomes.save(output / FILE)
    if before is not None:
        judged = _held_to(judged, outcomes, before, on_baseline)
    publish(judged, output)
    return judged


def judge_again(folder: Path, limits: Path | None, baseline: Path | None = None) -> Report:
    """A stored report judged by these limits (or as it was judged) and written again.

    Args:
        folder: With a report.json, and outcomes.safetensors where queries are to be paired.
        limits: A file of one's own.
        baseline: An earlier run's folder or report.json, to be compared with as well.

    Raises:
        ConfigError: A limit finds nothing, or the baseline is of other data, another space or role.
    """
    now = earlier.load(folder)
    report = now.report
    rows, lost = earlier.apart(report.measurements)
    mine, on_baseline = earlier.limits_apart(load_limits(limits))
    if limits is not None:
        rows = replace(report, measurements=_bare(rows)).judged_by(mine).measurements
        lost = earlier.judged(_bare(lost), on_baseline) if lost else ()
    report = replace(report, measurements=(*rows, *lost))
    if baseline is not None:
        before = earlier.load(baseline)
        earlier.must_match(before, report.facts)
        report = _held_to(replace(report, measurements=rows), now.outcomes, before, on_baseline)
    publish(report, folder)
    return report


def _bare(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """The measurements without what was made of them, each once."""
    plain = (replace(m, limit=None, decision=None, outcome="unjudged") for m in measurements)
    out: list[Measurement] = []
    for m in plain:
        if m not in out:
            out.append(m)
    return tuple(out)


def _held_to(
    report: Report, outcomes: Outcomes | None, before: earlier.Run, limits: Sequence[Limit]
) -> Report:
    """A judged report with what it lost to an earlier run, judged as well."""
    now = earlier.Run(report, outcomes)
    lost = earlier.judged(earlier.compared(now, before), limits)
    facts = {**report.facts, "baseline": earlier.note(now, before)}
    return replace(report, measurements=(*report.measurements, *lost), facts=facts)


def _question(query: Bundle, gallery: Bundle, images: Images) -> dict[str, str]:
    """What two runs have to share to be compared."""
    return {
        "space": gallery.space.id,
        "role": query.role,
        "data": f"{images.name}, split checksum {images.digest[:12]}",
    }


def unseen(bundle: Bundle, images: Images) -> None:
    """Nothing, if no test class was trained on.

    Raises:
        DataError: One was; a score on it would mean nothing.
    """
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
    pixels = images.pixels(job.rows, gallery.preprocess)
    theirs = embed(gallery, job.ids, pixels, reporter)
    ours = embed(query, job.ids, pixels, reporter)
    alone = None
    if control is not None:
        if control.space.dim != gallery.space.dim:
            raise SpaceMismatchError(
                f"{control.root}: the control model has dim {control.space.dim}, the gallery "
                f"{gallery.space.dim}; train it with --dim {gallery.space.dim}"
            )
        same = control.preprocess == gallery.preprocess
        seen = pixels if same else images.pixels(job.rows, control.preprocess)
        alone = embed(control, job.ids, seen, reporter)
    reference = Reference.make(job, theirs, ours)
    ratio = gallery.manifest.model.macs / max(1, query.manifest.model.macs)
    pictures = dict(zip(job.ids, pixels, strict=True))
    measured = measuring.models(
        reference,
        pixels=raw_pixels(job.ids, pixels),
        control=alone,
        compute_ratio=ratio,
        slices={
            "class": job.truth.query_labels,
            "group": job.truth.query_groups,
            "brightness": by_brightness(np.stack([pictures[i] for i in job.query_ids])),
        },
    )
    return reference, pictures, measured


def _fitting(limits: Sequence[Limit], report: Report, own: Path | None) -> tuple[Limit, ...]:
    """One's own limits; of the built-in ones those that have something to lie on.

    One's own that could lie on a file that a device left out is no mistake, and waits for it.
    """
    laid = [x for x in limits if any(x.covers(m) for m in report.measurements)]
    if own is None:
        return tuple(laid)
    places = [Place(x.device, x.format, x.precision) for x in report.missing]
    return tuple(
        x
        for x in limits
        if x in laid or not any(x.covers(p.measured(x.measurement, 0.0)) for p in places)
    )


def _facts(
    query: Bundle,
    gallery: Bundle,
    control: Bundle | None,
    images: Images,
    job: Task,
    runs: Sequence[Ran],
    options: CheckOptions,
) -> dict[str, str]:
    facts = {
        "command": options.command,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        **_question(query, gallery, images),
        "gallery model": f"{gallery.manifest.model.backbone}, weights {gallery.digest[:12]}",
        "query model": f"{query.manifest.model.backbone}, weights {query.digest[:12]}",
    }
    if control is not None:
        facts["control model"] = f"{control.manifest.model.backbone}, weights {control.digest[:12]}"
    for name, bundle in (("gallery", gallery), ("query", query), ("control", control)):
        if bundle is not None:
            m = bundle.manifest
            facts[f"{name} size"] = (
                f"{m.model.parameters:,} parameters, {m.model.macs / 1e6:.2f} MMAC"
            )
            facts[f"{name} training"] = (
                f"{m.recipe.get('method')}, {m.recipe.get('train.epochs')} epochs, "
                f"seed {m.recipe.get('train.seed')}"
            )
    facts |= {
        "protocol": "on classes never trained on",
        "test classes": str(len(images.classes("test"))),
        "queries": str(len(job.query_ids)),
        "gallery pictures": str(len(job.gallery_ids)),
        "skipped files": str(len(images.skipped)),
        "limits": str(options.limits or "built in"),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "hetero": version("hetero"),
        "torch": version("torch"),
    }
    for run in runs:
        p = run.place
        facts[f"{p.format} {p.precision} on {p.device}"] = (
            f"SHA-256 {run.file.sha256}, "
            + ", ".join(
                f"{k} {run.facts[k]}"
                for k in ("runtime", "runtime_version", "execution", "queries", "threads", "cpu")
                if k in run.facts
            )
        )
    return facts
