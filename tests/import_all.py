"""Imports every module of the installed package and prints how many; needs nothing else.

    python -I tests/import_all.py            all that is installed may be used
    python -I tests/import_all.py --bare     as if no extra were installed

With ``--bare`` the modules that are PyTorch (or a converter) through and through must fail for want
of it, and nothing else may.
"""

from __future__ import annotations

import importlib
import importlib.abc
import pkgutil
import sys
from pathlib import Path

#: What the extras bring, by the names one imports.
OPTIONAL = {
    *("torch", "accelerate", "timm", "torchvision"),
    *("onnx", "onnxscript", "onnxruntime", "onnx_ir"),
    *("litert_torch", "litert_quantizer", "ai_edge_litert", "ai_edge_quantizer", "jax", "torchao"),
    *("coremltools", "flatbuffers", "google"),
    *("jinja2", "matplotlib", "junitparser", "pyarrow", "faiss", "resvg_py"),
    *("beartype", "hypothesis", "jsonschema", "pytest", "sklearn", "pytorch_metric_learning"),
    *("optuna", "curvlinops", "ray", "lance"),
    *("usearch", "pymilvus", "milvus_lite", "psycopg", "pgvector"),
}

#: These, and all below them, are about training or run in a converter's own process.
NEED_AN_EXTRA = {
    "hetero._checkpoint",
    "hetero._mixed",
    "hetero._processes",
    "hetero._shards",
    "hetero.augment",
    "hetero.demo",
    "hetero.export._coreml_convert",
    "hetero.export._mil_ops",
    "hetero.export._mil_packed",
    "hetero.export._mil_spatial",
    "hetero.export._mixed",
    "hetero.export._quantize",
    "hetero.fit",
    "hetero.heads",
    "hetero.lqf",
    "hetero.maps",
    "hetero.methods",
    "hetero.models",
    "hetero.nas",
    "hetero.pct._pictures",
    "hetero.pct.methods",
    "hetero.pct.train",
    "hetero.stages.measuring",
    "hetero.stages.searching",
    "hetero.train",
}


class Blocker(importlib.abc.MetaPathFinder):
    """Says of optional libraries that they are not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def names(folder: Path, package: str) -> list[str]:
    """Dotted names of all modules in a package's folder, its sub-packages followed."""
    found = []
    for module in pkgutil.iter_modules([str(folder)]):
        if module.name == "__main__":
            continue
        found.append(f"{package}.{module.name}")
        if module.ispkg:
            found += names(folder / module.name, found[-1])
    return found


def main(bare: bool) -> None:
    if bare:
        sys.meta_path.insert(0, Blocker())
    import hetero

    found = names(Path(hetero.__path__[0]), "hetero")
    # An editable install maps these two from beside the package, with or without links in it.
    for name in ("hetero.export", "hetero.devices"):
        folder = Path(importlib.import_module(name).__path__[0])
        found = sorted({*found, name, *names(folder, name)})
    needy = {n for n in found if any(f"{n}.".startswith(f"{t}.") for t in NEED_AN_EXTRA)}
    for name in found:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not (bare and name in needy and str(error.name).partition(".")[0] in OPTIONAL):
                raise
        else:
            if bare and name in NEED_AN_EXTRA:
                raise SystemExit(f"{name} needs no extra; take it out of NEED_AN_EXTRA")
    print(f"{len(found)} modules imported from {hetero.__path__[0]}")


if __name__ == "__main__":
    main(bare="--bare" in sys.argv[1:])
