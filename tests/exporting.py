"""What the tests of exports share: a small trained bundle, and its files, each made once."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np

from hetero import data, models
from hetero.bundle import Bundle, Model
from hetero.export import PRECISIONS, export_each
from hetero.preprocess import Preprocess
from hetero.space import Space

SIZE, DIM, CLASSES = 24, 16, 24
#: Hard-swish and squeeze-and-excite, so that all of the rewriting takes place.
BACKBONE = "mobilenet:width=0.5,depth=0.5,stride=2,act=hswish,se=1"


@functools.cache
def _home() -> Path:
    path = Path(tempfile.mkdtemp(prefix="hetero-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def bundle() -> Bundle:
    """A query bundle trained for seconds: untrained weights misjudge int8."""
    import torch

    images = data.load("emoji")
    preprocess = Preprocess(size_px=SIZE)
    labels = images.classes("train")[:CLASSES]
    rows = [r for r in images.rows("train") if images.labels[r] in labels]
    target = torch.tensor([labels.index(images.labels[r]) for r in rows])
    pixels = torch.from_numpy(images.pixels(rows, preprocess))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.build(BACKBONE, DIM, SIZE)
        head = torch.nn.Parameter(torch.randn(CLASSES, DIM))
        whole = models.FromPixels(net, preprocess).train()
        steps = torch.optim.AdamW([*net.parameters(), head], 4e-3)
        rng = np.random.default_rng(0)
        for _ in range(60):
            some = torch.from_numpy(rng.integers(0, len(rows), 48))
            scores = whole(pixels[some]) @ torch.nn.functional.normalize(head, dim=1).T
            loss = torch.nn.functional.cross_entropy(12 * scores, target[some])
            steps.zero_grad()
            loss.backward()
            steps.step()
    net.eval()
    test = images.rows("test")[:480:10]
    probe = images.pixels(test, preprocess)
    ids = "\n".join(images.ids[r] for r in test).encode()
    return Bundle.create(
        _home() / "bundle",
        role="query",
        space=Space("gallery", "0123456789abcdef" * 4, DIM),
        model=Model(backbone=BACKBONE, dim=DIM, parameters=1, macs=1),
        preprocess=preprocess,
        recipe={},
        tensors={
            "weights": models.arrays(net),
            "probe": {
                "ids": np.frombuffer(ids, dtype=np.uint8),
                "pixels": probe,
                "vectors": models.embed_pixels(net, preprocess, probe),
            },
        },
    )


@functools.cache
def calibration() -> np.ndarray:
    images = data.load("emoji")
    return images.pixels(images.rows("train")[:640:10], Preprocess(size_px=SIZE))


def copy_of_bundle(to: Path) -> Bundle:
    """A bundle that a test may spoil."""
    for name in ("manifest.json", "weights.safetensors", "probe.safetensors"):
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle().root / name, to / name)
    kept = tuple(f for f in bundle().manifest.files if not f.precision)
    fresh = Bundle(to, bundle().manifest.model_copy(update={"files": kept}))
    fresh._write()
    return Bundle.load(to)


@functools.cache
def exported(
    format: str,
    precisions: tuple[str, ...] = PRECISIONS,
    bake: bool = True,
    batch: int | None = None,
) -> tuple[Bundle, tuple[str, ...]]:
    """A bundle with these files, all made by one call, and the lines that the export said."""
    said: list[str] = []
    done = bundle()
    for done in export_each(  # noqa: B007
        copy_of_bundle(_home() / "-".join([format, *precisions, str(bake), str(batch)])),
        format,
        precisions,
        calibration=calibration(),
        bake=bake,
        batch=batch,
        on_line=said.append,
    ):
        pass
    return Bundle.load(done.root), tuple(said)
