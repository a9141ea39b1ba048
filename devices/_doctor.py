"""Is this device fit for a run: runtimes, processor, clock, heat, load, room."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from hetero.devices import _firmware
from hetero.devices._types import Device
from hetero.errors import DeviceError

#: What was looked at, how it is, what was found, and what to do about it ("" when all is well).
Check = tuple[str, Literal["ok", "warn", "fail"], str, str]

GIB = 1 << 30
MIN_DISK_BYTES = GIB
MIN_MEMORY_BYTES = GIB // 2
HOT_C = 75.0
MAX_LOAD_PER_CPU = 0.5


def examine(device: Device, folder: Path | None = None) -> list[Check]:
    """What would disturb a run on this device, most basic first; changes nothing there.

    Args:
        device: From `open_device`.
        folder: Where the results would go; without, a temporary folder.
    """
    try:
        if folder is not None:
            with device.connect(folder) as link:
                return judge(link.probe())
        with (
            TemporaryDirectory(prefix="hetero-") as temporary,
            device.connect(Path(temporary)) as link,
        ):
            return judge(link.probe())
    except (DeviceError, ConnectionError) as error:
        return [("device", "fail", str(error), "make it reachable, with Python 3.9 and NumPy")]


def judge(found: Mapping[str, Any]) -> list[Check]:
    """The checks for what a worker's probe found."""
    worker = f"{found['python'] or 'native worker'} ({found['executable']})"
    checks: list[Check] = [("python" if found["python"] else "worker", "ok", worker, "")]
    # Where Core ML cannot be, that it is not there is no news.
    apple = ("coreml",) if str(found.get("system", "")).startswith("macOS") else ()
    runtimes = ("onnxruntime", "litert", *apple)
    none = not any(found.get(x) for x in runtimes)
    for name in runtimes:
        missing = str(found.get(f"{name}_missing", ""))
        what, _, fix = missing.partition("; run: ")
        status: Literal["ok", "warn", "fail"] = "fail" if none else "warn" if missing else "ok"
        checks.append((name, status, what or str(found.get(name, "")), fix))
    if found.get("execution") == "emulated":
        fix = "numbers from here are right, times mean nothing; measure latency on the board itself"
        checks.append(("execution", "warn", "an emulator runs this processor's programs", fix))
    checks += [(name, status, what, fix) for name, status, what, fix in found.get("checks", ())]
    checks += [_features(found), *_clock(found), *_power(found), _load(found), *_room(found)]
    return checks


def _features(found: Mapping[str, Any]) -> Check:
    features = set(found["features"])
    detail = f"{found['cpu']}, {found['cpus']} cores: {' '.join(found['features']) or 'unknown'}"
    if "avx2" in features and not features & {"avx512_vnni", "avx_vnni"}:
        return (
            "processor",
            "warn",
            f"{detail}; without VNNI onnxruntime's int8 saturates in 16 bits if weights have 8",
            "int8 ONNX files exported here have 7; judge others on a processor with VNNI or on ARM",
        )
    return ("processor", "ok", detail, "")


def _clock(found: Mapping[str, Any]) -> list[Check]:
    governor, zones = found["governor"], found["temperatures_c"]
    checks: list[Check] = []
    if governor is None:
        checks.append(("governor", "ok", "cannot be read here", ""))
    elif governor == "performance":
        checks.append(("governor", "ok", governor, ""))
    else:
        fix = "measure with a warm-up, or set the governor to performance for the measurement"
        checks.append(("governor", "warn", f"{governor}: the clock follows the load", fix))
    if not zones:
        checks.append(("temperature", "ok", "cannot be read here", ""))
    else:
        zone, heat = max(zones.items(), key=lambda item: item[1])
        hot = heat > HOT_C
        fix = "let it cool down before measuring" if hot else ""
        checks.append(("temperature", "warn" if hot else "ok", f"{heat:.0f} °C at {zone}", fix))
    return checks


def _power(found: Mapping[str, Any]) -> list[Check]:
    """What a Raspberry Pi's firmware says; nothing elsewhere."""
    if (bits := found.get("throttled")) is None:
        return []
    said = _firmware.words([bits])
    if not bits:
        return [("power", "ok", said, "")]
    fix = "use the board's own power supply and a short cable, cool it, and boot it again"
    return [("power", "warn", said, fix)]


def _load(found: Mapping[str, Any]) -> Check:
    if found["load"] is None:
        return ("load", "ok", "cannot be read here", "")
    load, cpus = float(found["load"]), int(found["cpus"])
    detail = f"{load:.2f} on {cpus} cores"
    if load > MAX_LOAD_PER_CPU * cpus:
        return ("load", "warn", detail, "stop other programs: latencies measured now are noisy")
    return ("load", "ok", detail, "")


def _room(found: Mapping[str, Any]) -> list[Check]:
    checks: list[Check] = []
    for name, least in (("memory", MIN_MEMORY_BYTES), ("disk", MIN_DISK_BYTES)):
        free = found[f"{name}_free_bytes"]
        if free is None:
            checks.append((name, "ok", "cannot be read here", ""))
            continue
        status: Literal["ok", "warn", "fail"] = (
            "ok" if free >= least else "warn" if free >= least // 10 else "fail"
        )
        fix = "" if status == "ok" else f"free some; {least / GIB:.1f} GiB is comfortable"
        checks.append((name, status, f"{free / GIB:.1f} GiB free", fix))
    return checks
