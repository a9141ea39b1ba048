"""This Mac's Core ML: packages in Apple's own runtime, which coremltools calls from Python.

    coreml                             Core ML chooses among all compute units
    coreml:units=cpu_and_ne            CPU and Neural Engine; or cpu_and_gpu, cpu_only, all
    coreml:python=/opt/py/bin/python   another Python, with NumPy, coremltools and Pillow

Needs macOS 14. Threads are Core ML's own choice. On a Mac, ONNX and TFLite files run on `local`.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hetero._files import make_folder
from hetero.devices._types import HERE, Execution, read_options
from hetero.devices.local import LocalLink
from hetero.errors import ConfigError, DeviceError

FORMATS = ("coreml",)
#: coremltools imports much of what is installed, PyTorch too, and that takes its time to leave.
LEAVE_S = 30.0
#: The accelerator of a plan for each of coremltools' compute units, in lower case.
UNITS = {"all": "", "cpu_only": "cpu", "cpu_and_gpu": "gpu", "cpu_and_ne": "ne"}


@dataclass(frozen=True)
class CoreMl:
    """A Mac as a device for Core ML packages.

    Attributes:
        name, threads, execution, lane, formats, accelerator: See `hetero.devices.Device`.
        python: Runs the worker.
    """

    name: str
    python: str
    accelerator: str = ""
    threads: int | None = None
    execution: Execution = "native"
    lane: str = HERE
    formats: tuple[str, ...] = FORMATS

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[LocalLink]:
        """The open way, which is `folder` itself.

        Raises:
            DeviceError: This is no Mac.
        """
        if system := elsewhere():
            raise DeviceError(
                self.name,
                f"Core ML runs on macOS only, this is {system}; leave --device {self.name} out, "
                "and `hetero check` executes Core ML files by its reference interpreter, which is "
                "not Apple's runtime",
            )
        root = make_folder(folder.absolute())
        link = LocalLink(self.name, (self.python,), root, leave_s=LEAVE_S)
        try:
            yield link
        finally:
            link.reap()


def elsewhere() -> str:
    """The system that is not macOS, or "" on a Mac."""
    return "" if platform.system() == "Darwin" else platform.system()


def device(address: str) -> CoreMl:
    """This Mac's Core ML.

    Args:
        address: "" or options: ``units=...`` and ``python=PATH``.

    Raises:
        ConfigError: An option is not known or cannot be.
    """
    options = read_options("coreml", address, ("units", "python"))
    units, python = options.get("units", "all"), options.get("python", sys.executable)
    if units not in UNITS:
        raise ConfigError(f"coreml: units must be one of {', '.join(UNITS)}, got {units!r}")
    if shutil.which(python) is None:
        raise ConfigError(f"coreml: python={python} is not a program on this machine")
    return CoreMl(f"coreml:{address}" if address else "coreml", python, UNITS[units])
