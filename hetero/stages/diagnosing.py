"""Stage: why a device's vectors differ. Canaries, files and devices in, a diagnosis out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hetero import diagnose as measuring
from hetero._files import make_folder, storage_errors, write_atomically, write_json
from hetero.bundle import Artifact, Bundle
from hetero.data import Images
from hetero.diagnose import Canary, Diagnosis, Library, Trace, words
from hetero.errors import ConfigError
from hetero.progress import Reporter
from hetero.retrieval import Truth, rank
from hetero.space import Embeddings
from hetero.stages.examining import (
    Array,
    BundleEngine,
    artifact,
    canaries_of,
    file_check,
    first_layer,
    odd_ranges,
    refusal,
    refused,
    run_file,
)

if TYPE_CHECKING:
    from hetero.devices import Inventory

__all__ = [
    "DISTRACTORS",
    "BundleEngine",
    "DiagnoseOptions",
    "artifact",
    "canaries_of",
    "diagnose",
    "file_check",
    "first_layer",
    "odd_ranges",
    "refusal",
    "refused",
    "run_file",
    "scorer",
    "write_results",
]

#: Pictures of a collection that stand between the canaries in the gallery.
DISTRACTORS = 1000


@dataclass(frozen=True)
class DiagnoseOptions:
    """How to diagnose.

    Attributes:
        file: "onnx:int8": the bundle's file that the device runs; "" for PyTorch's own.
        device: Run the file there on the reference's pixels; "" to run nothing.
        inventory: Where the device's name is looked up first.
        trace: Folder that an app wrote; None without.
        more: Dotted paths of hypotheses of one's own.
        layers: Look for the first departing layer of a file that departs.
        command: For the record.
    """

    file: str = ""
    device: str = ""
    inventory: Inventory | None = None
    trace: Path | None = None
    more: tuple[str, ...] = ()
    layers: bool = True
    command: str = ""


def scorer(
    bundle: Bundle, gallery: Bundle, pictures: Sequence[Canary], images: Images | None
) -> Callable[[Array], float]:
    """Unit rows for the canaries -> share that finds its own picture first in the gallery.

    The gallery is the gallery model's vectors of the probe pictures that the canaries show, among
    those of a collection's test pictures where one is given.

    Raises:
        SpaceMismatchError: The two bundles are not in one space.
    """
    from hetero import models

    gallery.space.must_match(bundle.space, f"query bundle {bundle.root}")
    probe = bundle.probe()
    ids, pixels = list(probe.ids), probe.pixels
    if images is not None:
        rows = images.rows("test") or images.rows("train")
        picked = sorted({int(i) for i in np.linspace(0, len(rows) - 1, DISTRACTORS)})
        mine = [rows[i] for i in picked if images.ids[rows[i]] not in set(ids)]
        ids += [images.ids[r] for r in mine]
        pixels = np.concatenate([pixels, images.pixels(mine, gallery.preprocess)])
    stored = models.TorchEmbedder(gallery).embed(ids, pixels)
    names = tuple(p.name for p in pictures)
    truth = Truth(tuple(p.base for p in pictures), ("",) * len(names), tuple(ids), tuple(ids))

    def recall(rows: Array) -> float:
        # A vector that is none points nowhere; it counts as any other that finds nothing.
        usable = np.isfinite(rows).all(axis=1) & (np.linalg.norm(rows, axis=1) > 1e-6)
        away = np.zeros_like(rows)
        away[:, 0] = 1
        queries = Embeddings.normalised(
            bundle.space, names, np.where(usable[:, None], rows, away), "canaries"
        )
        found = rank(queries, stored, truth).best == 0
        return float((found & usable).mean())

    return recall


def diagnose(
    query: Bundle,
    gallery: Bundle,
    output: Path,
    options: DiagnoseOptions,
    *,
    images: Images | None = None,
    reporter: Reporter,
) -> Diagnosis:
    """Why a device's vectors differ; diagnosis.json, diagnosis.md and repro/ are in `output`.

    Args:
        query: The bundle whose model runs on the device.
        gallery: Whose space it was trained into.
        output: Folder for results.
        options: What to look at.
        images: Test pictures that stand in the gallery beside the canaries'.
        reporter: Shows progress.

    Raises:
        ConfigError: There is nothing to look at.
        DataError: The trace is not whole.
        DeviceError: The device failed.
    """
    item = artifact(query, options.file) if options.file else None
    if item is None and options.trace is None:
        raise ConfigError(
            "nothing to diagnose: name the bundle's file with --file onnx:int8, or what an app "
            "gave with --trace FOLDER"
        )
    if options.device and item is None:
        raise ConfigError(f"--device {options.device}: name the file it runs with --file onnx:int8")
    make_folder(output)
    with reporter.bar("diagnose", 4) as bar:
        pictures = canaries_of(query)
        recall = scorer(query, gallery, pictures, images)
        said = refusal(query, item) if item is not None else ""
        if item is not None and said:
            found = refused(query, item, said, recall)
            write_results(found, None, None, query, output, options)
            return found
        engine = BundleEngine(query, item)
        known = measuring.library(pictures, query.preprocess, engine, options.more)
        assert known.states.pixels is not None, "the library holds the whole reference run"
        bar.advance(1, "canaries")
        check = None
        if item is not None:
            check = file_check(query, item, engine, known.states.pixels, layers=options.layers)
        bar.advance(1, "file")
        trace, device_only = _trace(query, item, known, output, options)
        bar.advance(1, "device")
        found = measuring.diagnose(
            known,
            trace,
            recall,
            precision=item.precision if item else "fp32",
            file=check,
            device_only=device_only,
        )
        bar.advance(1, "stages")
    write_results(found, known, trace, query, output, options)
    return found


def _trace(
    query: Bundle,
    item: Artifact | None,
    known: Library,
    output: Path,
    options: DiagnoseOptions,
) -> tuple[Trace | None, bool]:
    """What to hold against the reference, and whether it began at the reference's pixels."""
    if options.trace is not None:
        return measuring.load(options.trace), False
    if not options.device or item is None:
        return None, False
    from hetero import devices

    assert known.states.pixels is not None, "the library holds the whole reference run"
    device = devices.open_device(options.device, options.inventory)
    result = devices.run(
        device,
        query.path(item),
        item.kind,
        query.inputs(item, known.states.pixels),
        folder=output / "runs",
        plan=devices.Plan(0, 0.0, 0, 0.0),
    )
    names = tuple(p.name for p in known.pictures)
    return Trace(names, result.outputs), True


