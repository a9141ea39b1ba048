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
from types import ModuleType


class HeteroError(Exception):
    """Anything this package refuses to do; its text is one line that a user can act on."""

    exit_code = 2


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
        raise MissingExtraError(
            f"{top} is not installed; run: pip install 'hetero[{extra}]'"
        ) from error
