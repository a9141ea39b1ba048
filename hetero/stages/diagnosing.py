"""Stage: why a device's vectors differ. Canaries, files and devices in, a diagnosis out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from hetero import diagnose as measuring
from hetero._files import make_folder, storage_errors, write_atomically, write_json
from hetero.bundle import Artifact, Bundle
from hetero.data import Images
from hetero.diagnose import Canary, Diagnosis, FileCheck, Library, Trace, words
from hetero.errors import BundleError, ConfigError
from hetero.preprocess import decode
from hetero.progress import Reporter
from hetero.retrieval import Truth, rank
from hetero.space import Embeddings

if TYPE_CHECKING:
    from hetero.devices import Inventory

Array = np.ndarray[Any, Any]

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


class BundleEngine:
    """A bundle's net in PyTorch and, where there is one, its exported file run here.

    A `hetero.diagnose.Engine`.
    """

    def __init__(self, bundle: Bundle, item: Artifact | None = None) -> None:
        from hetero import models

        self.net: Any = models.load(bundle).requires_grad_(False)
        self._bundle, self._item = bundle, item
        self._runner: Any = None

    def rows(self, tensor: Array) -> Array:
        """See `hetero.diagnose.Engine.rows`."""
        import torch

        with torch.no_grad():
            parts = [
                self.net(torch.from_numpy(np.ascontiguousarray(tensor[i : i + 64])))
                for i in range(0, len(tensor), 64)
            ]
        return torch.cat(parts).float().numpy()

    def file_rows(self, pixels: UInt8[np.ndarray, "n s s 3"]) -> Array | None:
        """See `hetero.diagnose.Engine.file_rows`."""
        if self._item is None:
            return None
        if self._runner is None:
            from hetero import export

            # Opened once: hypotheses ask some seventy times.
            self._runner = export.load(self._bundle.path(self._item), self._item.kind)
        rows: Array = self._runner(self._bundle.inputs(self._item, pixels))
        return rows


def run_file(bundle: Bundle, item: Artifact, pixels: UInt8[np.ndarray, "n s s 3"]) -> Array:
    """The rows that a bundle's file gives on this machine, as the runtime gave them."""
    from hetero import export

    with export.load(bundle.path(item), item.kind) as runner:
        return runner(bundle.inputs(item, pixels))


def refusal(bundle: Bundle, item: Artifact) -> str:
    """What the runtime on this machine says against a bundle's file; "" if it runs.

    Raises:
        BundleError: The file's bytes are not what an exporter wrote: nothing to diagnose.
    """
    from hetero.export import _seal

    path = bundle.path(item)
    if path.is_dir():
        return ""
    _seal.read(path, f"a {item.kind}")
    try:
        run_file(bundle, item, bundle.probe().pixels[:1])
    except BundleError as error:
        return str(error).removeprefix(f"{path}: ").removesuffix("; export it again")
    return ""


def refused(
    bundle: Bundle, item: Artifact, said: str, recall: Callable[[Array], float]
) -> Diagnosis:
    """The diagnosis of a file of which `refusal` told something.

    Args:
        bundle: Where the file is.
        item: Which.
        said: By the runtime.
        recall: Of unit rows for the canaries.
    """
    pixels = np.stack([bundle.preprocess.pixels(decode(p.data)) for p in canaries_of(bundle)])
    rows = BundleEngine(bundle).rows(bundle.preprocess.tensor(pixels))
    try:
        sibling = not refusal(bundle, bundle.artifact(item.kind, "fp32"))
    except BundleError:
        sibling = False
    return measuring.refused(said, item.precision, sibling, recall(rows))


def canaries_of(bundle: Bundle) -> tuple[Canary, ...]:
    """The bundle's canary pictures."""
    return measuring.canaries(bundle.probe(), bundle.preprocess)


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


def artifact(bundle: Bundle, spec: str) -> Artifact:
    """The file that "onnx:int8" names.

    Raises:
        ConfigError: Not of that form.
        BundleError: The bundle has no such file.
    """
    kind, colon, precision = spec.partition(":")
    if not colon:
        have = ", ".join(f"{f.kind}:{f.precision}" for f in bundle.exported()) or "none"
        raise ConfigError(f"--file {spec!r}: write FORMAT:PRECISION; there are: {have}")
    return bundle.artifact(kind, precision)


def file_check(
    bundle: Bundle,
    item: Artifact,
    engine: BundleEngine,
    pixels: UInt8[np.ndarray, "n s s 3"],
    *,
    layers: bool = True,
) -> FileCheck:
    """A file held against PyTorch on the probe, and the layer where it departs.

    Args:
        bundle: Where the file is.
        item: Which.
        engine: PyTorch's side.
        pixels: Of the canaries, for the fp32 sibling's rows.
        layers: Look for the layer if the file departs.
    """
    from hetero.diagnose._evidence import departure
    from hetero.diagnose._expected import int8_gap

    probe = bundle.probe()
    tensor = bundle.preprocess.tensor(probe.pixels)
    right = engine.rows(tensor)
    given = run_file(bundle, item, probe.pixels)
    gap = departure(given, right)
    length = float(np.median(np.linalg.norm(given.astype(np.float64), axis=1)))
    sibling = rows = None
    if item.precision != "fp32":
        try:
            plain = bundle.artifact(item.kind, "fp32")
        except BundleError:
            plain = None
        if plain is not None:
            sibling = float(np.median(departure(run_file(bundle, plain, probe.pixels), right)))
            rows = run_file(bundle, plain, pixels)
    recorded = item.facts.get("cosine_median")
    if isinstance(recorded, float):
        expected = 1 - recorded
    else:
        expected = int8_gap(engine.net, tensor) if item.precision == "int8" else 0.0
    ranges = odd_ranges(bundle, item) if item.precision == "int8" and layers else ()
    gaps = tuple(float(g) for g in gap)
    found = FileCheck(item.precision, gaps, expected, sibling, None, rows, length, ranges)
    if not (layers and found.departs):
        return found
    from dataclasses import replace

    return replace(found, layer=first_layer(bundle, item, engine))


def first_layer(bundle: Bundle, item: Artifact, engine: BundleEngine) -> measuring.Layer | None:
    """The first layer of a file that departs from PyTorch; None where it cannot be looked into."""
    from hetero.diagnose.layers import first_departure, torch_layers

    inside = _inside(item.kind)
    if inside is None:
        return None
    pixels = bundle.probe().pixels[:8]
    theirs = inside.layers(bundle.path(item), bundle.inputs(item, pixels))
    ours = torch_layers(engine.net, bundle.preprocess, pixels)
    return first_departure(ours, theirs, item.precision)


def odd_ranges(bundle: Bundle, item: Artifact) -> tuple[str, ...]:
    """The ranges of an eight-bit file's activations that do not fit the probe, a line each."""
    from hetero.diagnose.ranges import odd

    inside = _inside(item.kind)
    if inside is None:
        return ()
    return odd(inside.ranges(bundle.path(item), bundle.inputs(item, bundle.probe().pixels)))


def _inside(kind: str) -> Any:
    """The module that looks into files of a format; None where there is none."""
    if kind == "onnx":
        from hetero.export import _layers_onnx

        return _layers_onnx
    if kind == "tflite":
        from hetero.export import _layers_tflite

        return _layers_tflite
    return None


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
