"""Devices: run an exported file where it will be used, and bring everything raw back.

    device = open_device("local:threads=2")
    result = run(device, Path("model.int8.tflite"), "tflite", pixels, folder=Path("check"))
    result.outputs, timing(result).p50_ns

A device is a module of this folder without an underscore; it offers ``device(address) -> Device``
and is named ``NAME`` or ``NAME:ADDRESS``. All of them speak the protocol of `_protocol`.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from hetero import _plugins
from hetero.devices._blocks import BLOCK_PLAN, Alternated, Load, alternate
from hetero.devices._causes import likely_causes
from hetero.devices._doctor import Check, examine
from hetero.devices._embedder import DeviceEmbedder
from hetero.devices._inventory import Entry, Inventory, load_inventory
from hetero.devices._protocol import RUNTIMES
from hetero.devices._session import run
from hetero.devices._timing import Timing, summarise, timing
from hetero.devices._tool import Figures, Tool, ToolResult, read_figures, run_tool
from hetero.devices._types import (
    HERE,
    USUAL_FORMATS,
    Conditions,
    Device,
    Execution,
    Link,
    Plan,
    RunResult,
    formats_of,
    lane_of,
)
from hetero.errors import ConfigError

__all__ = [
    "BLOCK_PLAN",
    "HERE",
    "USUAL_FORMATS",
    "Alternated",
    "Check",
    "Conditions",
    "Device",
    "DeviceEmbedder",
    "Entry",
    "Execution",
    "Figures",
    "Inventory",
    "Link",
    "Load",
    "Plan",
    "RunResult",
    "Timing",
    "Tool",
    "ToolResult",
    "alternate",
    "examine",
    "formats_of",
    "lane_of",
    "likely_causes",
    "load_inventory",
    "names",
    "open_device",
    "read_figures",
    "run",
    "run_tool",
    "runnable",
    "summarise",
    "timing",
]


def names() -> tuple[str, ...]:
    """The kinds of device there are, sorted."""
    return _plugins.names("hetero.devices")


def runnable(kind: str = "") -> tuple[str, ...]:
    """The file formats that a kind of device runs; without, those of any worker."""
    if not kind:
        return tuple(RUNTIMES)
    return tuple(getattr(_plugins.load("hetero.devices", kind), "FORMATS", USUAL_FORMATS))


def open_device(spec: str, inventory: Inventory | None = None) -> Device:
    """The device of this name; nothing is started and nothing is sent yet.

    Args:
        spec: ``NAME`` or ``NAME:ADDRESS``: "local", "local:threads=2,python=/opt/py/bin/python",
            or the dotted path of your own module instead of NAME.
        inventory: Its names are looked up first; the device is then called so.

    Raises:
        ConfigError: There is no such kind of device, it cannot read the address, or the name is
            both a kind's and the inventory's.
    """
    name, _, address = spec.partition(":")
    entries = inventory.entries if inventory is not None else {}
    where = inventory.path if inventory is not None else None
    if name in entries:
        if name in names():
            raise ConfigError(
                f"device {name!r} is a kind of device and a name in {where}; rename it there"
            )
        if address:
            raise ConfigError(
                f"device {spec!r}: {name} is a name in {where}, which holds its address; "
                f"write --device {name}"
            )
        return _called(open_device(entries[name].spec), name)
    if entries and name not in names() and "." not in name:
        raise ConfigError(
            f"unknown device {name!r}; {where} has {', '.join(entries)}, the kinds are "
            f"{', '.join(names())}"
        )
    module = _plugins.load("hetero.devices", name)
    make = getattr(module, "device", None)
    if make is None:
        raise ConfigError(f"device {name!r}: {module.__name__} has no function device(address)")
    found: Device = make(address)
    return found


def _called(device: Device, name: str) -> Device:
    """The device under another name."""
    if not is_dataclass(device) or not any(f.name == "name" and f.init for f in fields(device)):
        raise ConfigError(
            f"{device.name}: cannot be called {name!r}: {type(device).__name__} is no dataclass "
            "with a field name"
        )
    return cast(Device, replace(cast(Any, device), name=name))
