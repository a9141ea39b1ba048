"""What lies inside an ONNX file: every float tensor it computes, as sketches.

ONNX Runtime gives inner tensors if they are declared outputs. All at once would be the whole of the
activations; so a group is declared at a time, and of each tensor a draw of its numbers is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hetero.diagnose.layers import Sketch, groups, sketch
from hetero.diagnose.ranges import Range
from hetero.errors import require
from hetero.export import _seal
from hetero.export import onnx as format

#: Tensors asked for at a time.
_GROUP = 24

#: Operators whose outputs are shapes, constants or copies.
_DULL = frozenset(
    {
        *("Shape", "Constant", "ConstantOfShape", "Identity", "QuantizeLinear", "Gather"),
        *("Unsqueeze", "Concat", "Range", "Expand"),
    }
)


def layers(path: Path, inputs: np.ndarray[Any, Any]) -> list[Sketch]:
    """A sketch of every float tensor the file computes, in its order.

    Args:
        path: The file.
        inputs: A handful of pictures, as the file takes them.

    Raises:
        BundleError: The file is torn, or the runtime refuses it.
        MissingExtraError: The extra is not installed.
    """
    onnx = require("onnx", format.EXTRA)
    model = onnx.load_from_string(_seal.read(path, "an ONNX"))
    constant = {i.name for i in model.graph.initializer}
    made: dict[str, Any] = {}
    for node in model.graph.node:
        # What is computed from constants alone (weights made float again) is no activation.
        if all(i in constant or not i for i in node.input):
            constant.update(node.output)
        elif node.op_type not in _DULL:
            made[node.output[0]] = node
    inner = _inputs(model.graph.node, set(made), constant)
    last = {o.name for o in model.graph.output}
    found: dict[str, Sketch] = {}
    for group in groups(list(made), _GROUP):
        del model.graph.output[len(last) :]
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in group if n not in last)
        session = format._session(model.SerializeToString(), str(path), 1)
        for name, values in zip(group, _run(session, group, inputs), strict=True):
            usual = values.dtype.kind == "f" and values.ndim >= 1 and len(values) == len(inputs)
            if usual and values.size:
                op = made[name].op_type
                # Before its one transpose the file has pixels as they came: NHWC.
                last_axis = values.ndim == 4 and values.shape[-1] == 3 and values.shape[1] != 3
                found[name] = sketch(name, op, values, inputs=inner[name], channels_last=last_axis)
    return [found[n] for n in made if n in found]


def _run(
    session: Any, names: tuple[str, ...], inputs: np.ndarray[Any, Any]
) -> list[np.ndarray[Any, Any]]:
    """The tensors of these names for all pictures; a file of fixed batch is asked by parts."""
    entry = session.get_inputs()[0]
    size = entry.shape[0] if isinstance(entry.shape[0], int) else len(inputs)
    whole = range(0, len(inputs) - size + 1, size)
    parts = [session.run(list(names), {entry.name: inputs[i : i + size]}) for i in whole]
    return [
        np.concatenate(some) if np.ndim(some[0]) else np.asarray(some[0])
        for some in zip(*parts, strict=True)
    ]


def _inputs(nodes: Any, kept: set[str], constant: set[str]) -> dict[str, tuple[str, ...]]:
    """Tensor -> those kept tensors it is computed from, across what is not kept."""
    before: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        found: dict[str, None] = {}
        for name in node.input:
            if name in kept:
                found[name] = None
            elif name not in constant:
                found |= dict.fromkeys(before.get(name, ()))
        for name in node.output:
            before[name] = tuple(found)
    return before


def ranges(path: Path, inputs: np.ndarray[Any, Any]) -> list[Range]:
    """What each activation held in eight bits can hold, and what pictures fill of it.

    Args:
        path: The file.
        inputs: Pictures, as the file takes them.

    Raises:
        BundleError: The file is torn, or the runtime refuses it.
        MissingExtraError: The extra is not installed.
    """
    onnx = require("onnx", format.EXTRA)
    model = onnx.load_from_string(_seal.read(path, "an ONNX"))
    held = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    nodes = [
        n
        for n in model.graph.node
        if n.op_type == "QuantizeLinear"
        and n.input[0] not in held
        and all(i in held and held[i].size == 1 for i in n.input[1:])
        and len(n.input) == 3
    ]
    last = {o.name for o in model.graph.output}
    out = []
    for group in groups([n.input[0] for n in nodes], _GROUP):
        del model.graph.output[len(last) :]
        asked = dict.fromkeys(n for n in group if n not in last)
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in asked)
        session = format._session(model.SerializeToString(), str(path), 1)
        values = dict(zip(group, _run(session, group, inputs), strict=True))
        for node in (n for n in nodes if n.input[0] in values):
            scale, zero = (held[i].item() for i in node.input[1:])
            kind = np.iinfo(held[node.input[2]].dtype)
            low, high = ((int(k) - zero) * scale for k in (kind.min, kind.max))
            x = values[node.input[0]]
            cut = float(((x < low - scale) | (x > high + scale)).mean())
            # What is below zero and cut there is a ReLU that was run together with the rounding.
            if zero == kind.min:
                cut = float((x > high + scale).mean())
            filled = float(max(x.min(), low)), float(min(x.max(), high))
            out.append(Range(node.input[0], low, high, *filled, cut))
    return out
