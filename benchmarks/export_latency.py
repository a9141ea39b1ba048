"""Exported files of MobileNetV3-Small against the stock route's, side by side in one run.

    python -m benchmarks.export_latency

Ours: `hetero export`, uint8 pictures in, normalising and L2 inside. Stock: the same timm model with
a classifier of as many numbers, float32 NCHW in, normalised by the app and not timed, through
torch.onnx.export and litert_torch.convert as their documentation calls them; int8 by
onnxruntime.quantization.quantize_static and litert-quantizer's static_wi8_ai8 recipe, without any
settings of ours. Both sides see the same calibration pictures.

All files take turns, one picture each; a time is this thread's own on the processor, so that a busy
machine disturbs little. Operators that only move or convert numbers are counted in the graph that
the runtime runs: ONNX Runtime's own optimised graph, LiteRT's file. Raw numbers go to
benchmarks/results/export-latency.json.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lab import RESULTS, WORK, machine, save

NAME, DIM = "mobilenetv3_small_100", 128
PROBES, CALIBRATION, WARMUP = 16, 64, 5
PRECISIONS = ("fp32", "int8")
RUNTIMES = ("onnx", "tflite")

#: Operators that move or convert numbers and compute nothing.
MOVES = {
    "onnx": ("Transpose", "Cast", "QuantizeLinear", "DequantizeLinear"),
    "tflite": ("TRANSPOSE", "CAST", "QUANTIZE", "DEQUANTIZE"),
}

_TOOLS = ("torch", "timm", "onnx", "onnxruntime", "litert-torch", "litert-quantizer")


def main() -> None:
    """Export both ways where that is not done yet, count, take turns, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=224, help="side of the input, pixels")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    logging.disable(logging.ERROR)
    work = args.work / f"export-latency-{args.size}"
    work.mkdir(parents=True, exist_ok=True)
    files = made(work, args.size)
    for file in files:
        file["moves"] = moves(file["runtime"], Path(file["path"]), work)
        print(file["runtime"], file["precision"], file["route"], file["moves"], flush=True)
    times, cosines = turns(files, args.rounds, work, args.size)
    for file, spent, cosine in zip(files, times, cosines, strict=True):
        file |= {"ms": float(np.median(spent)) / 1e6, "cosine_median": cosine}
    value = {
        "command": "python -m benchmarks.export_latency",
        "model": NAME,
        "size_px": args.size,
        "dim": DIM,
        "rounds": args.rounds,
        "machine": machine(),
        "versions": {t: importlib.metadata.version(t) for t in _TOOLS},
        "files": [{k: v for k, v in f.items() if k != "path"} for f in files],
        "ratios": ratios(files, times),
    }
    save(args.results / "export-latency.json", value)
    for row in value["ratios"]:
        print(row)


def made(work: Path, size: int) -> list[dict[str, Any]]:
    """Runtime, precision, route, path and bytes of each file."""
    from hetero import export

    done = exported(work, size)
    stock = _stock(work, size)
    out = []
    for runtime in RUNTIMES:
        for precision in PRECISIONS:
            ours = done.path(done.artifact(runtime, precision))
            suffix = export.module(runtime).SUFFIX
            for route, path in (("ours", ours), ("stock", stock / f"{precision}{suffix}")):
                out.append(
                    {
                        "runtime": runtime,
                        "precision": precision,
                        "route": route,
                        "path": str(path),
                        "size_bytes": path.stat().st_size,
                    }
                )
    return out


def _pictures(split: str, count: int, size: int) -> np.ndarray:
    from benchmarks import support_nets as nets

    return nets.pictures(split, count, size)


def exported(work: Path, size: int, precisions: tuple[str, ...] = PRECISIONS) -> Any:
    """The bundle with our files, each made once."""
    from benchmarks import support_nets as nets
    from hetero import export, models
    from hetero.bundle import Bundle
    from hetero.space import Space

    root = work / "ours"
    wanted = {(r, p) for r in RUNTIMES for p in precisions}
    if not (root / "manifest.json").exists():
        net, preprocess = nets.net(NAME, size)
        pixels = _pictures("test", PROBES, size)
        space = Space("latency", hashlib.sha256(NAME.encode()).hexdigest(), DIM)
        models.as_it_is(root, net, nets.spec(NAME), space, preprocess, pixels)
    bundle = Bundle.load(root, verify=False)
    have = {(f.kind, f.precision) for f in bundle.exported()}
    for runtime, precision in sorted(wanted - have):
        bundle = export.export(
            bundle,
            runtime,
            precision,
            batch=1,
            calibration=_pictures("train", CALIBRATION, size),
        )
    return bundle


