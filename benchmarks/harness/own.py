"""A runtime's own benchmark on one file, in a process of its own; raw times in milliseconds.

    python -m benchmarks.harness.own onnx model.onnx WARMUP RUNS inputs.bin
    python -m benchmarks.harness.own tflite model.tflite WARMUP RUNS inputs.bin

Both are code of the runtimes' packages and not of this project, taken as it is; of each only the
raw times are kept, before it rounds its averages to hundredths of a millisecond.

ONNX Runtime: `inference_ort` of onnxruntime/transformers/benchmark_helper.py. The function is taken
out of its file, whose other parts import PyTorch. LiteRT: `run_benchmark` of the package's
ai_edge_litert/tools/benchmark_litert_model.py, which draws its own random input.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def onnx(model: str, warmup: int, runs: int, inputs: Path) -> list[float]:
    """Times of ONNX Runtime's own helper, one thread."""
    import timeit

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (end,) = session.get_inputs()
    shape = [1, *end.shape[1:]]
    kind = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}[end.type]
    feed = {end.name: np.frombuffer(inputs.read_bytes(), kind)[: np.prod(shape)].reshape(shape)}
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "transformers/benchmark_helper.py"
    (found,) = (
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "inference_ort"
    )
    names: dict[str, Any] = {
        "timeit": timeit,
        "get_latency_result": lambda seconds, batch: {"ms": [1000 * s for s in seconds]},
    }
    exec(compile(ast.Module([found], []), str(source), "exec"), names)
    result = names["inference_ort"](session, feed, {}, runs, 1, warm_up_repeat=warmup)
    return list(result["ms"])


def tflite(model: str, warmup: int, runs: int) -> list[float]:
    """Times of LiteRT's own tool, one thread, sorted as it keeps them."""
    from ai_edge_litert.tools import benchmark_litert_model as tool

    seen: list[float] = []
    percentile = tool.percentile

    def kept(times: list[float], p: float) -> float:
        seen[:] = times
        return float(percentile(times, p))

    tool.percentile = kept
    sys.argv = [
        tool.__name__, f"--model={model}", f"--warmup_runs={warmup}", f"--num_runs={runs}",
        "--num_threads=1",
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        tool.run_benchmark(tool.parse_args())
    return seen


def main() -> None:
    """Print the raw times as JSON in the last line."""
    format, model, warmup, runs, inputs = sys.argv[1:]
    if format == "onnx":
        times = onnx(model, int(warmup), int(runs), Path(inputs))
    else:
        times = tflite(model, int(warmup), int(runs))
    print("\n" + json.dumps(times))


if __name__ == "__main__":
    main()