def write_results(
    found: Diagnosis,
    known: Library | None,
    trace: Trace | None,
    query: Bundle,
    output: Path,
    options: DiagnoseOptions,
) -> None:
    """Write diagnosis.json, diagnosis.md and, if something is wrong, the folder repro.

    Args:
        found: What to write.
        known: What was held against a device; None if the file would not run.
        trace: What the device gave, if anything.
        query: The bundle.
        output: Folder.
        options: For the record.
    """
    facts = {
        "command": options.command,
        "model": f"{query.manifest.model.backbone}, weights {query.digest[:12]}",
        "space": query.space.id,
        "file": options.file or "none: PyTorch",
        "device": options.device or (f"trace {options.trace}" if options.trace else "none"),
        "canaries": len(known.pictures) if known is not None else 0,
    }
    write_json(output / "diagnosis.json", {**found.to_json(), "facts": facts})
    write_atomically(output / "diagnosis.md", words.as_markdown(found, facts))
    if found.verdict != "healthy" and known is not None:
        _repro(found, known, trace, query, output / "repro")


def _repro(
    found: Diagnosis, known: Library, trace: Trace | None, query: Bundle, folder: Path
) -> None:
    """The smallest picture that moved, both vectors, the spec, and a script that compares them.

    Where no device was asked, or it does what a wrong file says, the file's vector stands for the
    device's and PyTorch's is the reference.
    """
    name = found.smallest or found.worst
    names = tuple(p.name for p in known.pictures)
    at = names.index(name)
    theirs = Trace(names, known.home) if trace is None else trace.ordered(names)
    reference = known.home[at]
    if theirs.embedding[at].shape == reference.shape and np.allclose(
        theirs.embedding[at], reference, atol=1e-6
    ):
        reference = known.torch_rows[at]
    assert known.states.pixels is not None, "the library holds the whole reference run"
    make_folder(folder)
    with storage_errors(folder):
        (folder / name).write_bytes(known.pictures[at].data)
        np.save(folder / "reference.npy", reference)
        np.save(folder / "device.npy", theirs.embedding[at])
        np.save(folder / "reference-pixels.npy", known.states.pixels[at])
        for kind in ("pixels", "tensor", "raw"):
            value = getattr(theirs, kind)
            if value is not None:
                np.save(folder / f"device-{kind}.npy", value[at])
        (folder / "compare.py").write_text(words.SCRIPT.format(name=name), encoding="utf-8")
    write_json(folder / "preprocess.json", query.preprocess.to_json())
