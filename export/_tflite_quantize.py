"""TFLite in float16 and int8: litert-quantizer, with ranges of our own.

What this module works around in litert-quantizer 0.11: its statistics are a moving average, so they
depend on the order of the pictures; it takes the -inf of padded pooling for a value; and its int8
division may end the process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from hetero.export._job import LEAST_WEIGHTS

#: Operators that do the work; what lies before the first or after the last stays float in int8.
_WEIGHTY = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV", "CONV_3D"}
)

#: Operators that move numbers: they round nothing.
_PASSIVE = frozenset(
    {"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "PAD", "PADV2", "SLICE", "STRIDED_SLICE"}
    | {"GATHER", "SPLIT", "MAX_POOL_2D", "RELU", "RELU6", "SHAPE", "BROADCAST_TO", "CAST"}
)

#: Share of an activation's values, in percent, that the narrower of the two ranges holds.
_PERCENT = 99.99
_BINS = 4096

_Range = tuple[float, float]


def half(model: bytes) -> bytes:
    """The model with weights stored as float16 and widened before use; it computes in float32."""
    from litert_quantizer import qtyping, quantizer

    half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=half,
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    work = quantizer.Quantizer(model)
    work.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=config,
        algorithm_key="float_casting",
    )
    return bytes(work.quantize(enable_progress_report=False).quantized_model)


def int8(
    model: bytes,
    sample: np.ndarray[Any, Any],
    found: Mapping[str, _Range],
    kept: Collection[str] = (),
) -> bytes:
    """The model with int8 weights per channel and int8 activations.

    Args:
        model: In float32.
        sample: One batch of inputs.
        found: Tensor name -> the range its values get, see `ranges`.
        kept: Those of `layers` that stay float.
    """
    from litert_quantizer import qtyping, quantizer

    everything = qtyping.TFLOperationName.ALL_SUPPORTED
    work = quantizer.Quantizer(model)
    work.add_static_config(
        regex=".*", operation_name=everything, activation_num_bits=8, weight_num_bits=8
    )
    for name in (*_outside(model), *kept):
        # The division of the L2 tail can abort in int8, and one picture's length decides it all.
        work.update_quantization_recipe(
            regex=f"^{re.escape(name)};?$", operation_name=everything, algorithm_key="no_quantize"
        )
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        work.update_quantization_recipe(regex=".*", operation_name=end, algorithm_key="no_quantize")
    key, argument = _signature(model)
    # The quantizer's own statistics are a moving average: they depend on the order of the pictures
    # and clip. One call gives the names that need a range; the numbers are replaced by ours.
    statistics = work.calibrate({key: [{argument: sample}]}, num_threads=1)
    for name, entry in statistics.items():
        if name in found and entry:
            low, high = found[name]
            entry["min"] = np.full_like(entry["min"], low)
            entry["max"] = np.full_like(entry["max"], high)
    return bytes(work.quantize(statistics, enable_progress_report=False).quantized_model)


def ranges(
    model: bytes, inputs: np.ndarray[Any, Any], threads: int
) -> dict[str, dict[str, _Range]]:
    """For each way of choosing them, the range of every float activation, by tensor name.

    Padded max-pooling fills with -inf; values that are not finite count for nothing.
    """
    low_high: dict[str, _Range] = {}
    for name, values in _activations(model, inputs, threads):
        low, high = low_high.get(name, (np.inf, -np.inf))
        low_high[name] = (min(low, float(values.min())), max(high, float(values.max())))
    # A second run instead of keeping values: memory stays that of one batch.
    counts = {name: np.zeros(_BINS, dtype=np.int64) for name in low_high}
    for name, values in _activations(model, inputs, threads):
        counts[name] += np.histogram(values, _BINS, range=low_high[name])[0]
    outside = (1 - _PERCENT / 100) / 2
    narrow = {}
    for name, (low, high) in low_high.items():
        share = np.cumsum(counts[name]) / max(1, counts[name].sum())
        first, last = np.searchsorted(share, (outside, 1 - outside))
        step = (high - low) / _BINS
        narrow[name] = (low + step * float(first), min(high, low + step * float(last + 1)))
    return {"min-max": low_high, f"{_PERCENT}%": narrow}


def _activations(
    model: bytes, inputs: np.ndarray[Any, Any], threads: int
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Name and finite values of every float tensor, for one batch of inputs after another."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    run = Interpreter(
        model_content=model,
        num_threads=threads,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    run.allocate_tensors()
    entry = run.get_input_details()[0]
    written = {int(i) for op in run._get_ops_details() for i in op["outputs"]}
    wanted = [
        (d["name"], d["index"])
        for d in run.get_tensor_details()
        if d["dtype"] is np.float32 and d["index"] in written
    ]
    batch = int(entry["shape"][0])
    for begin in range(0, len(inputs) - batch + 1, batch):
        run.set_tensor(entry["index"], inputs[begin : begin + batch])
        run.invoke()
        for name, index in wanted:
            values = run.get_tensor(index).ravel()
            values = values[np.isfinite(values)]
            if values.size:
                yield name, values


def small(model: bytes) -> list[str]:
    """Scopes of the operators whose weights have fewer than `LEAST_WEIGHTS` elements."""
    main, kinds = _graph(model)
    return [
        _scope(main, at)
        for at, op in enumerate(main.operators)
        if kinds[op.opcodeIndex] in _WEIGHTY
        and math.prod(main.tensors[int(op.inputs[1])].shape) < LEAST_WEIGHTS
    ]


def layers(model: bytes) -> tuple[str, ...]:
    """Scopes of the operators that int8 rounds, in order; additions lose as much as others."""
    main, kinds = _graph(model)
    outside = {*_outside(model)}
    scopes = [
        _scope(main, at)
        for at, op in enumerate(main.operators)
        if kinds[op.opcodeIndex] not in _PASSIVE
    ]
    return tuple(dict.fromkeys(s for s in scopes if s not in outside))


def _graph(model: bytes) -> tuple[Any, list[str]]:
    """The main graph, and the kinds of operators by their code."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.ModelT.InitFromPackedBuf(model, 0)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    return graph.subgraphs[0], [names[c.builtinCode] for c in graph.operatorCodes]


def _scope(main: Any, at: int) -> str:
    """The name by which a recipe finds an operator."""
    return ";".join(main.tensors[i].name.decode() for i in main.operators[at].outputs)


def _outside(model: bytes) -> list[str]:
    """Scopes of the operators before the first and after the last weighty one on each path."""
    main, kinds = _graph(model)
    weighty = {n for n, kind in enumerate(kinds) if kind in _WEIGHTY}

    def reach(start: Iterable[int], forward: bool) -> set[int]:
        seen, edge = set(), {int(i) for i in start}
        while edge:
            tensor = edge.pop()
            for at, op in enumerate(main.operators):
                near, far = (op.inputs, op.outputs) if forward else (op.outputs, op.inputs)
                if tensor in near and at not in seen and op.opcodeIndex not in weighty:
                    seen.add(at)
                    edge |= {int(i) for i in far if i >= 0}
        return seen

    found = reach(map(int, main.inputs), True) | reach(map(int, main.outputs), False)
    return [_scope(main, at) for at in sorted(found)]


def _signature(model: bytes) -> tuple[str, str]:
    """Names of the signature and of its input."""
    from ai_edge_litert import schema_py_generated as schema

    first = schema.ModelT.InitFromPackedBuf(model, 0).signatureDefs[0]
    return first.signatureKey.decode(), first.inputs[0].name.decode()
