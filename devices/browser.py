"""Any phone's browser: a page of this machine runs the model in WebAssembly or WebGPU.

    browser                            this machine shows an address and a QR code, and waits
    browser:bind=0.0.0.0               for every phone on the network; without, for this machine
                                       and what is plugged in, by ``adb reverse tcp:8765 tcp:8765``
    browser:runtime=webgpu,threads=4   instead of WebAssembly, one thread
    browser:chromium=yes               this machine's own Chromium, without a window, as a phone

Further options: ``port=8765``, ``wait_s=300`` for somebody to open the page, ``assets=FOLDER`` in
place of what `build` fetches, ``cert=FILE,key=FILE`` for https. A page over plain http that is not
localhost gets one thread and no WebGPU from its browser. POSIX only, like `local`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hetero._files import make_folder
from hetero.devices import _chromium
from hetero.devices._chromium import Chromium
from hetero.devices._protocol import WRITTEN
from hetero.devices._types import Execution, read_options
from hetero.devices._web_assets import build, home, served, versions
from hetero.devices._web_server import Server, own_address
from hetero.devices.local import LocalLink
from hetero.errors import ConfigError, DeviceError, require

__all__ = ["Browser", "BrowserLink", "build", "close_all", "device"]

OPTIONS = (
    "bind", "port", "runtime", "threads", "chromium", "assets", "wait_s", "cert", "key",
)  # fmt: skip
PORT = 8765
#: How long a page that was here may be away before the way counts as cut.
AWAY_S = 2.0
#: A browser of our own that shows no page for this long is started anew.
CHROMIUM_S = 60.0


@dataclass(frozen=True)
class Browser:
    """A browser as a device.

    Attributes:
        name, threads, execution: See `hetero.devices.Device`. A Chromium of this machine in the
            guise of a phone counts as emulated: right numbers, and no phone's times.
        bind, port: Where the page is served.
        runtime: "wasm" or "webgpu".
        chromium: The program to open the page with, or "" for a person who does.
        assets: Folder with the runtimes, or None for the one of `build`.
        wait_s: How long to wait for the page to be opened.
        tls: Certificate and key, or None for plain http.
    """

    name: str
    bind: str = "127.0.0.1"
    port: int = PORT
    runtime: str = "wasm"
    threads: int | None = None
    chromium: str = ""
    assets: Path | None = None
    wait_s: float = 300.0
    tls: tuple[Path, Path] | None = None
    execution: Execution = "native"

    @property
    def lane(self) -> str:
        """What it shares a processor with: one page runs one model at a time."""
        return "this machine" if self.chromium else f"the page at {self.bind}:{self.port}"

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[BrowserLink]:
        """The open way: a page that is here.

        The server outlives it, so that one page serves a whole check; `close_all` ends it.

        Raises:
            ConnectionError: The page was here and is away.
            DeviceError: Nobody opened it, or it cannot be served.
            ConfigError: The runtimes are not there.
        """
        host = _host(self)
        host.bring_page(self)
        yield BrowserLink(
            self, host.server, LocalLink(self.name, (), make_folder(folder.absolute()))
        )


@dataclass
class BrowserLink:
    """Six operations on a folder of this machine that it keeps on a page's behalf."""

    device: Browser
    server: Server
    disk: LocalLink

    def probe(self) -> Mapping[str, Any]:
        """What the page says of its browser."""
        if self.server.page is None:
            raise ConnectionError("its page is away")
        machine, facts = self.server.page["machine"], self.server.page["facts"]
        secure = facts.get("secure_context") == "yes"
        fix = "" if secure else "open the page by adb reverse as localhost, or with cert= and key="
        said = "" if secure else "plain http over a network: one thread, no WebGPU, a coarse clock"
        return {
            "hetero": "probe",
            "version": 1,
            **machine,
            "python": "none needed",
            "executable": machine["system"],
            "onnxruntime": self.server.versions["onnxruntime-web"],
            "litert": self.server.versions["@litertjs/core"],
            "governor": None,
            "clock_mhz": None,
            "temperatures_c": {},
            "load": None,
            "memory_free_bytes": None,
            "disk_free_bytes": shutil.disk_usage(self.disk.root).free,
            "checks": [["page", "ok" if secure else "warn", said or "a secure context", fix]],
        }

    def put(self, source: Path, name: str, *, again: bool = True) -> None:
        """Link or copy a file into place; a page fetches it when its worker needs it."""
        self.disk.put(source, name, again=again)

    def start(self, run: str, *, fresh: bool) -> None:
        """Order a worker from the page."""
        folder = self.disk.root / run
        if fresh:
            for name in WRITTEN:
                (folder / name).unlink(missing_ok=True)
        (folder / "stop").unlink(missing_ok=True)
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.server.start(folder, job, self.device.runtime)

    def follow(self, run: str, offset: int) -> tuple[bytes, bool]:
        """New bytes of the log, and whether the worker is at work, as far as the page is here."""
        work = self.server.work
        mine = work is not None and work.folder == self.disk.root / run
        alive = mine and work is not None and not work.ended
        data, _ = self.disk.follow(run, offset)
        if mine and self.server.failure is not None:
            raise self.server.failure
        if alive and not data and not self.server.wait(AWAY_S):
            raise ConnectionError("its page is away")
        return data, alive

    def get(self, name: str, target: Path) -> None:
        """Copy a file out; results that are in their place already stay there."""
        self.disk.get(name, target)

    def stop(self, run: str) -> None:
        """Ask the page to end the worker of this run, if it is at work."""
        work = self.server.work
        if work is not None and work.folder == self.disk.root / run and not work.ended:
            self.server.stop()


