"""What lies inside a TFLite file: every activation it computes, as sketches.

The interpreter keeps inner tensors when asked to, without delegates; of each a draw of its numbers
is kept, one picture after another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hetero.diagnose.layers import Sketch, sketch
from hetero.diagnose.ranges import Range
from hetero.errors import BundleError, require
from hetero.export import _seal
from hetero.export import tflite as format

_KINDS = (np.float32, np.float16, np.int8, np.uint8, np.int16)

#: Operators whose outputs are copies.
_DULL = frozenset({"QUANTIZE", "PAD", "PADV2", "RESHAPE"})

#: Operators whose output range is fixed by the format, and ends that activation functions have.
_FIXED = frozenset({"QUANTIZE", "LOGISTIC", "SOFTMAX", "TANH", "L2_NORMALIZATION", "DEQUANTIZE"})
_ENDS = (0.0, 1.0, 6.0)


def layers(path: Path, inputs: np.ndarray[Any, Any]) -> list[Sketch]:
    """A sketch of every activation the file computes, in its order, integers made float again.

    Args:
        path: The file.
        inputs: A handful of pictures, as the file takes them.

    Raises:
        BundleError: The file is torn, or the runtime refuses it.
        MissingExtraError: The runtime is not installed.
    """
    run = _interpreter(path)
    details = {int(d["index"]): d for d in run.get_tensor_details()}
    entry = run.get_input_details()[0]
    live = {int(entry["index"])}
    before: dict[int, tuple[str, ...]] = {}
    wanted: list[tuple[int, str]] = []
    for op in run._get_ops_details():
        takes = [int(i) for i in op["inputs"] if int(i) in live]
        if not takes:
            continue
        given = [int(i) for i in op["outputs"]]
        live.update(given)
        kept = {i for i, _ in wanted}
        found: dict[str, None] = {}
        for i in takes:
            found |= dict.fromkeys([_name(i, details)] if i in kept else before.get(i, ()))
        for i in given:
            before[i] = tuple(found)
            if op["op_name"] not in _DULL and details[i]["dtype"] in _KINDS:
                wanted.append((i, op["op_name"]))
    parts: dict[int, list[np.ndarray[Any, Any]]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    size = int(entry["shape"][0])
    for begin in range(0, len(inputs) - size + 1, size):
        run.set_tensor(entry["index"], inputs[begin : begin + size])
        run.invoke()
        for i, op_name in wanted:
            values = _real(run.get_tensor(i), details[i])
            if values.ndim == 1:  # a tensor without its batch of one
                values = values[None]
            if len(values) == size:
                one = sketch(_name(i, details), op_name, values, channels_last=True)
                parts.setdefault(i, []).append(one.draw)
                shapes[i] = one.shape
    return [
        Sketch(
            _name(i, details),
            op_name,
            "",
            shapes[i],
            np.concatenate(parts[i]),
            before[i],
            float(min(p.min() for p in parts[i])),
            float(max(p.max() for p in parts[i])),
        )
        for i, op_name in wanted
        if i in parts
    ]


def _interpreter(path: Path) -> Any:
    """A file opened so that inner tensors can be read after a call."""
    runtime = require("ai_edge_litert.interpreter", format.EXTRA)
    raw = _seal.read(path, "a TFLite")
    try:
        run = runtime.Interpreter(
            model_content=raw,
            num_threads=1,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        run.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"{path}: LiteRT refuses it ({' '.join(str(error).split())})") from error
    return run


def _name(index: int, details: dict[int, Any]) -> str:
    """Unique: names repeat where an operator was split."""
    return f"{index}:{details[index]['name'].rpartition('/')[2]}"


def _real(values: np.ndarray[Any, Any], detail: Any) -> np.ndarray[Any, Any]:
    """Integers as the real numbers they stand for."""
    quantised = detail["quantization_parameters"]
    scales, zeros = quantised["scales"], quantised["zero_points"]
    if values.dtype.kind not in "iu" or not len(scales):
        return np.asarray(values, dtype=np.float32)
    return (values.astype(np.float32) - np.float32(zeros[0])) * np.float32(scales[0])


def ranges(path: Path, inputs: np.ndarray[Any, Any]) -> list[Range]:
    """What each activation held in eight bits can hold, and what pictures fill of it.

    Numbers at an end count as cut off where those just before the end are much fewer, and the end
    is none that an activation function has.

    Args:
        path: The file.
        inputs: Pictures, as the file takes them.

    Raises:
        BundleError: The file is torn, or the runtime refuses it.
        MissingExtraError: The runtime is not installed.
    """
    run = _interpreter(path)
    details = {int(d["index"]): d for d in run.get_tensor_details()}
    entry = run.get_input_details()[0]
    wanted = {}
    for op in run._get_ops_details():
        for i in (int(i) for i in op["outputs"]):
            scales = details[i]["quantization_parameters"]["scales"]
            if details[i]["dtype"] == np.int8 and len(scales) == 1 and op["op_name"] not in _FIXED:
                wanted[i] = np.zeros(256, dtype=np.int64)
    size = int(entry["shape"][0])
    for begin in range(0, len(inputs) - size + 1, size):
        run.set_tensor(entry["index"], inputs[begin : begin + size])
        run.invoke()
        for i, counts in wanted.items():
            codes = run.get_tensor(i).ravel().astype(np.int64) + 128
            counts += np.bincount(codes, minlength=256)
    out = []
    for i, counts in wanted.items():
        known = details[i]["quantization_parameters"]
        scale, zero = float(known["scales"][0]), int(known["zero_points"][0]) + 128
        filled = np.flatnonzero(counts)
        if not len(filled):
            continue
        low, high = -zero * scale, (255 - zero) * scale
        cut = 0.0
        for at, near, end in ((255, counts[250:255], high), (0, counts[1:6], low)):
            natural = any(abs(end - e) < 1.5 * scale for e in _ENDS)
            if not natural and counts[at] > 3 * near.mean():
                cut += float(counts[at] / counts.sum())
        first, last = ((int(code) - zero) * scale for code in (filled[0], filled[-1]))
        out.append(Range(_name(i, details), low, high, first, last, cut))
    return out
