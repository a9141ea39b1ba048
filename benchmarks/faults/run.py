"""Every fault and every control diagnosed; what was true and what was named."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults import app as apps
from benchmarks.faults import graphs
from hetero.bundle import Artifact, Bundle, Probe
from hetero.data import Images
from hetero.diagnose import Diagnosis, Library, Trace, canaries, diagnose, library
from hetero.stages.diagnosing import BundleEngine, file_check, run_file, scorer

Array = np.ndarray[Any, Any]

#: Where an app's pixels go: PyTorch stands for a float model fed with tensors.
HOMES = ("", "onnx:fp32", "tflite:fp32", "onnx:int8", "tflite:int8")


@dataclass(frozen=True)
class Case:
    """One thing to diagnose.

    Attributes:
        stage: The guilty one; "" for a healthy control.
        name: What was done.
        known: Whether a hypothesis does the very same.
        home: The file the diagnosis is told of, "" for none.
        trace: What the device gave, or None to look at the file alone.
        device_only: The device was given the reference's pixels.
        item: The file, where it is not the bundle's own.
        hint: Where in the file the damage is.
        pictures: Canaries of other pictures than the bundle's; None for its own.
    """

    stage: str
    name: str
    known: bool
    home: str
    trace: Trace | None
    device_only: bool = False
    item: Artifact | None = None
    hint: str = ""
    probe: Probe | None = None


class Subject:
    """A query bundle with its files, its gallery, and what diagnoses of it share."""

    def __init__(self, query: Bundle, gallery: Bundle, images: Images) -> None:
        self.query, self.gallery, self.images = query, gallery, images
        self.pictures = canaries(query.probe(), query.preprocess)
        self.names = tuple(p.name for p in self.pictures)
        self.recall = scorer(query, gallery, self.pictures, images)
        self._known: dict[str, Library] = {}
        spec = query.preprocess
        self.app = apps.right(spec.size_px, spec.mean, spec.std)
        self.net = BundleEngine(query).net

    def item(self, home: str) -> Artifact | None:
        kind, _, precision = home.partition(":")
        return self.query.artifact(kind, precision) if home else None

    def known(self, home: str) -> Library:
        if home not in self._known:
            engine = BundleEngine(self.query, self.item(home))
            self._known[home] = library(self.pictures, self.query.preprocess, engine)
        return self._known[home]

    def embed(self, app: apps.App, home: str, pixels: Array | None = None) -> tuple[Array, Array]:
        """(rows, pixels) of an app that runs this file, or PyTorch."""
        if pixels is None:
            pixels = np.stack([app.pixels(p.data) for p in self.pictures])
        if home:
            item = self.item(home)
            assert item is not None
            return run_file(self.query, item, pixels), pixels
        return self.torch_rows(app.input(pixels)), pixels

    def torch_rows(self, tensor: Array) -> Array:
        import torch

        with torch.no_grad():
            return self.net(torch.from_numpy(tensor)).numpy()

    def solve(self, case: Case) -> Diagnosis:
        """The diagnosis of a case, as the command would make it."""
        home, item = case.home, case.item or self.item(case.home)
        known = self.known(home)
        recall = self.recall
        if case.item is not None or case.probe is not None:
            pictures = self.pictures
            if case.probe is not None:
                pictures = canaries(case.probe, self.query.preprocess)
                recall = _self_recall(self.gallery, pictures, case.probe)
            engine = BundleEngine(self.query, item)
            known = library(pictures, self.query.preprocess, engine)
        check = None
        if item is not None:
            pixels = known.states.pixels
            assert pixels is not None
            check = file_check(self.query, item, BundleEngine(self.query, item), pixels)
        return diagnose(
            known,
            case.trace,
            recall,
            precision=item.precision if item else "fp32",
            file=check,
            device_only=case.device_only,
        )


def _self_recall(gallery: Bundle, pictures: Any, probe: Probe) -> Callable[[Array], float]:
    from hetero import models

    stored = models.embed_pixels(models.load(gallery), gallery.preprocess, probe.pixels)
    base = np.asarray([probe.ids.index(p.base) for p in pictures])
    return lambda rows: float(((rows @ stored.T).argmax(axis=1) == base).mean())


def app_cases(subject: Subject, seed: int) -> Iterator[Case]:
    """Faults before the model."""
    rng = np.random.default_rng(seed)
    for at, wrong in enumerate(apps.faults(rng)):
        app = wrong.change(subject.app)
        tensor_level = wrong.stage in ("normalise", "layout")
        home = "" if tensor_level else HOMES[at % len(HOMES)]
        rows, pixels = subject.embed(app, home)
        trace = Trace(subject.names, rows.astype(np.float32))
        if at % 3 == 2:
            trace = replace(trace, pixels=pixels)
        if at % 6 == 5:
            decoded = [np.asarray(app.decoded(p.data)) for p in subject.pictures]
            trace = replace(trace, decoded=dict(zip(subject.names, decoded, strict=True)))
            if not home:
                trace = replace(trace, tensor=app.input(pixels))
        yield Case(wrong.stage, wrong.name, wrong.known, home, trace)


def model_cases(subject: Subject, seed: int) -> Iterator[Case]:
    """Faults of the device's runtime and of what follows it."""
    import torch

    rng = np.random.default_rng([seed, 1])
    rows, pixels = subject.embed(subject.app, "")
    dim = rows.shape[1]

    def gave(stage: str, name: str, value: Array, known: bool = False, **more: Any) -> Case:
        trace = Trace(subject.names, np.asarray(value, dtype=np.float32))
        return Case(stage, name, known, more.pop("home", ""), trace, **more)

    def pooled(how: Callable[[Any], Any]) -> Array:
        pools = [m for m in subject.net.modules() if isinstance(m, torch.nn.AdaptiveAvgPool2d)]
        handle = pools[-1].register_forward_hook(lambda _, inputs, __: how(inputs[0]))
        try:
            return subject.torch_rows(subject.app.input(pixels))
        finally:
            handle.remove()

    yield gave("pooling", "maximum", pooled(lambda x: x.amax((2, 3), keepdim=True)), True)
    yield gave(
        "pooling",
        "half mean, half maximum",
        pooled(lambda x: 0.5 * (x.amax((2, 3), keepdim=True) + x.mean((2, 3), keepdim=True))),
    )
    lengths = np.exp(rng.normal(1, 0.5, (len(rows), 1)))
    yield gave("l2", "not normalised", rows * lengths, True)
    yield gave("l2", "sum of absolute values", rows / np.abs(rows).sum(axis=1, keepdims=True), True)
    yield gave("l2", "over the batch", rows / np.linalg.norm(rows, axis=0), True)
    square = rows * np.abs(rows)
    yield gave("l2", "squares", square / np.linalg.norm(square, axis=1, keepdims=True))
    yield gave("output", "shuffled", rows[:, rng.permutation(dim)], True)
    yield gave("output", "half of the numbers", rows[:, : dim // 2], True)
    signs = np.where(rng.random(dim) < 0.3, -1, 1)
    yield gave("output", "some signs turned", rows * signs, True)
    yield gave("output", "the picture before", np.roll(rows, 1, axis=0), True)
    coarse = np.clip(np.rint(rows * 40), -8, 7)
    yield gave("output", "four bits", coarse)
    yield gave("output", "bytes with an offset", np.clip(np.rint(rows * 100 + 90), 0, 255))
    yield gave("output", "mixed with the one before", rows + 0.5 * np.roll(rows, 1, axis=0))
    home = "onnx:fp32"
    real, _ = subject.embed(subject.app, home)
    broken = real.copy()
    broken[rng.random(len(rows)) < 0.1] = np.nan
    yield gave("runtime", "NaN in some rows", broken, True, home=home, device_only=True)
    noisy = real + rng.normal(0, 0.08 / np.sqrt(dim), real.shape)
    yield gave("runtime", "noise", noisy, home=home, device_only=True)
    black, _ = subject.embed(subject.app, home, np.zeros_like(pixels))
    yield gave("runtime", "an empty input", black, True, home=home, device_only=True)
    same, _ = subject.embed(subject.app, home, np.repeat(pixels[:1], len(pixels), axis=0))
    yield gave("runtime", "the first picture for ever", same, True, home=home, device_only=True)
    weights = {k: v.clone() for k, v in subject.net.state_dict().items()}
    try:
        for value in subject.net.state_dict().values():
            if value.dtype == torch.float32:
                cut = value.numpy().view(np.uint32) & np.uint32(0xFFF80000)
                value.copy_(torch.from_numpy(cut.view(np.float32)))
        short = subject.torch_rows(subject.app.input(pixels))
    finally:
        subject.net.load_state_dict(weights)
    yield gave("runtime", "weights of 4-bit mantissa", short, home=home, device_only=True)


def file_cases(subject: Subject, seed: int) -> Iterator[Case]:
    """Damaged files, which the device then runs faithfully."""
    for at, damage in enumerate(graphs.damages()):
        rng = np.random.default_rng([seed, 2, at])
        plain = subject.query.artifact(damage.kind, damage.precision)
        raw, hint = damage.make(subject.query.path(plain).read_bytes(), rng)
        path = subject.query.root / f"damaged-{at:02}{Path(plain.path).suffix}"
        path.write_bytes(raw)
        # Another tool wrote it: nothing is recorded of how near it was to PyTorch.
        item = plain.model_copy(update={"path": path.name, "facts": {}})
        pixels = subject.known("").states.pixels
        assert pixels is not None
        trace = Trace(subject.names, run_file(subject.query, item, pixels))
        home = f"{damage.kind}:{damage.precision}"
        yield Case(damage.stage, damage.name, False, home, trace, True, item, hint)


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


def _recorded(trace: Trace | None) -> list[str]:
    """What a trace holds beside the vectors."""
    if trace is None:
        return []
    found = [n for n in ("pixels", "tensor", "raw") if getattr(trace, n) is not None]
    return [*found, "decoded"] if trace.decoded else found


def record(subject: str, case: Case, found: Diagnosis, seconds: float) -> dict[str, Any]:
    """One row of the raw results."""
    layer = found.layer
    return {
        "model": subject,
        "true": case.stage,
        "fault": case.name,
        "known": case.known,
        "file": case.home,
        "recorded": _recorded(case.trace),
        "verdict": found.verdict,
        "named": found.stage,
        "cause": found.faults[0].cause if found.faults else "",
        "exact": found.faults[0].exact if found.faults else False,
        "others": [f.stage for f in found.faults[1:]],
        "cosine_lost": round(found.cosine_lost, 8),
        "recall_lost": round(found.recall_lost, 4),
        "adds_up": bool(
            abs(sum(x.cosine_lost for x in found.losses) - found.cosine_lost) < 1e-9
            and abs(sum(x.recall_lost for x in found.losses) - found.recall_lost) < 1e-9
        ),
        "damaged": case.hint,
        "layer": layer.module if layer else "",
        "suspects": [[s.stage, s.what, round(s.explained, 3)] for s in found.suspects[:3]],
        "seconds": round(seconds, 2),
    }


def run(
    subjects: Sequence[tuple[str, Subject]], seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """All faults and controls on all models."""
    faults: list[dict[str, Any]] = []
    healthy: list[dict[str, Any]] = []
    for name, subject in subjects:
        for cases in (app_cases, model_cases, file_cases, controls):
            for case in cases(subject, seed):
                begun = time.monotonic()
                row = record(name, case, subject.solve(case), time.monotonic() - begun)
                (faults if case.stage else healthy).append(row)
                good = row["named"] == row["true"]
                mark = "ok  " if good else "MISS"
                true, named = row["true"] or "healthy", row["named"] or row["verdict"]
                what = f"{row['fault']} [{row['file']}] {row['cause'][:60]} {row['seconds']}s"
                say(f"{mark} {name} {true:12} -> {named:12} {what}")
    return {**summary(faults, healthy), "faults": faults, "controls": healthy}


def summary(faults: Sequence[dict[str, Any]], healthy: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The counts that a reader looks for first."""
    right = [r for r in faults if r["named"] == r["true"]]
    by_stage = Counter(r["true"] for r in faults)
    hit = Counter(r["true"] for r in right)
    unknown = [r for r in faults if not r["known"]]
    return {
        "n_faults": len(faults),
        "distinct_faults": len({(r["true"], r["fault"]) for r in faults}),
        "right_stage_first": len(right),
        "share": round(len(right) / max(1, len(faults)), 4),
        "without_a_hypothesis": [sum(r["named"] == r["true"] for r in unknown), len(unknown)],
        "wrong_stage": sum(r["verdict"] == "fault" and r["named"] != r["true"] for r in faults),
        "inconclusive": sum(r["verdict"] == "inconclusive" for r in faults),
        "called_healthy": sum(r["verdict"] == "healthy" for r in faults),
        "by_stage": {s: [hit[s], n] for s, n in sorted(by_stage.items())},
        "n_controls": len(healthy),
        "false_alarms": sum(r["verdict"] == "fault" for r in healthy),
        "controls_inconclusive": sum(r["verdict"] == "inconclusive" for r in healthy),
        "sums_add_up": all(r["adds_up"] for r in (*faults, *healthy)),
    }
