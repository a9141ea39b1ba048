"""What is fuzzed: each target writes a damaged file into its folder and gives it to a loader."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzz import mutate, seeds
from hetero import bundle as bundles
from hetero._files import canonical_json
from hetero.export import _guard, _seal, coreml, onnx, tflite
from hetero.passport import Passport
from hetero.preprocess import Preprocess
from hetero.report import Report

#: (generator) -> the damaged input, and what loads it.
Case = Callable[[random.Random], tuple[bytes, Callable[[], object]]]


@dataclass(frozen=True)
class Target:
    """A loader and its share of all cases."""

    name: str
    share: int
    make: Case


def resealed(raw: bytes) -> bytes:
    """The file with a right seal in place of its own, if it still has one: a forger's work."""
    if len(_seal._SEAL.findall(raw)) != 1:
        return raw
    blank = _seal._SEAL.sub(_seal.BLANK.encode(), raw)
    return _seal.seal(blank) if blank.count(_seal.BLANK.encode()) == 1 else raw


def signed(value: Any) -> Any:
    """A JSON object with the right hash of itself under "sha256", as manifests have it."""
    if not isinstance(value, dict):
        return value
    content = {k: v for k, v in value.items() if k != "sha256"}
    # What cannot be written or hashed is left as it is.
    try:
        read = json.loads(json.dumps(content))
        text = canonical_json(read).encode(errors="backslashreplace")
    except (ValueError, TypeError, RecursionError):
        return value
    return {**content, "sha256": hashlib.sha256(text).hexdigest()}


def targets(home: Path) -> tuple[Target, ...]:
    """All targets; their files are below `home`."""
    made = seeds.bundle(home / "bundle")
    manifest = json.loads((made.root / "manifest.json").read_bytes())
    passport, report = seeds.passport(), seeds.report(home / "report.json")
    models = {"onnx": seeds.onnx(), "tflite": seeds.tflite(), "coreml": seeds.coreml()}
    contents = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {"a": {"path": "com.apple.CoreML/model.mlmodel", "name": "m"}},
        "rootModelIdentifier": "a",
    }
    package = home / "seed.mlpackage"
    inner = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    inner.parent.mkdir(parents=True)
    inner.write_bytes(models["coreml"])
    (package / "Manifest.json").write_text(json.dumps(contents))
    others = b"".join(models.values())

    def json_file(value: Any, path: Path, load: Callable[[], object], sign: bool) -> Case:
        def case(rng: random.Random) -> tuple[bytes, Callable[[], object]]:
            kind = rng.random()
            if kind < 0.2:
                raw = mutate.of_bytes(json.dumps(value).encode(), others, rng)
            else:
                bad = mutate.of_json(value, rng)
                raw = mutate.text(signed(bad) if sign and kind < 0.9 else bad, rng)
            path.write_bytes(raw)
            return raw, load

        return case

    def model_file(format: str, path: Path, load: Callable[[], object]) -> Case:
        def case(rng: random.Random) -> tuple[bytes, Callable[[], object]]:
            if format == "coreml":  # what the last case on its list of contents left
                (package / "Manifest.json").write_text(json.dumps(contents))
            raw = mutate.of_bytes(models[format], others, rng)
            raw = resealed(raw) if rng.random() < 0.9 else raw
            path.write_bytes(raw)
            return raw, load

        return case

    def spec(rng: random.Random) -> tuple[bytes, Callable[[], object]]:
        bad = mutate.of_json({"spec": Preprocess().to_json()}, rng)
        value = bad.get("spec") if isinstance(bad, dict) else bad
        return repr(value).encode("utf-8", "backslashreplace"), lambda: Preprocess.from_json(value)

    def texts(rng: random.Random) -> tuple[bytes, Callable[[], object]]:
        """A header alone: the guard, without a seal or a runtime around it."""
        format = rng.choice(("onnx", "tflite"))
        raw = mutate.of_bytes(models[format], others, rng)
        return raw, lambda: getattr(_guard, format)(raw, format)

    def contents_file(rng: random.Random) -> tuple[bytes, Callable[[], object]]:
        inner.write_bytes(models["coreml"])  # and what the last case on the model left
        return listed(rng)

    def both() -> object:
        return coreml.metadata(package), coreml.describe(package)

    listed = json_file(contents, package / "Manifest.json", both, False)
    root, p, r = made.root, home / "x.passport.json", home / "report.json"
    o, t = home / "x.onnx", home / "x.tflite"
    whole = json_file(manifest, root / "manifest.json", lambda: _whole(root), True)
    return (
        Target("Bundle.load", 25, whole),
        Target("Preprocess.from_json", 15, spec),
        Target("Report.load", 10, json_file(report, r, lambda: Report.load(r), False)),
        Target("Passport.load", 10, json_file(passport, p, lambda: Passport.load(p), True)),
        Target("guard", 15, texts),
        Target("onnx.metadata", 5, model_file("onnx", o, lambda: onnx.metadata(o))),
        Target("onnx.load", 4, model_file("onnx", o, lambda: onnx.load(o))),
        Target("tflite.metadata", 5, model_file("tflite", t, lambda: tflite.metadata(t))),
        Target("tflite.load", 4, model_file("tflite", t, lambda: tflite.load(t))),
        Target("coreml.metadata", 3, model_file("coreml", inner, lambda: coreml.metadata(package))),
        Target("coreml.describe", 3, model_file("coreml", inner, lambda: coreml.describe(package))),
        Target("coreml Manifest.json", 1, contents_file),
    )


def _whole(root: Path) -> object:
    """A bundle with all that is read from it without a model's libraries."""
    made = bundles.Bundle.load(root)
    seen = (made.space, made.preprocess, made.exported(), [made.path(f) for f in made.exported()])
    try:
        made.artifact("probe")
    except bundles.BundleError:
        return seen
    return seen, made.probe(), made.train_classes()


def one_line(text: str) -> bool:
    """Whether an error is a line that a person can read."""
    return bool(text) and len(text) < 20_000 and "Traceback" not in text
