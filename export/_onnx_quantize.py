"""ONNX in float16 and int8: onnxruntime's own converters.

Weights of int8 have 7 bits. With 8, on x86 processors without VNNI, products of uint8 activations
and int8 weights overflow the 16 bits that ONNX Runtime adds pairs in (its documentation calls it
saturation): vectors whose cosine to PyTorch is 0.99 elsewhere come out with 0.02, without an error.
With 7 bits nothing can overflow: a file does the same everywhere, at the same speed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from hetero.export._job import ConvertJob

#: Operators that do the work; what lies before the first or after the last stays float32.
_WEIGHTY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

#: Operators that move numbers, or that run together with the one before: they round nothing.
_PASSIVE = frozenset(
    {"Relu", "Clip", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather"}
    | {"Shape", "Expand", "Split", "MaxPool", "Pad", "Identity", "Cast", "Constant"}
)

#: In nets with attention, quantising more than these costs accuracy and gains no time.
_ATTENTION = frozenset({"Softmax", "LayerNormalization", "Attention"})

_PERCENT = 99.99

#: Ways of choosing the range of an activation.
RANGES = ("min-max", f"{_PERCENT}%")


def half(model: Any) -> Any:
    """The model with weights and work in float16, and float32 around the work."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    # torch.export lists its weights among the values between nodes; the converter then takes
    # those that stay float32 for float16.
    weights = {i.name for i in model.graph.initializer}
    kept = [v for v in model.graph.value_info if v.name not in weights]
    model.graph.ClearField("value_info")
    model.graph.value_info.extend(kept)
    outside = [n.name for n in _outside(model.graph)]
    half = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=outside))
    # Between nodes that stay float32 the converter leaves float32 -> float16 -> float32, which
    # would round what is float32 on purpose, the embedding included.
    half.remove_cascaded_cast_nodes()
    half.topological_sort(is_deterministic=True)
    return half.model


class Int8:
    """One model in int8, as often as wanted: calibrated once for each way of choosing ranges.

    Args:
        model: In float32.
        inputs: Calibration pictures as the file takes them.
        job: What is written; intermediate files lie beside its output.
    """

    def __init__(self, model: Any, inputs: np.ndarray[Any, Any], job: ConvertJob) -> None:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        plain, self._ready = (job.output.with_name(f"{n}.onnx") for n in ("plain", "ready"))
        onnx.save(model, str(plain))
        # Symbolic shape inference fails on what torch.export makes of the L2 tail (1.32).
        quant_pre_process(str(plain), str(self._ready), skip_symbolic_shape=True)
        graph = onnx.load(str(self._ready)).graph
        self._outside = [n.name for n in _outside(graph)]
        kinds = {n.op_type for n in graph.node}
        self._types = ["Conv", "Gemm", "MatMul"] if kinds & _ATTENTION else None
        self._input, self._inputs, self._batch = graph.input[0].name, inputs, job.batch or 1
        outside = {*self._outside}
        #: Names of the nodes that int8 rounds, in order: additions lose as much as convolutions.
        self.layers = tuple(
            n.name
            for n in graph.node
            if n.name not in outside
            and n.op_type not in _PASSIVE
            and (self._types is None or n.op_type in self._types)
        )

    def make(self, ranges: str, kept: Collection[int] = ()) -> bytes:
        """The model with int8 weights, of 7 bits, and uint8 activations.

        Args:
            ranges: One of `RANGES`.
            kept: Positions in `layers` of those that stay float.
        """
        from onnxruntime import quantization as q

        percentile = ranges != "min-max"
        path = self._ready.with_name(f"{ranges}.onnx")
        q.quantize_static(
            str(self._ready),
            str(path),
            _reader(self._input, self._inputs, self._batch),
            quant_format=q.QuantFormat.QDQ,
            op_types_to_quantize=self._types,
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            reduce_range=True,  # 7 bits, see the head of this module
            nodes_to_exclude=[*self._outside, *(self.layers[i] for i in kept)],
            calibrate_method=getattr(q.CalibrationMethod, "Percentile" if percentile else "MinMax"),
            # One batch at a time; else the histograms keep every activation of every picture.
            extra_options={"CalibPercentile": _PERCENT, "CalibStridedMinMax": 1},
            calibration_cache_path=str(path.with_suffix(".json")),
        )
        return path.read_bytes()


def _reader(name: str, inputs: np.ndarray[Any, Any], batch: int) -> Any:
    """The calibration pictures as onnxruntime's quantiser reads them, whole batches only."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            whole = range(0, len(inputs) - batch + 1, batch)
            self._batches = [inputs[i : i + batch] for i in whole]
            self._left: Iterator[np.ndarray[Any, Any]] = iter(self._batches)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            part = next(self._left, None)
            return None if part is None else {name: part}

        def __len__(self) -> int:
            return len(self._batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._left = iter(self._batches[start_index:end_index])

    return Reader()


def _outside(graph: Any) -> list[Any]:
    """The nodes before the first and after the last weighty one on each path."""
    constant = {i.name for i in graph.initializer}

    def reach(start: Iterable[str], forward: bool) -> set[int]:
        seen: set[int] = set()
        edge = set(start) - constant
        while edge:
            tensor = edge.pop()
            for at, node in enumerate(graph.node):
                near, far = (node.input, node.output) if forward else (node.output, node.input)
                if tensor in near and at not in seen and node.op_type not in _WEIGHTY:
                    seen.add(at)
                    edge |= set(far) - constant
        return seen

    found = reach((i.name for i in graph.input), True)
    found |= reach((o.name for o in graph.output), False)
    return [graph.node[at] for at in sorted(found)]
