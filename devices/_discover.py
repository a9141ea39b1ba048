"""Devices that make themselves known: over adb, and by mDNS in the local network.

What comes from there is a stranger's word: a name becomes letters, digits and dashes, an address
that is none is left out, and nothing is contacted.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hetero.errors import require

#: mDNS service -> kind of device.
SERVICES = {
    "_ssh._tcp.local.": "ssh",
    "_workstation._tcp.local.": "ssh",
    "_adb-tls-connect._tcp.local.": "adb",
}
SSH_PORT = 22

#: What `adb devices` says of a device that cannot be used yet -> what to do.
_ADB_STATES = {
    "unauthorized": "unlock it and allow USB debugging",
    "authorizing": "unlock it and allow USB debugging",
    "offline": "plug it in again, or run: adb reconnect",
    "recovery": "boot it into Android",
    "sideload": "boot it into Android",
    "bootloader": "boot it into Android",
    "no": "no permission for its USB port; see what `adb devices` says",
}
_SERIAL = re.compile(r"[A-Za-z0-9][\w.:\[\]%-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")


@dataclass(frozen=True)
class Found:
    """A device that made itself known.

    Attributes:
        name: A proposal for the inventory.
        spec: What `open_device` takes.
        how: "adb" or the mDNS service.
        detail: Model, address, or why it cannot be used yet.
        usable: Whether it can be used as it is.
    """

    name: str
    spec: str
    how: str
    detail: str
    usable: bool = True


def over_adb(timeout_s: float = 10.0) -> tuple[list[Found], str]:
    """What `adb devices -l` lists, and why it lists nothing; asking starts adb's server.

    Args:
        timeout_s: For adb's answer.
    """
    adb = shutil.which("adb")
    if adb is None:
        return [], "adb is not on PATH"
    try:
        done = subprocess.run(
            [adb, "devices", "-l"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return [], f"adb did not answer within {timeout_s:g} s"
    except OSError as error:
        return [], f"adb cannot be run ({error.strerror})"
    if done.returncode:
        return [], f"adb failed (exit code {done.returncode}): {_clean(done.stderr)}"
    return [x for line in done.stdout.splitlines() if (x := _adb_line(line))], ""


def _adb_line(line: str) -> Found | None:
    """The device of a line ``SERIAL STATE key:value …``, or None for chatter."""
    words = line.split()
    if len(words) < 2 or line.startswith(("*", "List of")) or not _SERIAL.fullmatch(words[0]):
        return None
    serial, state = words[:2]
    if state != "device" and state not in _ADB_STATES:
        return None
    facts = dict(w.split(":", 1) for w in words[2:] if ":" in w)
    model = _clean(facts.get("model", "").replace("_", " "))
    name = _name(facts.get("model") or serial)
    if state == "device":
        return Found(name, f"adb:{serial}", "adb", model or "Android")
    text = f"{model + ': ' if model else ''}{state}: {_ADB_STATES[state]}"
    return Found(name, f"adb:{serial}", "adb", text, usable=False)


def over_mdns(
    timeout_s: float = 3.0, interfaces: Sequence[str] | None = None
) -> tuple[list[Found], str]:
    """What announces itself in the local network within a time, and why nothing could be heard.

    Args:
        timeout_s: How long to listen.
        interfaces: Addresses of the network interfaces; None for all.
    """
    zeroconf = require("zeroconf", "fleet")
    heard: dict[tuple[str, str], None] = {}
    lock = threading.Lock()

    def note(*, service_type: str, name: str, state_change: Any, **_: Any) -> None:
        if state_change is not zeroconf.ServiceStateChange.Removed:
            with lock:
                heard[service_type, name] = None

    deadline = time.monotonic() + timeout_s
    chosen = zeroconf.InterfaceChoice.All if interfaces is None else list(interfaces)
    try:
        browser = zeroconf.Zeroconf(interfaces=chosen)
    except OSError as error:
        return [], f"mDNS cannot be used here ({error.strerror or error})"
    with browser:
        zeroconf.ServiceBrowser(browser, list(SERVICES), handlers=[note])
        time.sleep(timeout_s / 2)
        with lock:
            known = list(heard)
        found = []
        for service, name in known:
            left_ms = max(50.0, 1000 * (deadline - time.monotonic()))
            info = browser.get_service_info(service, name, int(left_ms))
            if info is not None and (one := _announced(service, info)):
                found.append(one)
    # A board says both that it is a workstation and that it has SSH.
    return list({x.spec: x for x in reversed(found)}.values())[::-1], ""


def _announced(service: str, info: Any) -> Found | None:
    host = str(info.server or "").rstrip(".")
    addresses = [str(x) for x in info.parsed_addresses()]
    if not _HOST.fullmatch(host):
        return None
    kind, port = SERVICES[service], int(info.port or 0)
    detail = _clean(" ".join(addresses)) or "no address"
    if kind == "adb":
        if not addresses or not port:
            return None
        return Found(
            _name(host.removesuffix(".local")),
            f"adb:{addresses[0]}:{port}",
            service.removesuffix(".local."),
            f"{host}; pair it once with adb pair, then adb connect {addresses[0]}:{port}",
        )
    # A workstation's port is that of "discard", which nobody means.
    odd = service.startswith("_ssh") and port not in (0, SSH_PORT)
    return Found(
        _name(host.removesuffix(".local")),
        f"ssh:{host}:{port}" if odd else f"ssh:{host}",
        service.removesuffix(".local."),
        detail,
    )


def _name(text: str) -> str:
    """A name for the inventory out of anything."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "device"


def _clean(text: str) -> str:
    """A stranger's text on one line that steers no terminal."""
    line = " ".join(text.split())[:200]
    return "".join(c if c.isprintable() else "\ufffd" for c in line)