def _stock_net(size: int) -> tuple[Any, Any]:
    """timm's model with a classifier, its trunk as in our net, and the preprocessing."""
    import torch
    from torch import nn

    from benchmarks import support_nets as nets

    net, preprocess = nets.net(NAME, size)
    whole = net.backbone
    torch.manual_seed(0)
    with torch.no_grad():
        features = int(whole(torch.zeros(1, 3, size, size)).shape[1])
    whole.classifier = nn.Linear(features, DIM)
    return whole.eval().requires_grad_(False), preprocess


def _stock(work: Path, size: int) -> Path:
    """The folder with the stock route's four files."""
    import torch

    folder = work / "stock"
    folder.mkdir(exist_ok=True)
    names = [f"{precision}.{kind}" for kind in RUNTIMES for precision in PRECISIONS]
    left = [name for name in names if not (folder / name).exists()]
    if not left:
        return folder
    net, preprocess = _stock_net(size)
    sample = (torch.zeros(1, 3, size, size),)
    seen = preprocess.tensor(_pictures("train", CALIBRATION, size))
    if "fp32.onnx" in left:
        torch.onnx.export(net, sample, str(folder / "fp32.onnx"), external_data=False)
    if "int8.onnx" in left:
        _stock_int8_onnx(folder, seen)
    if "fp32.tflite" in left:
        import litert_torch

        litert_torch.convert(net, sample).export(str(folder / "fp32.tflite"))
    if "int8.tflite" in left:
        from litert_quantizer import quantizer, recipe

        plain = folder / "fp32.tflite"
        work_ = quantizer.Quantizer(str(plain), recipe.static_wi8_ai8())
        key, name = _signature(plain)
        ranges = work_.calibrate({key: [{name: x[None]} for x in seen]}, num_threads=1)
        done = work_.quantize(ranges, enable_progress_report=False).quantized_model
        (folder / "int8.tflite").write_bytes(bytes(done))
    return folder


def _stock_int8_onnx(folder: Path, seen: np.ndarray) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = folder / "ready.onnx"
    quant_pre_process(str(folder / "fp32.onnx"), str(ready))
    name = onnx.load(str(ready)).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter([{name: x[None]} for x in seen])

        def get_next(self) -> Any:
            return next(self._left, None)

    quantize_static(str(ready), str(folder / "int8.onnx"), Reader())


def _signature(path: Path) -> tuple[str, str]:
    from ai_edge_litert.interpreter import Interpreter

    ((key, ends),) = Interpreter(model_path=str(path)).get_signature_list().items()
    return key, ends["inputs"][0]


def moves(runtime: str, path: Path, work: Path) -> dict[str, int]:
    """How often each of `MOVES` occurs in the graph that the runtime runs.

    By kind the whole count, and "inside", those of them that stand between two layers. The others
    stand before the first layer or behind the last one: work on input and output that one route has
    in the file and the other leaves to the app.
    """
    if runtime == "onnx":
        import onnx
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(work / "optimised.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        nodes = [
            (n.op_type, list(n.input), list(n.output))
            for n in onnx.load(str(work / "optimised.onnx")).graph.node
        ]
    else:
        from ai_edge_litert import schema_py_generated as schema

        graph = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        codes = [names[max(c.builtinCode, c.deprecatedBuiltinCode)] for c in graph.operatorCodes]
        (part,) = graph.subgraphs
        nodes = [(codes[o.opcodeIndex], list(o.inputs), list(o.outputs)) for o in part.operators]
    counted = Counter(kind for kind, _, _ in nodes)
    inside = Counter(kind for kind, between in _between(nodes) if between)
    kinds = MOVES[runtime]
    return {
        **{kind: counted[kind] for kind in kinds},
        "inside": sum(inside[kind] for kind in kinds),
        "all": len(nodes),
    }


