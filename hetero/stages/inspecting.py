"""Stage: what a bundle or file says of itself, and what is installed."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from hetero.bundle import Bundle
from hetero.errors import ConfigError
from hetero.report import Report
from hetero.space import Embeddings


def inspect(path: Path) -> dict[str, Any]:
    """What a bundle, model file, embeddings file or report folder says of itself.

    Raises:
        ConfigError: There is nothing, or nothing this program knows.
        BundleError: It is torn or altered.
    """
    from hetero import export

    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    for name in export.formats():
        if path.suffix == export.module(name).SUFFIX:
            found = dict(export.module(name).metadata(path))
            if not found:
                raise ConfigError(f"{path}: a {name} file without hetero metadata")
            return {"file": str(path), "format": name, **found}
    if path.suffix == ".safetensors":
        vectors = Embeddings.load(path)
        return {
            "file": str(path),
            "rows": len(vectors),
            "space": vectors.space.id,
            "dim": vectors.space.dim,
            "made_by": vectors.made_by,
        }
    if path.is_dir() and (path / "report.json").exists():
        report = Report.load(path / "report.json")
        return {
            "report": str(path),
            "subject": report.subject,
            "verdict": report.verdict,
            **report.facts,
        }
    bundle = Bundle.load(path)
    m = bundle.manifest
    return {
        "bundle": str(path),
        "role": m.role,
        "space": bundle.space.id,
        "dim": m.model.dim,
        "backbone": m.model.backbone,
        "map": m.model.map.name if m.model.map else "",
        "parameters": m.model.parameters,
        "macs": m.model.macs,
        "preprocess": m.preprocess,
        "parent": m.parent or "none: a gallery model",
        "recipe": m.recipe,
        "data": m.data,
        "files": {
            f.path: f"{f.sha256[:12]}, {f.size_bytes} bytes"
            + (f", {f.precision}" if f.precision else "")
            for f in m.files
        },
    }


def installation() -> list[tuple[str, str, str, str]]:
    """What is installed and what is not, as (check, status, detail, fix)."""
    extras = {
        "torch": "train",
        "accelerate": "train",
        "onnx": "onnx",
        "onnxruntime": "onnx",
        "litert_torch": "tflite",
        "ai_edge_litert": "tflite",
        "coremltools": "coreml",
        "jinja2": "report",
        "matplotlib": "report",
        "timm": "timm",
        "pyarrow": "parquet",
    }
    from importlib.util import find_spec

    found = [("hetero", "ok", f"{version('hetero')}, Python {platform.python_version()}", "")]
    for module, extra in extras.items():
        there = find_spec(module) is not None
        name = module.replace("_", "-")
        found.append(
            (name, "ok", version(name), "")
            if there
            else (name, "warn", "not installed", f"pip install 'hetero[{extra}]'")
        )
    return found


def version(name: str) -> str:
    """The installed version of a distribution, or "not installed"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
