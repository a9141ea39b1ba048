"""Devices: run an exported file where it will be used, and bring everything raw back.

    device = open_device("local:threads=2")
    result = run(device, Path("model.int8.tflite"), "tflite", pixels, folder=Path("check"))
    result.outputs, timing(result).p50_ns

A device is a module of this folder without an underscore; it offers ``device(address) -> Device``
and is named ``NAME`` or ``NAME:ADDRESS``. All of them speak the protocol of `_protocol`.
"""

from __future__ import annotations

from hetero import _plugins
from hetero.devices._blocks import BLOCK_PLAN, Alternated, Load, alternate
from hetero.devices._doctor import Check, examine
from hetero.devices._embedder import DeviceEmbedder
from hetero.devices._protocol import RUNTIMES
from hetero.devices._session import run
from hetero.devices._timing import Timing, summarise, timing
from hetero.devices._types import Conditions, Device, Execution, Link, Plan, RunResult
from hetero.errors import ConfigError

__all__ = [
    "BLOCK_PLAN",
    "Alternated",
    "Check",
    "Conditions",
    "Device",
    "DeviceEmbedder",
    "Execution",
    "Link",
    "Load",
    "Plan",
    "RunResult",
    "Timing",
    "alternate",
    "examine",
    "names",
    "open_device",
    "run",
    "runnable",
    "summarise",
    "timing",
]


def names() -> tuple[str, ...]:
    """The kinds of device there are, sorted."""
    return _plugins.names("hetero.devices")


def runnable() -> tuple[str, ...]:
    """The file formats that a worker has a runtime for."""
    return tuple(RUNTIMES)


def open_device(spec: str) -> Device:
    """The device of this name; nothing is started and nothing is sent yet.

    Args:
        spec: ``NAME`` or ``NAME:ADDRESS``: "local", "local:threads=2,python=/opt/py/bin/python",
            or the dotted path of your own module instead of NAME.

    Raises:
        ConfigError: There is no such kind of device, or it cannot read the address.
    """
    name, _, address = spec.partition(":")
    module = _plugins.load("hetero.devices", name)
    make = getattr(module, "device", None)
    if make is None:
        raise ConfigError(f"device {name!r}: {module.__name__} has no function device(address)")
    found: Device = make(address)
    return found
