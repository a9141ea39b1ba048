"""What adb and Android say, understood: which phone is ready, what stands in the way, its heat."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hetero.devices._doctor import Check

#: States of `adb devices` other than "device", and what to do about each.
CURES = {
    "unauthorized": "does not trust this computer; unlock it and allow USB debugging in its "
    "dialogue "
    "that it shows (none? revoke the authorisations in the developer options and plug it in anew)",
    "offline": "does not answer adb; pull the cable and plug it in again, or over the network run: "
    "adb disconnect; adb connect HOST:PORT",
    "no permissions": "may not be opened by this user; on Linux install Android's udev rules "
    "(Debian: "
    "apt-get install android-sdk-platform-tools-common), then plug it in again",
    "recovery": "is in recovery; start Android on it",
    "sideload": "is in recovery; start Android on it",
    "bootloader": "is in its boot loader; start Android on it",
    "connecting": "is still being connected; try again in a moment",
    "authorizing": "is asking its user to trust this computer; unlock it and allow USB debugging",
}
#: Android's words for its thermal status.
THROTTLING = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
LOW_PERCENT = 20


def states(listing: str) -> dict[str, str]:
    """Serial number to state, out of `adb devices`."""
    found = {}
    for line in listing.splitlines():
        serial, tab, state = line.strip().partition("\t")
        if tab and not serial.startswith("*"):
            found[serial] = state.split(" (")[0].split(";")[0].strip()
    return found


def not_ready(found: Mapping[str, str], serial: str) -> str:
    """Why a phone cannot be used now and what to do about it, or "" if it can.

    Args:
        found: From `states`.
        serial: Of the phone, or "" for the only one.
    """
    others = ", ".join(f"{x} ({state})" for x, state in found.items()) or "none"
    if serial and serial not in found:
        if re.fullmatch(r".+:\d+", serial):
            return (
                f"nothing answers there; connected are: {others}; is wireless debugging on, and "
                f"the port right? pair once with: adb pair HOST:PORT, then: adb connect {serial}"
            )
        return f"is not connected; connected are: {others}; is USB debugging on?"
    if not serial and not found:
        return (
            "no phone is connected; plug one in, switch on USB debugging in its developer options, "
            "and see that `adb devices` lists it"
        )
    ready = [x for x, state in found.items() if state == "device"]
    if not serial and len(ready) > 1:
        return f"{len(ready)} phones are connected: {', '.join(ready)}; name one, as adb:{ready[0]}"
    if not serial and len(ready) == 1:
        return ""
    one = serial or next(iter(found))
    if found[one] == "device":
        return ""
    return f"{one} {CURES.get(found[one], f'is in the state {found[one]!r}, expected device')}"


def refused(said: str, folder: str) -> str:
    """Why a push failed for good, or "" where a second try may do."""
    if "error:" not in said and "failed" not in said:
        return ""
    known = ("No space left", "Permission denied", "Read-only", "Not a directory", "Is a directory")
    return why(" ".join(said.split())[-200:], folder) if any(x in said for x in known) else ""


def why(said: str, folder: str) -> str:
    """An error of the phone's own, with what to do."""
    if "No space left" in said:
        return f"its storage is full; free some, 100 MB are comfortable ({said})"
    if "Permission denied" in said or "Read-only" in said:
        return f"{folder} cannot be written there; choose another with folder=PATH ({said})"
    return f"its shell fails: {said or 'it said nothing'}"


def checks(dumps: str) -> list[Check]:
    """Is the phone fit for a measurement: what its own services say of battery and heat.

    Args:
        dumps: The answers of getprop and dumpsys, each after a line "== COMMAND".
    """
    parts = dict(x.partition("\n")[::2] for x in re.split(r"^== ", dumps, flags=re.MULTILINE)[1:])
    model = parts.get("getprop ro.product.model", "").strip()
    release = parts.get("getprop ro.build.version.release", "").strip()
    out: list[Check] = [("android", "ok", f"{model}, Android {release}", "")] if model else []
    out += _battery(parts.get("dumpsys battery", ""))
    return out + _thermal(parts.get("dumpsys thermalservice", ""))


def _battery(text: str) -> list[Check]:
    level, heat = (
        re.search(rf"^\s*{x}: (\d+)", text, re.MULTILINE) for x in ("level", "temperature")
    )
    if not level:
        return []
    powered = re.findall(r"^\s*(\w+) powered: true", text, re.MULTILINE)
    detail = f"{level[1]} %" + (f", {int(heat[1]) / 10:.0f} °C" if heat else "")
    detail += f", charging by {' and '.join(powered)}" if powered else ""
    if int(level[1]) < LOW_PERCENT:
        return [("battery", "warn", detail, "charge it: phones slow down when the battery is low")]
    return [("battery", "ok", detail, "")]


def _thermal(text: str) -> list[Check]:
    status = re.search(r"^\s*Thermal Status: (\d+)", text, re.MULTILINE)
    if not status:
        return []
    if "IsStatusOverride: true" in text:
        fix = "run: adb shell cmd thermalservice reset"
        return [("thermal status", "warn", "overridden, so not what the phone feels", fix)]
    number = int(status[1])
    word = THROTTLING[min(number, len(THROTTLING) - 1)]
    if number:
        return [("thermal status", "warn", f"{number}, {word} throttling", "let it cool down")]
    return [("thermal status", "ok", "0, no throttling", "")]
