"""ONNX files: converted by torch.onnx, run by ONNX Runtime.

A file takes any number of pictures unless a fixed number was asked for. Preprocessing, if baked in,
and the L2 tail are float32 in every precision.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32

from hetero._files import write_atomically
from hetero.errors import BundleError, require
from hetero.export import _seal
from hetero.export._job import ConvertJob, Facts, Runner, first_line, in_batches

EXTRA = "onnx"
SUFFIX = ".onnx"
DYNAMIC_BATCH = True
RUNS_HERE = ""
PRECISIONS = ("fp32", "fp16", "int8", "int8w")

#: ONNX Runtime 1.17 (2024) and later read it.
OPSET = 20

_VERSIONS = ("torch", "onnx", "onnxscript", "onnxruntime")


def convert(job: ConvertJob) -> Facts:
    """Facts about how job.output was made.

    Raises:
        MissingExtraError: The extra is not installed.
        ExportError: No int8 file gives usable vectors.
    """
    require("onnxscript", EXTRA)
    onnx = require("onnx", EXTRA)
    _runtime()
    from hetero.export import SENSITIVITY, _mixed, _onnx_quantize, _onnx_weight_only, _quantize

    def candidate(raw: bytes) -> Runner:
        return _Session(raw, "candidate", job.threads)

    # One fused operator is the faster form, but it has no int8 kernel.
    net = _quantize.net_of(job, "as it is" if job.precision == "int8" else "fused")
    model, how = trace(net, job)
    facts: Facts = {f"{name}_version": importlib.metadata.version(name) for name in _VERSIONS}
    facts |= {"opset": OPSET, **how}
    if job.precision == "fp16":
        model = _onnx_quantize.half(model)
    elif job.precision == "int8w":
        facts["int8_weights"] = _onnx_weight_only.int8w(model)
        facts["activations"] = "float32, not quantised"
    elif job.precision == "int8":
        calibration = _quantize.calibration_of(job, net)
        work = _onnx_quantize.Int8(model, calibration.fit, job)
        candidates = {ranges: work.make(ranges) for ranges in _onnx_quantize.RANGES}
        best, means = _quantize.best_of(candidates, candidate, calibration)
        raw = candidates[best]
        if job.judge is not None:
            raw, more = _mixed.fewest_in_float(
                lambda kept: work.make(best, kept),
                work.layers,
                candidate,
                _mixed.Judge(job, net),
                job.output.with_name(SENSITIVITY),
            )
            facts |= more
        model = onnx.load_from_string(raw)
        facts |= {"ranges": best}
        facts |= {f"held_out_cosine_{name}": mean for name, mean in means.items()}
    write_atomically(job.output, _finished(model, job))
    return facts


def trace(net: Any, job: ConvertJob) -> tuple[Any, Facts]:
    """The net as an ONNX model in float32, and how it was traced.

    The exporter built on torch.export comes first. Where it refuses, the one built on TorchScript
    is used, and the facts say so under "fallback".
    """
    import torch

    name = "pixels" if job.bake else "images"
    # A dimension of 1 would be taken for a constant, so the example of a dynamic batch has two.
    shape = job.input_shape if job.batch else (2, *job.input_shape[1:])
    example = (torch.zeros(shape, dtype=torch.uint8 if job.bake else torch.float32),)
    common: dict[str, Any] = {
        "opset_version": OPSET,
        "input_names": [name],
        "output_names": [job.output_name],
    }
    try:
        program = torch.onnx.export(
            net,
            example,
            dynamo=True,
            verbose=False,
            dynamic_shapes=None if job.batch else ({0: torch.export.Dim("n", min=1)},),
            **common,
        )
        assert program is not None, "torch.onnx.export gives a program where no file is named"
        return program.model_proto, {"exporter": "torch.export"}
    except Exception as error:  # its own exceptions are private and many
        logging.getLogger(__name__).exception("the exporter built on torch.export refused")
        reason = first_line(error)
    import onnx

    path = job.output.with_name(f"torchscript{SUFFIX}")
    axes = None if job.batch else {name: {0: "n"}, job.output_name: {0: "n"}}
    torch.onnx.export(net, example, path, dynamo=False, dynamic_axes=axes, **common)
    return onnx.load(path), {
        "exporter": "torchscript",
        "fallback": f"exported through TorchScript, as torch.export refused: {reason}",
    }


def _finished(model: Any, job: ConvertJob) -> bytes:
    """The model with our texts and without the exporters' notes.

    Those hold stack traces with paths of this machine, and are half of a small file.
    """
    import onnx

    graph = model.graph
    for part in (
        *(graph.node, graph.input, graph.output, graph.initializer),
        *((f,) for f in model.functions),
        *(f.node for f in model.functions),
        (graph, model),
    ):
        for item in part:
            item.ClearField("metadata_props")
            item.ClearField("doc_string")
    graph.ClearField("value_info")
    # The quantiser declares every domain it knows; another runtime may not know them.
    used = {"" if n.domain == "ai.onnx" else n.domain for n in graph.node}
    for domain in [o for o in model.opset_import if o.domain not in used]:
        model.opset_import.remove(domain)
    model.producer_name, model.producer_version = "hetero", ""
    texts = {**job.metadata, _seal.KEY: _seal.BLANK}
    onnx.helper.set_model_props(model, dict(sorted(texts.items())))
    onnx.checker.check_model(model)
    raw: bytes = model.SerializeToString(deterministic=True)
    return _seal.seal(raw)


def metadata(path: Path) -> dict[str, str]:
    """The ``hetero.*`` texts in a file.

    Raises:
        BundleError: The file is missing, torn or not an ONNX model.
        MissingExtraError: ONNX Runtime is not installed.
    """
    session = _session(_seal.read(path, "an ONNX"), str(path), 1)
    found = session.get_modelmeta().custom_metadata_map
    return {k: v for k, v in found.items() if k.startswith("hetero.") and k != _seal.KEY}


def _runtime() -> Any:
    """The onnxruntime module, which reports nothing home."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return require("onnxruntime", EXTRA)


