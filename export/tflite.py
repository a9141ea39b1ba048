"""TFLite (LiteRT) files: converted by litert-torch, run by LiteRT.

A file takes a fixed number of pictures, one unless asked for more: this converter has no dynamic
batch that works. Preprocessing, if baked in, and the L2 tail are float in every precision.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32

from hetero._files import canonical_json, write_atomically
from hetero.errors import BundleError, require
from hetero.export import _seal
from hetero.export._job import ConvertJob, Facts, Runner, in_batches

EXTRA = "tflite"
SUFFIX = ".tflite"
DYNAMIC_BATCH = False
RUNS_HERE = ""
PRECISIONS = ("fp32", "fp16", "int8", "int8w")

#: Name of the metadata buffer that holds our texts as JSON.
METADATA = b"hetero"

_IDENTIFIER = b"TFL3"

_VERSIONS = ("torch", "litert-torch", "litert-converter", "litert-quantizer", "ai-edge-litert")


def convert(job: ConvertJob) -> Facts:
    """Facts about how job.output was made.

    Raises:
        MissingExtraError: The extra is not installed.
        ExportError: No int8 file gives usable vectors.
    """
    require("litert_quantizer", EXTRA)
    litert_torch = require("litert_torch", EXTRA)
    import torch

    from hetero.export import SENSITIVITY, _mixed, _quantize, _tflite_quantize, _tflite_weight_only

    def candidate(raw: bytes) -> Runner:
        return _Interpreter(raw, "candidate", job.threads)

    net = _quantize.net_of(job, "relu6" if job.precision == "int8" else "fused")
    example = torch.zeros(job.input_shape, dtype=torch.uint8 if job.bake else torch.float32)
    model: bytes = litert_torch.convert(net, (example,)).model_content()
    facts: Facts = {f"{name}_version": importlib.metadata.version(name) for name in _VERSIONS}
    if job.precision == "fp16":
        model = _tflite_quantize.half(model)
    elif job.precision == "int8w":
        model = _tflite_weight_only.int8w(model)
        facts["activations"] = "float32, not quantised"
    elif job.precision == "int8":
        calibration = _quantize.calibration_of(job, net)
        plain, sample = model, calibration.fit[: job.batch]
        ranges = _tflite_quantize.ranges(plain, calibration.fit, job.threads)
        candidates = {
            name: _tflite_quantize.int8(plain, sample, found) for name, found in ranges.items()
        }
        best, means = _quantize.best_of(candidates, candidate, calibration)
        model = candidates[best]
        if job.judge is not None:
            layers = _tflite_quantize.layers(plain)
            model, more = _mixed.fewest_in_float(
                lambda kept: _tflite_quantize.int8(
                    plain, sample, ranges[best], [layers[i] for i in kept]
                ),
                layers,
                candidate,
                _mixed.Judge(job, net),
                job.output.with_name(SENSITIVITY),
            )
            facts |= more
        facts |= {"ranges": best}
        facts |= {f"held_out_cosine_{name}": mean for name, mean in means.items()}
    write_atomically(job.output, _finished(model, job))
    return facts


def _finished(model: bytes, job: ConvertJob) -> bytes:
    """The model with our texts, our names for input and output, and short tensor names."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    graph = flatbuffer_utils.read_model_from_bytearray(model)

    class Aligned(schema.BufferT):  # type: ignore[misc]
        """A buffer whose data begins at a multiple of 16 bytes, as the schema asks.

        The generated Python code forgets it; readers on some processors do not.
        """

        def Pack(self, builder: Any) -> int:  # noqa: N802
            where = None
            if self.data is not None and len(self.data):
                raw = bytes(self.data)
                builder.StartVector(1, len(raw), 16)
                builder.head -= len(raw)
                builder.Bytes[builder.head : builder.head + len(raw)] = raw
                where = builder.EndVector()
            schema.BufferStart(builder)
            if where is not None:
                schema.BufferAddData(builder, where)
            return int(schema.BufferEnd(builder))

    texts = schema.BufferT()
    text = canonical_json({**job.metadata, _seal.KEY: _seal.BLANK})
    texts.data = np.frombuffer(text.encode(), dtype=np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA, len(graph.buffers)
    graph.metadata = [*(graph.metadata or []), entry]
    graph.buffers = [Aligned(data=b.data) for b in (*graph.buffers, texts)]
    graph.description = b"hetero"
    for part in graph.subgraphs:
        for tensor in part.tensors:
            # "a.b.Net/c.d.Conv_1;;e.f.Norm_2" -> "Net/Conv_1": names were a fifth of a small file.
            first = tensor.name.split(b";;")[0]
            tensor.name = re.sub(rb"[A-Za-z_]\w*\.(?=[A-Za-z_])", b"", first)
    main = graph.subgraphs[0]
    for side, ends, name in (
        (graph.signatureDefs[0].inputs, main.inputs, b"pixels" if job.bake else b"images"),
        (graph.signatureDefs[0].outputs, main.outputs, job.output_name.encode()),
    ):
        side[0].name = main.tensors[int(ends[0])].name = name
    builder = flatbuffers.Builder(len(model) + 4096)
    builder.Finish(graph.Pack(builder), file_identifier=_IDENTIFIER)
    return _seal.seal(bytes(builder.Output()))


def metadata(path: Path) -> dict[str, str]:
    """The ``hetero.*`` texts in a file.

    Raises:
        BundleError: The file is missing, torn or not a TFLite model.
        MissingExtraError: The runtime is not installed.
    """
    schema = require("ai_edge_litert.schema_py_generated", EXTRA)
    model = schema.Model.GetRootAs(_seal.read(path, "a TFLite"), 0)
    for at in range(model.MetadataLength()):
        entry = model.Metadata(at)
        if entry.Name() == METADATA:
            found = json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
            return {k: v for k, v in found.items() if k != _seal.KEY}
    raise BundleError(f"{path}: a TFLite file without our metadata; export it again")


def _refused(name: str, error: Exception) -> BundleError:
    line = " ".join(str(error).split())[:200]
    return BundleError(f"{name}: LiteRT refuses it ({line}); export it again")


class _Interpreter:
    """A Runner on LiteRT's CPU interpreter."""

    def __init__(self, raw: bytes, name: str, threads: int) -> None:
        runtime = require("ai_edge_litert.interpreter", EXTRA)
        self.runtime = f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"
        self._name = name
        try:
            self._run = runtime.Interpreter(model_content=raw, num_threads=threads)
            self._run.allocate_tensors()
            # Names that are no text are noticed only here; UnicodeDecodeError is a ValueError.
            ends = (self._run.get_input_details(), self._run.get_output_details())
        except (ValueError, RuntimeError) as error:
            raise _refused(name, error) from error
        if [len(e) for e in ends] != [1, 1] or ends[0][0]["dtype"] not in (np.uint8, np.float32):
            raise BundleError(
                f"{name}: not an embedding model: expected one input, uint8 or float32, and one "
                f"output, got {len(ends[0])} and {len(ends[1])}"
            )
        self._in, self._out = ends[0][0], ends[1][0]

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._run

    def __call__(self, inputs: np.ndarray[Any, Any]) -> Float32[np.ndarray, "n d"]:
        shape = tuple(int(x) for x in self._in["shape"])

        def one(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            try:
                self._run.set_tensor(self._in["index"], batch)
                self._run.invoke()
            except (ValueError, RuntimeError) as error:
                raise _refused(self._name, error) from error
            rows: np.ndarray[Any, Any] = self._run.get_tensor(self._out["index"])
            return rows

        return in_batches(one, inputs, shape, np.dtype(self._in["dtype"]), self._name)


def load(path: Path, threads: int = 1) -> Runner:
    """A Runner for a TFLite file.

    Raises:
        BundleError: The file is missing, torn or not a TFLite model.
        MissingExtraError: LiteRT is not installed.
    """
    return _Interpreter(_seal.read(path, "a TFLite"), str(path), threads)
