"""Core ML packages (ML programs, iOS 17 and macOS 14): converted by coremltools.

Core ML runs on Apple's systems only. Elsewhere a package is run by a reference interpreter of its
program (`_mil`), which proves graph, weights, compression and float16 rounding, not Apple's
runtime.

A baked package takes an RGB image, Core ML's form of uint8 NHWC, one picture a call. Here int8 is
the form of the weights, as int8w is in every format; Core ML computes in float16. palette6 stores
each weight as the number of one of 64 values that suit the layer best.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from hetero.errors import BundleError, ConfigError, require
from hetero.export import _guard, _mil, _mil_file, _mil_store, _seal
from hetero.export._job import LEAST_WEIGHTS, ConvertJob, Facts, Runner, in_batches

EXTRA = "coreml"
SUFFIX = ".mlpackage"
DYNAMIC_BATCH = False
RUNS_HERE = (
    ""
    if sys.platform == "darwin"
    else "needs macOS; checked here by reference execution of the MIL program, "
    "not by Apple's runtime"
)

PRECISIONS = ("fp32", "fp16", "int8", "int8w", "palette6")

_VERSIONS = ("torch", "coremltools")

#: A constant of this many elements counts as a large weight.
_LARGE = 2048


def convert(job: ConvertJob) -> Facts:
    """Facts about how job.output was made.

    Raises:
        MissingExtraError: The extra is not installed.
        ConfigError: More than one picture a call, with an image as input.
        ExportError: The converter refused both forms of the net.
    """
    require("coremltools", EXTRA)
    if job.bake and job.batch != 1:
        raise ConfigError(
            f"a Core ML image input takes one picture a call, got batch {job.batch}; "
            "leave batch out, or export without preprocessing"
        )
    from hetero.export import _coreml_convert as steps
    from hetero.export import _quantize

    net = _quantize.net_of(job)
    if job.adaptation is None:
        net = steps.folded(net)
    model, how = steps.converted(steps.of_planes(net), job)
    facts: Facts = {f"{name}_version": importlib.metadata.version(name) for name in _VERSIONS}
    facts |= {"target": "iOS 17, macOS 14", **how}
    half = job.precision != "fp32"
    facts["compute"] = "float16, L2 tail float32" if half else "float32"
    facts["weights"] = "float16" if half else "float32"
    if job.precision in ("int8", "int8w"):
        model = steps.int8(model)
        facts["weights"] = f"int8 per channel, symmetric, from {LEAST_WEIGHTS} elements on"
    elif job.precision == "palette6":
        model = steps.palette(model, 6)
        facts["weights"] = f"64 values a layer, k-means, from {LEAST_WEIGHTS} elements on"
    if job.precision in ("int8", "int8w", "palette6"):
        # coremltools finds the range of activations by running the model, which needs a Mac.
        facts |= {"activations": "float16, not quantised", "calibration": "not used"}
    steps.save(model, job)
    return facts


def metadata(path: Path) -> dict[str, str]:
    """The ``hetero.*`` texts in a package.

    Raises:
        BundleError: The package is missing, torn, altered or not one of ours.
        MissingExtraError: coremltools is not installed.
    """
    _guard.package(path)
    _seal.read(_mil_store.model_file(path), "a Core ML")
    found = _mil_store.message(path).description.metadata.userDefined
    return {str(k): str(v) for k, v in found.items() if k.startswith("hetero.") and k != _seal.KEY}


def describe(path: Path) -> dict[str, object]:
    """What a package is, as JSON values: versions, ops by type, ports, weights, compression.

    Any ML program can be described, also one that was not exported here.

    Raises:
        BundleError: The package is missing or torn.
        ExportError: It has control flow or a type that is not known here.
        MissingExtraError: coremltools is not installed.
    """
    _guard.package(path)
    package = _mil_file.read(path)
    ops = Counter(op.type for op in package.operations)
    compression = {k: n for k, n in ops.items() if k.startswith("constexpr_")}
    stored = [
        c.type.dtype
        for op in package.operations
        if op.type == "const" or op.type in compression
        for given in op.inputs.values()
        for c in given
        if isinstance(c, _mil_file.Constant)
        and isinstance(c.data, np.ndarray)
        and c.data.size >= _LARGE
    ]

    def ports(found: tuple[_mil_file.Port, ...]) -> list[dict[str, object]]:
        return [{"name": p.name, "kind": p.kind, "shape": list(p.shape)} for p in found]

    return {
        "specification_version": package.version,
        "opset": package.opset,
        "description": package.description,
        "inputs": ports(package.inputs),
        "outputs": ports(package.outputs),
        "ops": {k: n for k, n in sorted(ops.items()) if k != "const" and k not in compression},
        "compression": compression,
        "large_weights": dict(sorted(Counter(stored).items())),
        "weight_bytes": package.weight_bytes,
        "metadata": dict(sorted(package.metadata.items())),
    }


class _Base:
    """What both Runners share: one input, one output, a batch of a fixed size."""

    runtime: str

    def __init__(self, package: _mil_file.Package) -> None:
        path = package.path
        if len(package.inputs) != 1 or len(package.outputs) != 1:
            raise BundleError(
                f"{path}: {len(package.inputs)} inputs and {len(package.outputs)} outputs, "
                "one of each was expected"
            )
        self._path, self._entry, self._out = path, package.inputs[0], package.outputs[0]
        self._image = self._entry.kind == "image RGB"
        if not self._image and self._entry.kind != "array fp32":
            raise BundleError(
                f"{path}: takes {self._entry.kind}; image RGB or array fp32 was expected"
            )

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def __call__(self, inputs: NDArray[Any]) -> Float32[np.ndarray, "n d"]:
        shape = (1, *self._entry.shape, 3) if self._image else self._entry.shape
        dtype = np.dtype(np.uint8 if self._image else np.float32)
        return in_batches(self._one, inputs, shape, dtype, str(self._path))

    def _one(self, batch: NDArray[Any]) -> NDArray[Any]:
        raise NotImplementedError


class _Reference(_Base):
    """A Runner on the reference interpreter."""

    def __init__(self, path: Path, threads: int) -> None:
        package = _mil_file.read(path)
        super().__init__(package)
        self._threads = threads
        self._program = _mil.prepare(package)
        torch = importlib.metadata.version("torch")
        self.runtime = f"reference execution of the MIL program (PyTorch {torch})"

    def _one(self, batch: NDArray[Any]) -> NDArray[Any]:
        given = batch.transpose(0, 3, 1, 2).astype(np.float32) if self._image else batch
        with _threads(self._threads):
            return _mil.run(self._program, {self._entry.name: given})[self._out.name]


class _Apple(_Base):
    """A Runner on Core ML itself, with all of the machine's compute units."""

    def __init__(self, path: Path) -> None:
        super().__init__(_mil_file.read(path))
        ct = require("coremltools", EXTRA)
        try:
            self._model = ct.models.MLModel(str(path))
        except (RuntimeError, ValueError, OSError) as error:
            line = " ".join(str(error).split())[:200]
            raise BundleError(f"{path}: Core ML refuses it ({line}); export it again") from error
        self.runtime = f"Core ML, macOS {platform.mac_ver()[0]}"

    def _one(self, batch: NDArray[Any]) -> NDArray[Any]:
        from PIL import Image

        given = Image.fromarray(batch[0]) if self._image else batch
        rows: NDArray[Any] = self._model.predict({self._entry.name: given})[self._out.name]
        return rows


def load(path: Path, threads: int = 1) -> Runner:
    """A Runner for a package: Core ML on macOS, the reference interpreter elsewhere.

    Args:
        path: The ``.mlpackage`` folder.
        threads: Of the reference interpreter; Core ML chooses its own.

    Raises:
        BundleError: The package is missing, torn, altered or not one of ours.
        ExportError: The interpreter does not know an operation or input; the message names it.
        MissingExtraError: coremltools or PyTorch is not installed.
    """
    _guard.package(path)
    # The seal covers the program and, as its text holds their hash, the weights.
    _seal.read(_mil_store.model_file(path), "a Core ML")
    return _Reference(path, threads) if RUNS_HERE else _Apple(path)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch with this number of threads, and as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