def _session(raw: bytes, name: str, threads: int) -> Any:
    """An inference session on the CPU.

    Raises:
        BundleError: The bytes are not an ONNX model.
    """
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors come as exceptions
    try:
        return runtime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise _refused(name, error) from error


def _refused(name: str, error: Exception) -> BundleError:
    line = " ".join(str(error).split())[:200]
    return BundleError(f"{name}: ONNX Runtime refuses it ({line}); export it again")


class _Session:
    """A Runner on ONNX Runtime's CPU provider."""

    def __init__(self, raw: bytes, name: str, threads: int) -> None:
        self._session = _session(raw, name, threads)
        self.runtime = f"onnxruntime {importlib.metadata.version('onnxruntime')}"
        self._name = name
        ends = (self._session.get_inputs(), self._session.get_outputs())
        kinds = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
        if [len(e) for e in ends] != [1, 1] or ends[0][0].type not in kinds:
            raise BundleError(
                f"{name}: not an embedding model: expected one input, uint8 or float, and one "
                f"output, got {len(ends[0])} and {len(ends[1])}"
            )
        self._input = ends[0][0].name
        self._dtype = np.dtype(kinds[ends[0][0].type])
        try:
            # A dynamic dimension is a name.
            self._shape = tuple(x if isinstance(x, int) else 0 for x in ends[0][0].shape)
        except UnicodeDecodeError as error:  # only here are the names looked at
            raise _refused(name, error) from error

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._session

    def __call__(self, inputs: np.ndarray[Any, Any]) -> Float32[np.ndarray, "n d"]:
        def one(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            try:
                rows: np.ndarray[Any, Any] = self._session.run(None, {self._input: batch})[0]
            except Exception as error:  # see _session
                raise _refused(self._name, error) from error
            return rows

        return in_batches(one, inputs, self._shape, self._dtype, self._name)


def load(path: Path, threads: int = 1) -> Runner:
    """A Runner for an ONNX file.

    Raises:
        BundleError: The file is missing, torn or not an ONNX model.
        MissingExtraError: ONNX Runtime is not installed.
    """
    return _Session(_seal.read(path, "an ONNX"), str(path), threads)
