"""What the tests of devices share: tiny models, a runtime and a device that misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hetero.errors import DeviceError

SIZE, DIM = 4, 5  # of the tiny models: 4x4 RGB pixels in, 5 numbers out


def tiny_weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(DIM, SIZE * SIZE * 3)).astype(np.float32)


def tiny_pixels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def tiny_answers(inputs: np.ndarray) -> np.ndarray:
    """What every tiny model gives, in float64: its one matrix times the flattened input."""
    return inputs.reshape(len(inputs), -1).astype(np.float64) @ tiny_weights().T.astype(np.float64)


def write_onnx(
    path: Path, *, batch: int | str = "n", dtype: str = "uint8", outputs: int = 1, flat: bool = True
) -> Path:
    """An ONNX file: cast, flatten, one matrix. `flat` off leaves out what makes rows of it."""
    from onnx import TensorProto, checker, helper, numpy_helper, save_model

    kinds = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
    gives = "embedding" if flat else "unused"
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], [gives], transB=1),
    ]
    if not flat:
        nodes.append(helper.make_node("Identity", ["floats"], ["embedding"]))
    shape = [batch, DIM] if flat else [batch, SIZE, SIZE, 3]
    ends = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, shape)]
    for number in range(1, outputs):
        nodes.append(helper.make_node("Identity", ["embedding"], [f"more{number}"]))
        ends.append(helper.make_tensor_value_info(f"more{number}", TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", kinds[dtype], [batch, SIZE, SIZE, 3])],
        ends,
        [numpy_helper.from_array(tiny_weights(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    save_model(model, path)
    return path


#: Of the int8 file: scale of the input, of the matrix and of the output, whose zero point is 3.
SCALES = (1 / 128, 0.02, 0.5)
ZERO = 3


def write_tflite(path: Path, *, dtype: str = "uint8") -> Path:
    """A TFLite file with the same matrix: uint8 in and float out, or int8 in and out."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as tfl

    kind = tfl.TensorType
    model, graph = tfl.ModelT(), tfl.SubGraphT()
    model.version, model.description = 3, "tiny"
    model.buffers, model.operatorCodes, model.subgraphs = [tfl.BufferT()], [], [graph]
    graph.name, graph.tensors, graph.operators = "main", [], []

    def tensor(
        name: str, shape: tuple[int, ...], type_: int, data: bytes = b"", q: Any = None
    ) -> int:
        one = tfl.TensorT()
        one.name, one.shape, one.type, one.buffer = name, list(shape), type_, 0
        if data:
            buffer = tfl.BufferT()
            buffer.data = np.frombuffer(data, np.uint8)
            model.buffers.append(buffer)
            one.buffer = len(model.buffers) - 1
        if q:
            one.quantization = tfl.QuantizationParametersT()
            one.quantization.scale, one.quantization.zeroPoint = [q[0]], [q[1]]
        graph.tensors.append(one)
        return len(graph.tensors) - 1

    def operator(code: int, version: int, takes: list[int], gives: int, options: Any) -> None:
        about, one = tfl.OperatorCodeT(), tfl.OperatorT()
        about.builtinCode, about.deprecatedBuiltinCode, about.version = code, code, version
        model.operatorCodes.append(about)
        one.opcodeIndex = len(model.operatorCodes) - 1
        one.inputs, one.outputs, one.builtinOptions = takes, [gives], options
        one.builtinOptionsType = getattr(tfl.BuiltinOptions, type(options).__name__[:-1])
        graph.operators.append(one)

    shape = (1, SIZE, SIZE, 3)
    if dtype == "uint8":
        takes = tensor("pixels", shape, kind.UINT8)
        flat = tensor("floats", shape, kind.FLOAT32)
        cast = tfl.CastOptionsT()
        cast.inDataType, cast.outDataType = kind.UINT8, kind.FLOAT32
        operator(tfl.BuiltinOperator.CAST, 1, [takes], flat, cast)
        weights = tensor("w", tiny_weights().shape, kind.FLOAT32, tiny_weights().tobytes())
        gives, version = tensor("embedding", (1, DIM), kind.FLOAT32), 1
    else:
        takes = flat = tensor("pixels", shape, kind.INT8, q=(SCALES[0], 0))
        codes = tiny_codes().tobytes()
        weights = tensor("w", tiny_weights().shape, kind.INT8, codes, q=(SCALES[1], 0))
        gives, version = tensor("embedding", (1, DIM), kind.INT8, q=(SCALES[2], ZERO)), 4
    options = tfl.FullyConnectedOptionsT()
    operator(tfl.BuiltinOperator.FULLY_CONNECTED, version, [flat, weights, -1], gives, options)
    graph.inputs, graph.outputs = [takes], [gives]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def tiny_codes() -> np.ndarray:
    """The matrix of the int8 file."""
    return np.clip(np.rint(tiny_weights() / SCALES[1]), -127, 127).astype(np.int8)


