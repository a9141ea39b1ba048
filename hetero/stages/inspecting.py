"""Stage: what a bundle or file says of itself, and what is installed."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from hetero.bundle import Bundle, digest
from hetero.errors import ConfigError, require
from hetero.passport import SUFFIX as PASSPORT
from hetero.passport import Passport, beside, check_file
from hetero.report import Report
from hetero.sharded import JOB, Sharded
from hetero.space import Embeddings

#: Of an adaptation of a linearised model; its module needs PyTorch, and this one does not.
ADAPTATION = "hetero.adaptation/1"

#: The versions that were tested together, for pip's `-c`.
TESTED = Path(__file__).resolve().parent.parent / "constraints.txt"


def inspect(path: Path) -> dict[str, Any]:
    """What a bundle, model file, embeddings file or folder, or report folder says of itself.

    Raises:
        ConfigError: There is nothing, or nothing this program knows.
        BundleError: It is torn or altered.
    """
    from hetero import export

    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)[:200]!r}: no path of a file ({error})") from error
    if not there:
        raise ConfigError(f"{path}: there is no such file or folder")
    if not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{path}: neither a file nor a folder")
    if path.name.endswith(PASSPORT):
        passport = Passport.load(path)
        return {"passport": str(path), **_passport(passport)}
    for name in export.formats():
        if path.suffix == export.module(name).SUFFIX:
            found = dict(export.module(name).metadata(path))
            if not found:
                raise ConfigError(f"{path}: a {name} file without hetero metadata")
            return {"file": str(path), "format": name, **found, **_passport_beside(path)}
    if path.suffix == ".safetensors":
        if _schema(path) == ADAPTATION:
            require("torch", "lqf")
            from hetero import lqf

            return {"file": str(path), **lqf.Adaptation.load(path).facts()}
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
    if path.is_dir() and (path / JOB).exists():
        job = Sharded.open(path).job
        return {"folder": str(path), "space": job.space.id, **job.model_dump(by_alias=True)}
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
        "holds": [s.id for s in bundle.nested],
        "recipe": m.recipe,
        "data": m.data,
        "files": {
            f.path: f"{f.sha256[:12]}, {f.size_bytes} bytes"
            + (f", {f.precision}" if f.precision else "")
            for f in m.files
        },
        "passports": {
            f.path: _passport_beside(bundle.path(f)).get("passport", "none")
            for f in bundle.exported()
        },
    }


def _schema(path: Path) -> str:
    """What a safetensors file says that it is; empty where it says nothing or cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            return str((file.metadata() or {}).get("hetero.schema", ""))
    except (OSError, SafetensorError, ValueError):
        return ""


def _passport_beside(path: Path) -> dict[str, Any]:
    """What the passport beside a model file says, after the file was found to be its own.

    Raises:
        BundleError: It is torn, altered, or of another file.
    """
    where = beside(path)
    if not where.exists():
        return {}
    found = Passport.load(where)
    check_file(found, digest(path)[0], path)
    return {"passport": str(where), **_passport(found)}


def _passport(found: Passport) -> dict[str, Any]:
    """A passport's facts, without its pictures."""
    return {
        "passport_space": f"{found.space.id}, dim {found.space.dim}",
        "passport_file": f"{found.file}, {found.file_sha256[:12]}",
        "passport_preprocess_sha256": found.preprocess.sha256,
        "passport_weights_sha256": found.weights_sha256,
        "passport_canaries": len(found.pictures),
        "passport_bands": {
            name: f"cosine at least {band.cosine_least:.6f}, worst seen {band.seen_worst:.6f}"
            for name, band in found.bands.items()
        },
        "passport_faults_known": list(found.faults),
    }


def installation() -> list[tuple[str, str, str, str]]:
    """What is installed of each extra, as (check, status, detail, fix).

    A version that is not the one tested is a warning: most will do, and where something fails it
    is the first thing to know.
    """
    from hetero.errors import EXTRAS, absent

    found = [("hetero", "ok", f"{version('hetero')}, Python {platform.python_version()}", "")]
    named, right = metadata.packages_distributions(), tested()
    for extra, modules in EXTRAS.items():
        if lacking := absent(extra):
            told, fix = f"without {', '.join(lacking)}", f"pip install 'hetero[{extra}]'"
        else:
            names = [named.get(m, [m.replace("_", "-")])[0] for m in modules]
            told, fix = ", ".join(f"{n} {version(n)}" for n in names), ""
            wanted = {n: right.get(_plain(n), "") for n in names}
            # A build's own mark, as in 2.13.0+cpu, is no other version.
            others = [
                f"{n} {w}" for n, w in wanted.items() if w not in ("", version(n).partition("+")[0])
            ]
            if others:
                told += f"; tested with {', '.join(others)}"
                fix = f"pip install -c {TESTED} 'hetero[{extra}]'"
        found.append((f"extra {extra}", "warn" if fix else "ok", told, fix))
    return found


def tested() -> dict[str, str]:
    """The versions that were tested together: distribution, as PyPI spells it, to version."""
    lines = TESTED.read_text(encoding="utf-8").splitlines()
    pairs = (x.partition(";")[0].strip().partition("==") for x in lines if "==" in x)
    return {_plain(name): version for name, _, version in pairs}


def _plain(name: str) -> str:
    """A distribution's name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def version(name: str) -> str:
    """The installed version of a distribution, or "not installed"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
