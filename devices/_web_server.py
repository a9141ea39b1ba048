"""The server behind a page: a thread with one event loop, one token, and one page at a time.

Every address begins with the token, so nothing is said to who does not know it, and a relative
address in the page carries it along. Only files of a fixed list and the two files of the current
job are served; no name from a page reaches the file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import socket
import ssl
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hetero.devices._web_run import MAX_MESSAGE_BYTES, MalformedError, WebRun
from hetero.errors import DeviceError, HeteroError, require

T = TypeVar("T")

PAGE = Path(__file__).with_name("web")
#: What a page loads first, as it asks for it; "" is the page itself.
OWN = {"": "index.html", "page.js": "page.js", "page.css": "page.css", "worker.js": "worker.js"}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".json": "application/json",
}
#: Isolation gives a page threads and a fine clock; the policy lets it reach this server alone.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; "
        "style-src 'self'; img-src data:; connect-src 'self' data: blob:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
#: A page that says nothing for this long is away, however open its connection looks.
PING_S = 5.0
HELLO_S = 10.0
ANSWER_S = 10.0
#: Why the way to a page is closed for good; the page does not come back on these.
BYE, SECOND, WRONG = 4000, 4001, 4002
#: What the protocol of WebSockets calls a message above the limit.
TOO_BIG = 1009


@dataclass
class Server:
    """A page's other end; a lifetime is from `open` to `close`.

    Attributes:
        name: The device's name, shown on the page and the first word of errors.
        assets: Files by the name a page asks with.
        versions: Of the packages they are from.
        bind, port: Where to listen; port 0 takes any.
        tls: Certificate and key, or None for plain http.
        token: What every address begins with; new for each server.
        page: What the page that is here, or was last, told of itself.
    """

    name: str
    assets: Mapping[str, Path]
    versions: Mapping[str, str]
    bind: str
    port: int
    tls: tuple[Path, Path] | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)
    page: Mapping[str, Any] | None = None
    work: WebRun | None = None
    failure: HeteroError | None = None
    refusals: int = 0
    _id: str = ""
    _order: Mapping[str, Any] = field(default_factory=dict)
    _files: Mapping[str, Path] = field(default_factory=dict)
    _socket: Any = None
    _workers: int = 0
    _here: threading.Event = field(default_factory=threading.Event)
    _loop: Any = None
    _thread: threading.Thread | None = None
    _runner: Any = None
    _gone: asyncio.Event | None = None

    # -- from the host's thread -----------------------------------------------------------------

    def open(self) -> None:
        """Begin to listen.

        Raises:
            DeviceError: The port is taken, or the address is none of this machine.
            MissingExtraError: aiohttp is not installed.
        """
        require("aiohttp", "web")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._call(self._open())
        except (OSError, ssl.SSLError) as error:
            self.close()
            raise DeviceError(
                self.name,
                f"cannot listen on {self.bind} port {self.port} "
                f"({getattr(error, 'strerror', None) or error}); choose others with "
                "bind= and port=, and a readable cert= and key=",
            ) from error

    def close(self) -> None:
        """Tell the page that it is over, and stop."""
        if self._thread is None or not self._thread.is_alive():
            return
        with contextlib.suppress(TimeoutError):
            self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_S)
        self._loop.close()

    @property
    def is_here(self) -> bool:
        """Whether a page is connected and has greeted."""
        return self._here.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Whether a page is here, at the latest after so long."""
        return self._here.wait(timeout_s)

    def address(self, host: str) -> str:
        """What a browser opens; it holds the token."""
        shown = f"[{host}]" if ":" in host else host
        return f"http{'s' if self.tls else ''}://{shown}:{self.port}/{self.token}/"

    def start(self, folder: Path, job: Mapping[str, Any], provider: str) -> None:
        """Give the page a job; what it says goes to `folder`.

        Raises:
            ConnectionError: No page is here.
        """
        self._call(self._start(folder, job, provider))

    def stop(self) -> None:
        """End the page's worker, and wait until it has; what it says later is nothing any more."""
        self._call(self._stop())

    def lose(self) -> None:
        """Count the worker as gone: its page will not come back."""
        if self.work:
            self.work.gone = True

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_S)

    # -- in the loop ----------------------------------------------------------------------------

    async def _open(self) -> None:
        from aiohttp import web

        app = web.Application(client_max_size=0)
        app.router.add_get("/{path:.*}", self._answer)
        # Nothing is logged: an access log would hold the token.
        silent = logging.Logger("silent", logging.CRITICAL + 1)
        self._runner = web.AppRunner(
            app, access_log=None, logger=silent, handle_signals=False, shutdown_timeout=1.0
        )
        await self._runner.setup()
        tls = None
        if self.tls:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(*self.tls)
        site = web.TCPSite(self._runner, self.bind, self.port, ssl_context=tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        if self._socket is not None:
            await self._socket.close(code=BYE, message=b"The run is over. You can close this page.")
        await self._runner.cleanup() if self._runner else None

    async def _answer(self, request: Any) -> Any:
        from aiohttp import web

        token, _, name = request.match_info["path"].partition("/")
        # Compared as bytes: the token in an address may hold anything.
        if not hmac.compare_digest(token.encode(errors="replace"), self.token.encode()):
            self.refusals += 1
            text = "This address is not, or no longer, valid. Scan the code in the terminal again."
            return web.Response(status=403, text=text + "\n", headers=HEADERS)
        if name == "socket":
            return await self._socket_of(request)
        headers = dict(HEADERS)
        path: Path | None
        if name in OWN:
            path = PAGE / OWN[name]
            headers["Cache-Control"] = "no-store"
        else:
            asset = name.removeprefix("assets/") if name.startswith("assets/") else ""
            path = self.assets.get(asset) or self._files.get(name)
            headers["Cache-Control"] = "private, max-age=86400, immutable"
        if path is None or not path.is_file():
            return web.Response(status=404, text="There is no such file.\n", headers=HEADERS)
        kind = TYPES.get(path.suffix, "application/octet-stream")
        if name == "assets/@litertjs/core/dist/index.js":
            # Workers have no import maps, so the one import by name becomes one by place.
            text = path.read_text(encoding="utf-8")
            text = text.replace('"@litertjs/wasm-utils"', '"../../wasm-utils/dist/index.js"')
            return web.Response(text=text, headers={**headers, "Content-Type": kind})
        return web.FileResponse(path, headers={**headers, "Content-Type": kind})

    async def _socket_of(self, request: Any) -> Any:
        from aiohttp import WSMsgType, web

        way = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=MAX_MESSAGE_BYTES)
        if not way.can_prepare(request).ok:
            return web.Response(status=400, text="A WebSocket was expected.\n", headers=HEADERS)
        await way.prepare(request)
        try:
            if not await self._greeted(way):
                return way
            async for message in way:
                if way is not self._socket:
                    break
                if message.type is WSMsgType.ERROR:
                    if getattr(message.data, "code", 0) == TOO_BIG:
                        self._give_up(f"the page sent a message above {MAX_MESSAGE_BYTES} bytes")
                    break
                await self._hear(way, message.data)
        finally:
            if way is self._socket:
                self._socket = None
                self._here.clear()
        return way

    async def _greeted(self, way: Any) -> bool:
        """Whether this page may stay: the first, or the one that was here before."""
        try:
            found = json.loads(await way.receive_str(timeout=HELLO_S))
            who = found["id"]
            about = {"machine": _machine(found["machine"]), "facts": _texts(found["facts"])}
            worker = found["worker"]
            if found["page"] != "hello" or not isinstance(who, str) or not 0 < len(who) <= 100:
                raise ValueError("no hello")
        except (TimeoutError, ValueError, KeyError, TypeError, RecursionError):
            await way.close(code=WRONG, message=b"This page is of another version: load it again.")
            return False
        if self._socket is not None:
            if who != self._id:
                text = b"Another page is connected. Close it there, then load this one again."
                await way.close(code=SECOND, message=text)
                return False
            await self._socket.close(code=1001)
        self._socket, self._id, self.page = way, who, about
        welcome: dict[str, Any] = {"do": "welcome", "have": None}
        work, again = self.work, False
        if work and not work.gone and worker == work.number:
            welcome["have"] = work.sequence
        elif work and not work.ended:
            # Either it never heard of its order, or it lost the worker: closed, loaded again.
            again = work.sequence == 0 and not worker
            work.gone = not again
        await self._send(welcome)
        if again:
            await self._send(self._order)
        self._here.set()
        return True

    async def _hear(self, way: Any, data: str | bytes) -> None:
        """Take in a message of the page."""
        work = self.work
        if isinstance(data, str) and len(data) < 200 and '"gone"' in data:
            found = _object(data)
            if found.get("page") == "gone":
                if self._gone and found.get("worker") == self._workers:
                    self._gone.set()
                return
        if work is None:
            return
        try:
            work.take(data)
        except MalformedError as error:
            self._give_up(f"the page sent {error}")
            await self._send({"do": "stop", "worker": work.number})
            return
        except HeteroError as error:  # no room, or no right, to write here
            self.failure, work.gone = error, True
            await self._send({"do": "stop", "worker": work.number})
            return
        await self._send({"do": "have", "worker": work.number, "seq": work.sequence})

    def _give_up(self, text: str) -> None:
        if self.work:
            self.work.fail(text)

    async def _send(self, message: Mapping[str, Any]) -> None:
        """Send, unless the way is cut: then the page asks again when it is back."""
        if self._socket is not None:
            with contextlib.suppress(ConnectionError, RuntimeError):
                await self._socket.send_json(message)

    async def _start(self, folder: Path, job: Mapping[str, Any], provider: str) -> None:
        if self._socket is None or self.page is None:
            raise ConnectionError("its page is away")
        self._workers += 1
        self.failure = None
        self.work = WebRun(self._workers, folder, job)
        sized = dict(job)
        files = {}
        for what in ("model", "inputs"):
            path = (folder / job[what]["file"]).resolve()
            name = f"store/{job[what]['sha256']}{path.suffix}"
            files[name] = path
            size = path.stat().st_size if path.is_file() else 0
            sized[what] = {**job[what], "name": name, "size": size}
        self._files = files
        self._order = {
            "do": "start",
            "worker": self._workers,
            "job": sized,
            "model": sized["model"]["name"],
            "inputs": sized["inputs"]["name"],
            "have": self.work.have,
            "provider": provider,
            "versions": self.versions,
            **self.page,
        }
        await self._send(self._order)

    async def _stop(self) -> None:
        if self.work is None:
            return
        if self._socket is None:
            self.work.gone = True
            return
        self._gone = asyncio.Event()
        await self._send({"do": "stop", "worker": self.work.number})
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._gone.wait(), ANSWER_S / 2)
        self.work.gone = True


def own_address() -> str:
    """This machine's address on its network, or "localhost" without one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "localhost"


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _machine(found: Any) -> dict[str, Any]:
    """What a page may say of its machine, cut to size.

    Raises:
        TypeError, KeyError: It said something else.
    """
    cpus, features = found["cpus"], found["features"]
    if not isinstance(cpus, int) or not isinstance(features, list):
        raise TypeError("no machine")
    return {
        "cpu": str(found["cpu"])[:200],
        "cpus": cpus,
        "features": [str(x)[:40] for x in features[:20]],
        "system": str(found["system"])[:300],
    }


def _texts(found: Any) -> dict[str, str]:
    return {str(k)[:40]: str(v)[:300] for k, v in list(found.items())[:20]}