#: Stands in for onnxruntime in a worker's process when its folder comes first in PYTHONPATH.
#: FAKE_RUNTIME says what it does at which call; call 0 is the first inference, row i is call i + 1.
FAKE_RUNTIME = """
import json, os, sys, time
import numpy as np

print("runtime: chatter on stdout")
print('{"hetero": "done", "rows": 1}', flush=True)
print("runtime: chatter on stderr", file=sys.stderr, flush=True)
FAULT = json.loads(os.environ.get("FAKE_RUNTIME", "{}"))
if FAULT.get("at") == "import":
    raise ImportError("libfake.so.1: version `GLIBC_9.99' not found")

def misbehave(call):
    once = FAULT.get("once")
    if FAULT.get("at") != call or (once and os.path.exists(once)):
        return
    if once:
        open(once, "w").close()
    if FAULT["do"] == "hang":
        time.sleep(60)
    if FAULT["do"] == "crash":
        os.abort()
    if FAULT["do"] == "fail":
        raise RuntimeError("a made-up\\n  failure")
    if FAULT["do"] == "memory":
        raise MemoryError

class SessionOptions:
    pass

class End:
    def __init__(self, name, type, shape):
        self.name, self.type, self.shape = name, type, shape

class InferenceSession:
    def __init__(self, path, options, providers):
        misbehave("load")
        self.calls = 0
    def get_inputs(self):
        return [End("pixels", "tensor(uint8)", ["n", 4, 4, 3])]
    def get_outputs(self):
        return [End("embedding", "tensor(float)", ["n", 3])]
    def get_providers(self):
        return ["FakeProvider"]
    def run(self, names, feed):
        misbehave(self.calls)
        self.calls += 1
        return [feed["pixels"].reshape(1, -1)[:, :3].astype(np.float32)]
"""


def fake_answers(inputs: np.ndarray) -> np.ndarray:
    """What the fake runtime gives: the first three numbers of each input."""
    return inputs.reshape(len(inputs), -1)[:, :3].astype(np.float32)


def put_fake_runtime(folder: Path, **fault: Any) -> dict[str, str]:
    """The environment in which a worker imports the fake runtime, with one fault."""
    folder.mkdir(exist_ok=True)
    (folder / "onnxruntime.py").write_text(FAKE_RUNTIME)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "FAKE_RUNTIME": json.dumps(fault)}


# -- a device that does not exist -----------------------------------------------------------------

Step = bytes | Exception | None


@dataclass
class FakeDevice:
    """A device in memory whose worker is a list of steps, one for each look at its log.

    A step is bytes that the log grows by, an exception that the look raises, or None for silence.
    `workers` holds the steps of each worker in turn; after its last step a worker is gone, unless
    `immortal`, then it is there and says nothing. `files` are what a worker left to be fetched.
    """

    workers: list[list[Step]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    immortal: bool = False
    cut_start: bool = False
    name: str = "fake:one"
    execution: str = "native"
    threads: int | None = None
    log: bytes = b""
    steps: list[Step] = field(default_factory=list)
    started: list[bool] = field(default_factory=list)
    connections: int = 0
    stops: int = 0
    puts: list[tuple[str, bool]] = field(default_factory=list)
    on_get: Callable[[str], None] = lambda name: None
    alive: bool = False

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[FakeDevice]:
        self.connections += 1
        yield self

    def probe(self) -> dict[str, Any]:
        raise DeviceError(self.name, "does not exist")

    def put(self, source: Path, name: str, *, again: bool = True) -> None:
        assert source.is_file()
        self.puts.append((name, again))

    def start(self, run: str, *, fresh: bool) -> None:
        self.started.append(fresh)
        self.log = b"" if fresh else self.log
        self.steps = list(self.workers.pop(0)) if self.workers else []
        self.alive = True
        if self.cut_start:
            self.cut_start = False
            raise ConnectionResetError("cut right after the start")

    def follow(self, run: str, offset: int) -> tuple[bytes, bool]:
        if self.alive:
            step = self.steps.pop(0) if self.steps else None
            if isinstance(step, Exception | KeyboardInterrupt):
                raise step
            self.log += step or b""
            self.alive = bool(self.steps) or self.immortal
        return self.log[offset:], self.alive

    def get(self, name: str, target: Path) -> None:
        short = name.rpartition("/")[2]
        self.on_get(short)
        if short == "log.jsonl":
            target.write_bytes(self.log)
        elif short in self.files:
            target.write_bytes(self.files[short])
        else:
            raise FileNotFoundError(name)

    def stop(self, run: str) -> None:
        self.stops += self.alive
        self.alive = False


def line(event: str, **fields: Any) -> bytes:
    """One event as a worker writes it."""
    return json.dumps({"hetero": event, "t_s": 0.0, **fields}).encode() + b"\n"


HELLO: dict[str, Any] = {
    "version": 1,
    "worker": "fake",
    "pid": 7,
    "runtime": "onnxruntime",
    "runtime_version": "9.9",
    "threads": 1,
    "cpu": "Cortex-A76",
    "features": ["dotprod"],
    "system": "none",
}


def transcript(
    outputs: np.ndarray, runs: int = 3, *, start: int = 0, **changed: Any
) -> list[bytes]:
    """What a worker says that gives `outputs`; `changed` are fields of its "done"."""
    out, lat = raw_files(outputs, runs).values()
    done = {
        "rows": len(outputs),
        "dim": outputs.shape[1],
        "runs": runs,
        "out_bytes": len(out),
        "out_sha256": hashlib.sha256(out).hexdigest(),
        "lat_bytes": len(lat),
        "lat_sha256": hashlib.sha256(lat).hexdigest(),
        "switches": 3,
        "cpu_share": 0.99,
        "measured": runs,
        **changed,
    }
    rows = [line("run", i=i, n=1, ns=10 + i) for i in range(start, len(outputs))]
    return [
        line("hello", **HELLO),
        line("ready", provider="fake", import_ns=5, load_ns=6),
        line("first", ns=7, dim=outputs.shape[1], batch=1, start=start, runs=0),
        *rows,
        line("bench", warmup_runs=1, runs=0),
        line("telemetry", temperatures_c={"cpu": 51.5, "gpu": 48}),
        line("done", **done),
    ]


def raw_files(outputs: np.ndarray, runs: int = 3) -> dict[str, bytes]:
    """The files that go with `transcript`."""
    times = [10 + i for i in range(len(outputs))] + [100 + i for i in range(runs)]
    return {
        "out.bin": outputs.astype("<f4").tobytes(),
        "lat.bin": np.array(times, "<i8").tobytes(),
    }
