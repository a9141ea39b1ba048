"""Controls: devices with nothing wrong, which no diagnosis may blame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.faults.subject import HOMES, Array, Case, Subject
from hetero.bundle import Probe
from hetero.diagnose import Trace, canaries


def controls(subject: Subject, seed: int) -> Iterator[Case]:
    """Healthy devices: other runtimes' settings, other pictures, small noise."""
    rng = np.random.default_rng([seed, 3])
    pixels = np.stack([subject.app.pixels(p.data) for p in subject.pictures])

    def gave(name: str, value: Array, home: str, **more: Any) -> Case:
        trace = Trace(subject.names, np.asarray(value, dtype=np.float32), **more.pop("trace", {}))
        return Case("", name, True, home, trace, **more)

    every = [f"{kind}:{p}" for kind in ("onnx", "tflite") for p in ("fp32", "fp16", "int8")]
    for home in every:
        rows, _ = subject.embed(subject.app, home)
        yield gave(f"{home} as it is", rows, home, device_only=True)
    for home in HOMES:
        rows, _ = subject.embed(subject.app, home)
        yield gave(f"an app of its own code, {home or 'tensors'}", rows, home)
    for home in ("onnx:fp32", "onnx:fp16", "onnx:int8"):
        yield gave(f"{home} without optimisation", _ort(subject, home, pixels, plain=True), home)
        yield gave(f"{home} with two threads", _ort(subject, home, pixels, threads=2), home)
        yield gave(f"{home} by sevens", _ort(subject, home, pixels, batch=7), home)
    for home in ("tflite:fp32", "tflite:fp16", "tflite:int8"):
        yield gave(f"{home} without delegate", _lite(subject, home, pixels), home)
    for home in ("onnx:fp32", "tflite:int8"):
        rows, _ = subject.embed(subject.app, home)
        for scale in (1e-6, 1e-5, 1e-4):
            noise = rng.normal(0, scale, rows.shape)
            yield gave(f"{home} with noise of {scale:g}", rows + noise, home)
        yield gave(f"{home} sent as float16", rows.astype(np.float16), home)
    jpeg = np.asarray([p.data[:2] == b"\xff\xd8" for p in subject.pictures])
    shaken = pixels.astype(np.int64)
    shaken[jpeg] += rng.integers(-1, 2, shaken[jpeg].shape)
    other = np.clip(shaken, 0, 255).astype(np.uint8)
    rows, _ = subject.embed(subject.app, "", other)
    yield gave("another JPEG decoder", rows, "")
    decoded = {p.name: np.asarray(subject.app.decoded(p.data)) for p in subject.pictures}
    rows, _ = subject.embed(subject.app, "")
    tensor = subject.app.input(pixels)
    full = {"pixels": pixels, "decoded": decoded, "tensor": tensor, "raw": rows}
    yield gave("everything recorded", rows, "", trace=full)
    rows, _ = subject.embed(subject.app, "onnx:int8")
    yield gave("pixels recorded, int8", rows, "onnx:int8", trace={"pixels": pixels})
    test = subject.images.rows("test")
    for at, home in enumerate(("", "onnx:int8")):
        some = [test[i] for i in rng.choice(len(test), 32, replace=False)]
        own = subject.images.pixels(some, subject.query.preprocess)
        probe = Probe(tuple(subject.images.ids[r] for r in some), own, np.zeros((32, 1), "f4"))
        pictures = canaries(probe, subject.query.preprocess)
        seen = np.stack([subject.app.pixels(p.data) for p in pictures])
        rows, _ = subject.embed(subject.app, home, seen)
        trace = Trace(tuple(p.name for p in pictures), rows)
        yield Case("", f"other pictures {at}", True, home, trace, probe=probe)


def _ort(
    subject: Subject,
    home: str,
    pixels: Array,
    *,
    plain: bool = False,
    threads: int = 1,
    batch: int = 0,
) -> Array:
    import onnxruntime

    item = subject.item(home)
    assert item is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        str(subject.query.path(item)), options, providers=["CPUExecutionProvider"]
    )
    step = batch or len(pixels)
    parts = [
        session.run(None, {"pixels": pixels[i : i + step]})[0] for i in range(0, len(pixels), step)
    ]
    return np.concatenate(parts)


def _lite(subject: Subject, home: str, pixels: Array) -> Array:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    item = subject.item(home)
    assert item is not None
    run = Interpreter(
        model_path=str(subject.query.path(item)),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    run.allocate_tensors()
    takes, gives = run.get_input_details()[0]["index"], run.get_output_details()[0]["index"]
    out = []
    for one in pixels:
        run.set_tensor(takes, one[None])
        run.invoke()
        out.append(run.get_tensor(gives).copy())
    return np.concatenate(out)
