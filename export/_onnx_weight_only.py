"""ONNX with int8 weights and float arithmetic: a quarter of the size, hardly a change of a vector.

Weights are stored as int8 with one scale per output channel, symmetric, and widened by standard
DequantizeLinear operators: no runtime needs an operator of its own for them, and no activation is
rounded, so no calibration is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetero.export._job import LEAST_WEIGHTS

#: Operator -> (its input that is a weight, the weight's axis of output channels).
_WEIGHT: dict[str, tuple[int, int]] = {"Conv": (1, 0), "Gemm": (1, 1), "MatMul": (1, -1)}


def int8w(model: Any) -> int:
    """Number of weights that are int8 from now on; the model is changed in place.

    A weight that other operators use too, or that two operators use along different axes, stays
    float.

    Args:
        model: In float32, an ``onnx.ModelProto``.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    stored = {i.name: i for i in graph.initializer}
    uses: dict[str, set[int | None]] = {}
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name in stored:
                uses.setdefault(name, set()).add(_axis(node, at))
    outputs = {o.name for o in graph.output}
    added, done = [], 0
    for name, axes in uses.items():
        (axis,) = axes if len(axes) == 1 else (None,)
        weight = numpy_helper.to_array(stored[name])
        if (
            axis is None
            or name in outputs
            or weight.dtype != np.float32
            or weight.size < LEAST_WEIGHTS
        ):
            continue
        axis %= weight.ndim
        codes, scale = rounded(weight, axis)
        graph.initializer.remove(stored[name])
        graph.initializer.append(numpy_helper.from_array(codes, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        added.append(
            helper.make_node(
                "DequantizeLinear",
                [f"{name}.int8", f"{name}.scale"],
                [name],
                name=f"{name}.float",
                axis=axis,
            )
        )
        done += 1
    nodes = [*added, *graph.node]  # nothing but stored numbers goes into the new ones
    graph.ClearField("node")
    graph.node.extend(nodes)
    return done


def rounded(weight: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Int8 codes of the weight's shape, and a float32 scale per index of `axis`.

    A code times its scale is within half a scale of the weight. A channel of zeros has scale 1.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    most = np.abs(weight).max(axis=others)
    scale = np.where(most > 0, most / 127, 1).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    codes = np.rint(weight / scale.reshape(shape)).clip(-127, 127).astype(np.int8)
    return codes, scale


def _axis(node: Any, at: int) -> int | None:
    """The axis of output channels of a node's input, if that is a weight, else None."""
    which, axis = _WEIGHT.get(node.op_type, (-1, 0))
    if at != which:
        return None
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        return 0
    return axis
