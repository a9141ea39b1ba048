"""What is diagnosed: a query bundle with its files, and one thing wrong, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.faults import app as apps
from hetero.bundle import Artifact, Bundle, Probe
from hetero.data import Images
from hetero.diagnose import Diagnosis, FileCheck, Library, Trace, canaries, diagnose, library
from hetero.stages.diagnosing import BundleEngine, file_check, refusal, refused, run_file, scorer

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
        trace: What the device gave; None where the runtime refuses the file.
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
        self._checks: dict[str, FileCheck] = {}
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
        recall = self.recall
        if case.item is not None and case.trace is None:
            said = refusal(self.query, case.item)
            return refused(self.query, case.item, said, recall)
        known = self.known(home)
        if case.item is not None or case.probe is not None:
            pictures = self.pictures
            if case.probe is not None:
                pictures = canaries(case.probe, self.query.preprocess)
                recall = _self_recall(self.gallery, pictures, case.probe)
            engine = BundleEngine(self.query, item)
            known = library(pictures, self.query.preprocess, engine)
        return diagnose(
            known,
            case.trace,
            recall,
            precision=item.precision if item else "fp32",
            file=self._check(item, known, keep=case.probe is None),
            device_only=case.device_only,
        )

    def _check(self, item: Artifact | None, known: Library, *, keep: bool) -> FileCheck | None:
        """What the command works out about a file each time, worked out once."""
        if item is None:
            return None
        if not keep or item.path not in self._checks:
            engine, pixels = BundleEngine(self.query, item), known.states.pixels
            assert pixels is not None
            found = file_check(self.query, item, engine, pixels)
            if not keep:
                return found
            self._checks[item.path] = found
        return self._checks[item.path]


def _self_recall(gallery: Bundle, pictures: Any, probe: Probe) -> Callable[[Array], float]:
    from hetero import models

    stored = models.embed_pixels(models.load(gallery), gallery.preprocess, probe.pixels)
    base = np.asarray([probe.ids.index(p.base) for p in pictures])
    return lambda rows: float(((rows @ stored.T).argmax(axis=1) == base).mean())
