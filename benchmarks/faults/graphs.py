"""Model files with one thing wrong inside, sealed again as if an exporter had written them so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hetero.export import _seal

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Damage:
    """A fault in a file: its true stage, format and precision, and the function that makes it.

    `make` gives the file's bytes and a hint where the damage is ("" where there is no one place).
    """

    stage: str
    name: str
    kind: str
    precision: str
    make: Callable[[bytes, np.random.Generator], tuple[bytes, str]]


def damages() -> Iterator[Damage]:
    """The faults inside files."""
    for name, change in (
        ("noise on one layer's weights", _noise),
        ("one layer's weights doubled", _double),
        ("a bias dropped", _no_bias),
        ("one layer's kernels mirrored or channels rolled", _rolled),
    ):
        yield Damage("conversion", name, "onnx", "fp32", _onnx_weights(change))
        yield Damage("conversion", name, "tflite", "fp32", _tflite_weights(change))
    yield Damage("conversion", "an activation clamped", "onnx", "fp32", _clamped)
    yield Damage("normalise", "another mean in the file", "onnx", "fp32", _other_mean)
    yield Damage("pooling", "maximum for mean", "onnx", "fp32", _op("ReduceMean", "ReduceMax"))
    yield Damage("pooling", "maximum for mean", "tflite", "fp32", _reduce_max)
    yield Damage("l2", "L1 length in the tail", "onnx", "fp32", _op("ReduceL2", "ReduceL1"))
    yield Damage("l2", "lengths clipped at 10", "onnx", "fp32", _high_floor)
    yield Damage("quantisation", "an activation's scale halved", "onnx", "int8", _scale(0.3))
    yield Damage("quantisation", "an activation's scale times six", "onnx", "int8", _scale(6.0))
    yield Damage("quantisation", "weights per tensor, 5 bits", "onnx", "int8", _per_tensor)
    yield Damage("quantisation", "a zero point moved", "onnx", "int8", _zero_point)
    yield Damage("quantisation", "weights of 3 bits", "onnx", "int8", _few_bits_onnx)
    yield Damage(
        "quantisation", "noise on integer weights", "tflite", "int8", _tflite_weights(_noise)
    )
    yield Damage("quantisation", "an activation's scale halved", "tflite", "int8", _tflite_scale)
    yield Damage("quantisation", "a bias dropped", "tflite", "int8", _tflite_weights(_no_bias))


def sealed(raw: bytes) -> bytes:
    """The bytes with a seal that fits them."""
    return _seal.seal(_seal._SEAL.sub(_seal.BLANK.encode(), raw))


# What is done to (weights, bias) of one layer: arrays are changed in place.


def _noise(weights: Array, bias: Array, rng: np.random.Generator) -> None:
    wild = rng.normal(0, 0.6 * weights.std(), weights.shape)
    if weights.dtype.kind == "i":
        weights[...] = np.clip(weights + np.rint(wild), -127, 127)
    else:
        weights[...] = weights + wild


def _double(weights: Array, bias: Array, rng: np.random.Generator) -> None:
    weights[...] = weights * 2


def _no_bias(weights: Array, bias: Array, rng: np.random.Generator) -> None:
    bias[...] = 0


def _rolled(weights: Array, bias: Array, rng: np.random.Generator) -> None:
    weights[...] = np.roll(weights, 1, axis=0)


def _onnx_weights(
    change: Callable[[Array, Array, np.random.Generator], None],
) -> Callable[[bytes, np.random.Generator], tuple[bytes, str]]:
    def make(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
        import onnx

        model = onnx.load_from_string(raw)
        layers = [n for n in model.graph.node if n.op_type == "Conv" and len(n.input) == 3]
        node = layers[int(rng.integers(1, len(layers) - 1))]
        held = {i.name: i for i in model.graph.initializer}
        arrays = [onnx.numpy_helper.to_array(held[n]).copy() for n in node.input[1:3]]
        change(*arrays, rng)
        for name, array in zip(node.input[1:3], arrays, strict=True):
            held[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
        return sealed(model.SerializeToString()), node.input[1]

    return make


def _clamped(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    import onnx

    model = onnx.load_from_string(raw)
    at = [i for i, n in enumerate(model.graph.node) if n.op_type == "Relu"]
    node = model.graph.node[at[len(at) // 2]]
    for name, value in (("clamp.low", 0.0), ("clamp.high", 0.25)):
        array = np.asarray(value, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    node.op_type = "Clip"
    node.input.extend(["clamp.low", "clamp.high"])
    return sealed(model.SerializeToString()), node.output[0]


def _other_mean(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    return _initializer(raw, lambda n: n == "shift", lambda a: a + np.float32(0.6))


def _initializer(
    raw: bytes, wanted: Callable[[str], bool], change: Callable[[Array], Array]
) -> tuple[bytes, str]:
    import onnx

    model = onnx.load_from_string(raw)
    item = next(i for i in model.graph.initializer if wanted(i.name))
    array = onnx.numpy_helper.to_array(item)
    item.CopyFrom(onnx.numpy_helper.from_array(change(array).astype(array.dtype), item.name))
    return sealed(model.SerializeToString()), item.name


def _op(before: str, after: str) -> Callable[[bytes, np.random.Generator], tuple[bytes, str]]:
    def make(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
        import onnx

        model = onnx.load_from_string(raw)
        node = [n for n in model.graph.node if n.op_type == before][-1]
        node.op_type = after
        return sealed(model.SerializeToString()), node.output[0]

    return make


def _high_floor(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """The smallest length allowed in the tail, meant against division by zero, is huge."""
    import onnx

    model = onnx.load_from_string(raw)
    node = [n for n in model.graph.node if n.op_type == "Clip"][-1]
    item = next(i for i in model.graph.initializer if i.name == node.input[1])
    item.CopyFrom(onnx.numpy_helper.from_array(np.asarray(1e4, dtype=np.float32), item.name))
    return sealed(model.SerializeToString()), node.output[0]


def _activation_scales(model: Any) -> list[str]:
    """Names of the scales of inner activations, in order."""
    made = {i.name for i in model.graph.initializer}
    return [
        n.input[1]
        for n in model.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] not in made
    ][2:-2]


def _scale(by: float) -> Callable[[bytes, np.random.Generator], tuple[bytes, str]]:
    def make(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
        import onnx

        names = _activation_scales(onnx.load_from_string(raw))
        name = names[int(rng.integers(len(names)))]
        return _initializer(raw, lambda n: n == name, lambda a: a * np.float32(by))

    return make


def _zero_point(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    import onnx

    model = onnx.load_from_string(raw)
    name = _activation_scales(model)[3].replace("_scale", "_zero_point")
    node = next(
        n
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and len(n.input) > 2 and n.input[2] == name
    )
    held = next(i for i in model.graph.initializer if i.name == name)
    array = onnx.numpy_helper.to_array(held)
    moved = (array.astype(np.int64) + 40).clip(0, 255).astype(array.dtype)
    model.graph.initializer.append(onnx.numpy_helper.from_array(moved, "moved"))
    node.input[2] = "moved"
    return sealed(model.SerializeToString()), node.output[0]


def _integer_weights(raw: bytes, change: Callable[[Array, Array], Array]) -> bytes:
    """All Conv weights changed by f(integers, scales of their channels)."""
    import onnx

    model = onnx.load_from_string(raw)
    held = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in held:
            continue
        item, scales = held[node.input[0]], onnx.numpy_helper.to_array(held[node.input[1]])
        array = onnx.numpy_helper.to_array(item)
        if array.ndim == 4 and array.dtype in (np.int8, np.uint8):
            zero = 128.0 if array.dtype == np.uint8 else 0.0
            new = change(array.astype(np.float64) - zero, scales.reshape(-1, 1, 1, 1))
            new = (np.clip(np.rint(new), -127, 127) + zero).astype(array.dtype)
            item.CopyFrom(onnx.numpy_helper.from_array(new, item.name))
    return sealed(model.SerializeToString())


def _per_tensor(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    def coarse(integers: Array, scales: Array) -> Array:
        step = (np.abs(integers) * scales).max() / 15
        return np.rint(integers * scales / step) * step / scales

    return _integer_weights(raw, coarse), ""


def _few_bits_onnx(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    # Seven levels: -3 to 3.
    def coarse(integers: Array, scales: Array) -> Array:
        step = np.abs(integers).max() / 3
        return np.rint(integers / step) * step

    return _integer_weights(raw, coarse), ""


# TFLite: the schema's readers give views of the bytes, which can be written through.


def _layers(raw: bytearray) -> list[tuple[Any, Array, Array, str]]:
    """(weights' tensor, weights, bias, name) of every convolution, as views of the bytes."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(raw, 0)
    graph = model.Subgraphs(0)
    kinds = {
        schema.TensorType.FLOAT32: "<f4",
        schema.TensorType.INT8: "i1",
        schema.TensorType.INT32: "<i4",
    }

    def values(index: int) -> Array:
        tensor = graph.Tensors(index)
        flat = model.Buffers(tensor.Buffer()).DataAsNumpy()
        return flat.view(kinds[tensor.Type()]).reshape(tensor.ShapeAsNumpy())

    out = []
    for at in range(graph.OperatorsLength()):
        op = graph.Operators(at)
        code = model.OperatorCodes(op.OpcodeIndex()).BuiltinCode()
        if code == schema.BuiltinOperator.CONV_2D and op.InputsLength() == 3:
            name = graph.Tensors(op.Outputs(0)).Name().decode()
            tensor = graph.Tensors(op.Inputs(1))
            out.append((tensor, values(op.Inputs(1)), values(op.Inputs(2)), name))
    return out


def _tflite_weights(
    change: Callable[[Array, Array, np.random.Generator], None],
) -> Callable[[bytes, np.random.Generator], tuple[bytes, str]]:
    def make(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
        mutable = bytearray(raw)
        layers = _layers(mutable)
        _, weights, bias, name = layers[int(rng.integers(1, len(layers) - 1))]
        change(weights, bias, rng)
        return sealed(bytes(mutable)), name

    return make


def _tflite_scale(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    from ai_edge_litert import schema_py_generated as schema

    mutable = bytearray(raw)
    model = schema.Model.GetRootAs(mutable, 0)
    graph = model.Subgraphs(0)
    inner = []
    for at in range(graph.OperatorsLength()):
        tensor = graph.Tensors(graph.Operators(at).Outputs(0))
        known = tensor.Quantization()
        code = model.OperatorCodes(graph.Operators(at).OpcodeIndex()).BuiltinCode()
        if (
            tensor.Type() == schema.TensorType.INT8
            and code == schema.BuiltinOperator.ADD
            and known.ScaleLength() == 1
        ):
            inner.append((known.ScaleAsNumpy(), tensor.Name().decode()))
    scale, name = inner[len(inner) // 2]
    scale[...] = scale * 0.3
    return sealed(bytes(mutable)), name


def _reduce_max(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(raw))
    for code in model.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.MEAN:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.REDUCE_MAX
    return sealed(bytes(flatbuffer_utils.convert_object_to_bytearray(model))), "MEAN"