def _between(nodes: list[tuple[str, list[Any], list[Any]]]) -> list[tuple[str, bool]]:
    """Of each node its kind, and whether layers come before it and after it."""
    layers = ("CONV", "GEMM", "MATMUL", "FULLY_CONNECTED")

    def reached(order: list[tuple[str, list[Any], list[Any]]]) -> list[bool]:
        seen: set[Any] = set()
        out = []
        for kind, comes, goes in order:
            here = any(x in seen for x in comes)
            out.append(here)
            if here or any(x in kind.upper() for x in layers):
                seen |= set(goes) - {"", -1}  # of an end that is not used
        return out

    before = reached(nodes)
    after = reached([(kind, goes, comes) for kind, comes, goes in reversed(nodes)])[::-1]
    return [(kind, b and a) for (kind, _, _), b, a in zip(nodes, before, after, strict=True)]


def _plain(x: np.ndarray) -> np.ndarray:
    return x


#: What runs a file on one input, what an app has to do before, and after.
_Run = tuple[
    Callable[[np.ndarray], np.ndarray],
    Callable[[np.ndarray], np.ndarray],
    Callable[[np.ndarray], np.ndarray],
]


def _opened(file: dict[str, Any], stack: ExitStack) -> _Run:
    path = file["path"]
    if file["route"] == "ours":
        from hetero import export

        return stack.enter_context(export.load(Path(path), file["runtime"])), _plain, _plain
    if file["runtime"] == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: session.run(None, {name: x})[0], _plain, _plain
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_path=path, num_threads=1)
    run.allocate_tensors()
    ends = run.get_input_details()[0], run.get_output_details()[0]
    entry, out = (end["index"] for end in ends)
    (scale, zero), (out_scale, out_zero) = (end["quantization"] for end in ends)

    def before(x: np.ndarray) -> np.ndarray:
        return (x / scale + zero).round().clip(-128, 127).astype(np.int8) if scale else x

    def after(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32) - out_zero) * out_scale if out_scale else x

    def call(x: np.ndarray) -> np.ndarray:
        run.set_tensor(entry, x)
        run.invoke()
        return run.get_tensor(out)

    return call, before, after


def turns(
    files: list[dict[str, Any]], rounds: int, work: Path, size: int
) -> tuple[list[np.ndarray], list[float]]:
    """Nanoseconds of each file in each round, and its median cosine to its own net in PyTorch."""
    import torch

    from hetero.bundle import Bundle

    torch.set_num_threads(1)
    probe = Bundle.load(work / "ours", verify=False).probe()
    net, preprocess = _stock_net(size)
    images = preprocess.tensor(probe.pixels)
    with torch.no_grad():
        stock = net(torch.from_numpy(images)).numpy()
    right = {"ours": probe.vectors, "stock": stock}
    inputs = {"ours": probe.pixels, "stock": images}
    times = np.zeros((len(files), rounds))
    cosines = []
    with ExitStack() as stack:
        opened = [_opened(f, stack) for f in files]
        calls = [call for call, _, _ in opened]
        given = [
            before(inputs[file["route"]])
            for file, (_, before, _) in zip(files, opened, strict=True)
        ]
        for file, (call, _, after), taken in zip(files, opened, given, strict=True):
            side = file["route"]
            got = after(np.concatenate([call(x[None]) for x in taken]))
            cosines.append(float(np.median(_cosine(got, right[side]))))
        for at in range(rounds + WARMUP):
            # Another one begins each time, so that none always follows the same one.
            for which in np.roll(np.arange(len(files)), -at):
                x = given[which][at % len(images)][None]
                begin = time.thread_time_ns()
                calls[which](x)
                if at >= WARMUP:
                    times[which, at - WARMUP] = time.thread_time_ns() - begin
    return list(times), cosines


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def ratios(files: list[dict[str, Any]], times: list[np.ndarray]) -> list[dict[str, Any]]:
    """Our time over the stock file's, the median of the rounds, with its 95 % interval."""
    from scipy.stats import bootstrap

    place = {(f["runtime"], f["precision"], f["route"]): i for i, f in enumerate(files)}
    out = []
    for runtime in RUNTIMES:
        for precision in PRECISIONS:
            ours, stock = (times[place[runtime, precision, r]] for r in ("ours", "stock"))
            each = ours / stock
            ci = bootstrap((each,), np.median, method="percentile", rng=0).confidence_interval
            out.append(
                {
                    "runtime": runtime,
                    "precision": precision,
                    "ratio": float(np.median(each)),
                    "ci": [float(ci.low), float(ci.high)],
                }
            )
    return out


if __name__ == "__main__":
    main()
