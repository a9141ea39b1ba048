"""A bundle's model file under diagnosis: does it run, what does it give, where does it depart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import UInt8

from hetero import diagnose as measuring
from hetero.bundle import Artifact, Bundle
from hetero.diagnose import Canary, Diagnosis, FileCheck
from hetero.errors import BundleError, ConfigError
from hetero.preprocess import decode

Array = np.ndarray[Any, Any]


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