@dataclass
class _Host:
    """A server that lives as long as this process, and the browser it may have started."""

    server: Server
    chromium: Chromium | None
    announced: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def bring_page(self, device: Browser) -> None:
        """Return once a page is here."""
        with self.lock:
            if self.server.is_here:
                # Whoever opened it knows the address, and is told that it is away, not invited.
                self.announced = True
                return
            if self.chromium is not None:
                # One that is there but shows no page any more has lost it: it crashed.
                if self.chromium.pid is None or not self.server.wait(AWAY_S):
                    self.server.lose()
                    self.chromium.open(self.server.address("127.0.0.1"))
                if not self.server.wait(CHROMIUM_S):
                    raise DeviceError(
                        device.name,
                        f"{device.chromium} did not open the page within {CHROMIUM_S:g} s",
                    )
                return
            if self.announced:
                if not self.server.wait(AWAY_S):
                    raise ConnectionError("its page is away: open it again, or wake the phone")
                return
            print(invitation(device, self.server), file=sys.stderr, flush=True)
            if not self.server.wait(device.wait_s):
                raise DeviceError(
                    device.name,
                    f"nobody opened its page within {device.wait_s:g} s; give it more time "
                    "with wait_s=",
                )
            self.announced = True

    def close(self) -> None:
        """End the page, its browser and the server."""
        self.server.close()
        if self.chromium is not None:
            self.chromium.close()


_hosts: dict[Browser, _Host] = {}
_hosts_lock = threading.Lock()


def _host(device: Browser) -> _Host:
    """The server of a device, opened when it is first needed; runtimes share a page."""
    webgpu = bool(device.chromium) and device.runtime == "webgpu"
    key = replace(device, name="", threads=None, wait_s=1.0, runtime="webgpu" if webgpu else "wasm")
    with _hosts_lock:
        if key not in _hosts:
            assets = home() if device.assets is None else device.assets
            server = Server(
                device.name, served(assets), versions(assets), device.bind, device.port, device.tls
            )
            server.open()
            program = device.chromium
            chromium = Chromium(device.name, program, webgpu) if program else None
            if not _hosts:
                atexit.register(close_all)
            _hosts[key] = _Host(server, chromium)
        return _hosts[key]


def close_all() -> None:
    """End every server and browser that this process opened; the next connection opens anew."""
    with _hosts_lock:
        while _hosts:
            _hosts.popitem()[1].close()


def invitation(device: Browser, server: Server) -> str:
    """What to do with a phone, with the address as text and as a QR code; it holds the token."""
    import io

    everywhere = device.bind in ("0.0.0.0", "::")
    local = device.bind in ("127.0.0.1", "::1", "localhost")
    url = server.address(own_address() if everywhere else "localhost" if local else device.bind)
    code = io.StringIO()
    require("segno", "web").make(url, error="l").terminal(out=code, compact=True, border=2)
    how = f"{device.name}: open this page on the phone, and keep it in front:\n\n    {url}\n"
    if local:
        how += (
            f"\nFirst, with the phone plugged in:  adb reverse tcp:{server.port} tcp:{server.port}"
            "\nFor a phone on the same network instead: browser:bind=0.0.0.0\n"
        )
    elif not device.tls:
        how += "\nPlain http: one thread, no WebGPU; for all of it: adb reverse, or cert=, key=\n"
    return f"{how}\n{code.getvalue()}"


def device(address: str) -> Browser:
    """A browser.

    Args:
        address: "" or options, as the module says.

    Raises:
        ConfigError: An option is not known or cannot be.
    """
    found = read_options("browser", address, OPTIONS)
    runtime = found.get("runtime", "wasm")
    if runtime not in ("wasm", "webgpu"):
        raise ConfigError(f"browser: runtime must be wasm or webgpu, got {runtime!r}")
    chromium = found.get("chromium", "")
    if chromium in ("yes", "headless"):
        chromium = _chromium.find() or "chromium"
    if chromium and shutil.which(chromium) is None:
        raise ConfigError(f"browser: chromium: {chromium} is not a program on this machine")
    tls = None
    if "cert" in found or "key" in found:
        if not {"cert", "key"} <= set(found):
            raise ConfigError("browser: cert= and key= belong together")
        tls = Path(found["cert"]), Path(found["key"])
    assets = Path(found["assets"]).absolute() if "assets" in found else None
    threads = _number(found, "threads", 1, 64)
    # A browser of our own needs no address that one can remember.
    port = _number(found, "port", 0, 65535)
    return Browser(
        name=f"browser:{address}" if address else "browser",
        bind=found.get("bind", "127.0.0.1"),
        port=(0 if chromium else PORT) if port is None else port,
        runtime=runtime,
        threads=threads,
        chromium=chromium,
        assets=assets,
        wait_s=_number(found, "wait_s", 1, 86400) or 300,
        tls=tls,
        execution="emulated" if chromium else "native",
    )


def _number(options: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError(f"browser: {name} must be a number from {low} to {high}, got {text!r}")
    return int(text)
