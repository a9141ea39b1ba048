"""Faults of every stage: in the app, in the runtime and after it, in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults import graphs, mistakes
from benchmarks.faults.subject import HOMES, Array, Case, Subject
from hetero.diagnose import Trace
from hetero.stages.diagnosing import refusal, run_file


def app_cases(subject: Subject, seed: int) -> Iterator[Case]:
    """Faults before the model."""
    rng = np.random.default_rng(seed)
    for wrong in mistakes.faults(rng):
        app = wrong.change(subject.app)
        tensor_level = wrong.stage in ("normalise", "layout")
        home, luck = HOMES[int(rng.integers(len(HOMES)))], int(rng.integers(6))
        home = "" if tensor_level else home
        rows, pixels = subject.embed(app, home)
        trace = Trace(subject.names, rows.astype(np.float32))
        # A third of the apps write down their pixels, half of those whatever they can.
        if luck < 2:
            trace = replace(trace, pixels=pixels)
        if luck < 1:
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

    part, power = float(rng.uniform(0.3, 0.7)), float(rng.uniform(2, 5))
    yield gave("pooling", "maximum", pooled(lambda x: x.amax((2, 3), keepdim=True)), True)
    yield gave(
        "pooling",
        f"{part:.2f} of the maximum, the rest mean",
        pooled(lambda x: part * x.amax((2, 3), True) + (1 - part) * x.mean((2, 3), True)),
    )
    yield gave(
        "pooling",
        f"power mean, p = {power:.1f}",
        pooled(lambda x: x.clamp(min=1e-6).pow(power).mean((2, 3), True).pow(1 / power)),
    )
    lengths = np.exp(rng.normal(1, 0.5, (len(rows), 1)))
    yield gave("l2", "not normalised", rows * lengths, True)
    yield gave("l2", "sum of absolute values", rows / np.abs(rows).sum(axis=1, keepdims=True), True)
    yield gave("l2", "over the batch", rows / np.linalg.norm(rows, axis=0), True)
    exponent = float(rng.choice([rng.uniform(0.3, 0.7), rng.uniform(1.5, 3)]))
    curved = np.sign(rows) * np.abs(rows) ** exponent
    curved = curved / np.linalg.norm(curved, axis=1, keepdims=True)
    yield gave("l2", f"numbers to the power of {exponent:.2f} first", curved)
    centred = rows - rows.mean(axis=0)
    centred = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    yield gave("l2", "the batch's mean taken off first", centred)
    yield gave("output", "shuffled", rows[:, rng.permutation(dim)], True)
    some = int(rng.integers(dim // 4, dim - 1))
    yield gave("output", f"{some} of {dim} numbers", rows[:, :some], True)
    signs = np.where(rng.random(dim) < 0.3, -1, 1)
    yield gave("output", "some signs turned", rows * signs, True)
    yield gave("output", "the picture before", np.roll(rows, 1, axis=0), True)
    top = 1 << int(rng.integers(2, 4))
    scale = top / float(np.quantile(np.abs(rows), rng.uniform(0.9, 0.99)))
    coarse = np.clip(np.rint(rows * scale), -top, top - 1)
    yield gave("output", f"{2 * top} levels", coarse)
    zero = int(rng.integers(60, 190))
    yield gave("output", f"bytes, {zero} is zero", np.clip(np.rint(rows * 100 + zero), 0, 255))
    share = float(rng.uniform(0.3, 0.7))
    yield gave("output", f"{share:.2f} of the one before added", rows + share * np.roll(rows, 1, 0))
    home = "onnx:fp32"
    real, _ = subject.embed(subject.app, home)
    broken = real.copy()
    broken[rng.random(len(rows)) < 0.1] = np.nan
    yield gave("runtime", "NaN in some rows", broken, True, home=home, device_only=True)
    size = float(rng.uniform(0.06, 0.3))
    noisy = real + rng.normal(0, size / np.sqrt(dim), real.shape)
    yield gave("runtime", f"noise of {size:.2f}", noisy, home=home, device_only=True)
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
        trace = None
        if not refusal(subject.query, item):
            pixels = subject.known("").states.pixels
            assert pixels is not None
            trace = Trace(subject.names, run_file(subject.query, item, pixels))
        home = f"{damage.kind}:{damage.precision}"
        yield Case(damage.stage, damage.name, False, home, trace, True, item, hint)
