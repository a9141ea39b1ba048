"""The exception tree, by who has to act, each with the exit code the command line uses.

HeteroError
├── ConfigError        2  the user: an argument, a setting, a path
│   ├── DataError      2  the user: images, labels, splits
│   ├── BundleError    2  the user: a bundle or model file that is missing, torn or altered
│   ├── SpaceMismatchError 2  the user: vectors of two different spaces meet
│   └── MissingExtraError  2  the user: an optional dependency is not installed
├── TrainingError      1  the run: it collapsed or stayed at chance
├── ExportError        1  the model or the converter: the written file does not do what PyTorch does
├── DeviceError        4  the device or the way to it; the message begins with the device's name
├── StorageError       4  the machine: disk full, I/O error
└── Interrupted      130  the user pressed Ctrl-C; the message says how to go on
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from types import ModuleType

#: The extras whose libraries are looked for by name, and the modules that each brings. Where two
#: bring the same one, the first is what a message names.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "train": ("torch", "accelerate"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "tflite": ("litert_torch", "litert_quantizer", "ai_edge_litert"),
    "coreml": ("coremltools",),
    "report": ("jinja2", "matplotlib", "junitparser"),
    "timm": ("timm", "torchvision"),
    "methods": ("pytorch_metric_learning",),
    "nas": ("optuna",),
    "lqf": ("curvlinops",),
    "index": ("faiss", "usearch"),
    "milvus": ("pymilvus", "milvus_lite"),
    "pgvector": ("psycopg", "pgvector"),
    "parquet": ("pyarrow",),
    "lance": ("lance",),
    "ray": ("ray",),
    "ssh": ("asyncssh",),
    "fleet": ("tomlkit", "zeroconf"),
    "web": ("aiohttp", "segno"),
    "sign": ("model_signing",),
}


class HeteroError(Exception):
    """Anything this package refuses to do; its text is one line that a user can act on."""

    exit_code = 2


class HeteroWarning(UserWarning):
    """What a user should know and nothing stops at; one line, like an error's."""


class ConfigError(HeteroError):
    """An argument, a setting or a path is wrong."""


class DataError(ConfigError):
    """The images, labels or splits cannot be used."""


class BundleError(ConfigError):
    """A bundle or a file in it is missing, torn, altered or from a newer version."""


class SpaceMismatchError(ConfigError):
    """Vectors of two different spaces were about to be compared."""


class MissingExtraError(ConfigError):
    """An optional dependency is not installed."""


class TrainingError(HeteroError):
    """Training collapsed or stayed at chance."""

    exit_code = 1


class ExportError(HeteroError):
    """A converter refused the model, or the written file does not do what PyTorch does."""

    exit_code = 1


class DeviceError(HeteroError):
    """A device, or the way to it, failed; it says nothing about the model.

    Args:
        device: The device's name, which begins the message.
        what: What came, what was expected, what to do.
    """

    exit_code = 4

    def __init__(self, device: str, what: str) -> None:
        super().__init__(f"{device}: {what}")
        self.device = device


class StorageError(HeteroError):
    """The disk is full or failed."""

    exit_code = 4


class Interrupted(HeteroError):
    """The user stopped the run; what was done is saved."""

    exit_code = 130


def require(module: str, extra: str) -> ModuleType:
    """The imported module, or one line that says what to install.

    Args:
        module: Dotted name of an optional library, for example ``"onnxruntime"``.
        extra: The extra of this package that brings it, for example ``"onnx"``.

    Raises:
        MissingExtraError: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise MissingExtraError(_install([top], [extra])) from error


def need(*extras: str) -> None:
    """Refuse to begin what would end, perhaps hours later, at a library that is not installed.

    Args:
        extras: Names of extras; those that are not in `EXTRAS`, as of a format of one's own, are
            not looked for.

    Raises:
        MissingExtraError: A library of one of them is not installed; the line names all of them,
            and one command that installs them.
    """
    lacking = {e: absent(e) for e in extras}
    if not any(lacking.values()):
        return
    modules = list(dict.fromkeys(m for found in lacking.values() for m in found))
    raise MissingExtraError(_install(modules, [e for e, found in lacking.items() if found]))


def absent(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [m for m in EXTRAS.get(extra, ()) if find_spec(m) is None]


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The same for an import that failed; None where no extra brings the module."""
    top = (error.name or "").partition(".")[0]
    extra = next((e for e, modules in EXTRAS.items() if top in modules), None)
    return None if extra is None else MissingExtraError(_install([top], [extra]))


def _install(modules: list[str], extras: list[str]) -> str:
    verb = "is" if len(modules) == 1 else "are"
    return (
        f"{', '.join(modules)} {verb} not installed; run: pip install 'hetero[{','.join(extras)}]'"
    )
