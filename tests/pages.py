"""What the tests of the browser share: pages without a browser, and a browser to be steered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import struct
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hetero.devices import _chromium, _web_assets

#: Taken before a test gets a home of its own: what `build` fetched for this user.
ASSETS = _web_assets.home()
CHROMIUM = _chromium.find()
MISSING = (
    "no Chromium is installed"
    if CHROMIUM is None
    else "aiohttp is not installed; needs the extra 'web'"
    if importlib.util.find_spec("aiohttp") is None
    else ""
    if ASSETS.is_dir()
    else "the page's runtimes are not there; run: hetero devices build browser"
)

MACHINE = {"cpu": "none", "cpus": 4, "features": ["isolated"], "system": "a page in a test"}


def hello(who: str = "one", worker: int = 0, **changed: Any) -> str:
    """What a page says first."""
    about = {"machine": MACHINE, "facts": {"secure_context": "yes"}}
    return json.dumps({"page": "hello", "id": who, "worker": worker, **about, **changed})


def text(seq: int, event: str, *, of: int = 1, **fields: Any) -> str:
    """One event as a page sends it."""
    content = {"hetero": event, "t_s": 0.5, **fields}
    return json.dumps({"seq": seq, "worker": of, "event": content})


def binary(
    seq: int, kind: int, i: int, n: int, times: list[int], rows: Any = (), *, of: int = 1
) -> bytes:
    """Rows (kind 0) or measured runs (kind 1) as a page sends them."""
    head = struct.pack("<6Id", kind, of, seq, i, n, 0, 0.5)
    return head + np.array(times, "<i8").tobytes() + np.asarray(rows, "<f4").tobytes()


GREETING: dict[str, Any] = {
    "version": 1, "worker": "browser", "pid": 1, "runtime": "onnxruntime",
    "runtime_version": "0", "threads": 1, **MACHINE, "facts": {"adapter": "none"},
}  # fmt: skip


def said(
    outputs: np.ndarray, runs: int = 3, *, start: int = 0, worker: int = 1, **done: Any
) -> list[str | bytes]:
    """Everything a worker says that gives `outputs`; `done` are changed fields of its last word."""
    out, lat = hashlib.sha256(), hashlib.sha256()
    events: list[Callable[[int], str | bytes]] = []

    def event(name: str, **fields: Any) -> None:
        events.append(lambda seq: text(seq, name, of=worker, **fields))

    event("hello", **GREETING)
    event("ready", provider="fake", import_ns=5, load_ns=6)
    event("first", ns=7, dim=outputs.shape[1], batch=1, start=start, runs=0)
    for i in range(start, len(outputs)):
        row, ns = outputs[i], 10 + i
        out.update(row.astype("<f4").tobytes())
        lat.update(ns.to_bytes(8, "little"))
        events.append(lambda seq, i=i, row=row, ns=ns: binary(seq, 0, i, 1, [ns], row, of=worker))
    event("bench", warmup_runs=1, runs=0)
    times = [100 + k for k in range(runs)]
    lat.update(np.array(times, "<i8").tobytes())
    events.append(lambda seq: binary(seq, 1, 0, runs, times, of=worker))
    last = {"rows": len(outputs), "dim": outputs.shape[1], "runs": runs, "measured": runs,
            "out_sha256": out.hexdigest(), "lat_sha256": lat.hexdigest(),
            "peak_memory_bytes": 1 << 20, **done}  # fmt: skip
    event("done", **last)
    return [make(seq) for seq, make in enumerate(events, 1)]


def stub_assets(folder: Path) -> Path:
    """A folder that has the names of all assets, and nothing in them."""
    for package in _web_assets.PACKAGES:
        for name in package.files:
            path = folder / package.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        (folder / package.name / "package.json").write_text('{"version": "0"}')
    return folder


#: A page without a browser: called with its socket and the order it got.
Work = Callable[[Any, Mapping[str, Any]], Awaitable[None]]


async def visit(url: str, work: Work, *, who: str = "one", worker: int = 0) -> list[dict[str, Any]]:
    """Be a page until the way is closed; what the host said."""
    import aiohttp

    heard: list[dict[str, Any]] = []
    async with aiohttp.ClientSession() as session, session.ws_connect(url + "socket") as way:
        await way.send_str(hello(who, worker))
        async for message in way:
            heard.append(json.loads(message.data))
            if heard[-1]["do"] == "start":
                await work(way, heard[-1])
            if heard[-1]["do"] == "stop":
                await way.send_str(json.dumps({"page": "gone", "worker": heard[-1]["worker"]}))
        heard.append({"do": "closed", "code": way.close_code})
    return heard


async def while_running(host: Callable[[], Any], *pages: Awaitable[Any]) -> Any:
    """What a blocking call of the host gives, with pages beside it."""
    tasks = [asyncio.ensure_future(page) for page in pages]
    try:
        return await asyncio.to_thread(host)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# -- a real browser -------------------------------------------------------------------------------

#: Stands in for onnxruntime-web: gives the first three numbers of each input, slowly if asked, and
#: misbehaves at one call; call 0 is the first inference, row i is call i + 1.
FAKE_ORT = """
const FAULT = %s;
export const env = { wasm: { numThreads: 1 }, versions: { web: "0.fake" } };
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
let calls = 0;
const wait = (ms) => new Promise((go) => setTimeout(go, ms));
async function misbehave(call) {
  if (FAULT.slow_ms) await wait(FAULT.slow_ms);
  if (FAULT.at !== call) return;
  if (FAULT.do === "hang") for (;;) {}
  if (FAULT.do === "fail") throw new Error("a made-up\\n  failure");
  if (FAULT.do === "memory") throw new RangeError("Array buffer allocation failed");
  if (FAULT.do === "crash") {
    setTimeout(() => { throw new Error("out of the blue"); });
    await wait(1e6);
  }
}
export const InferenceSession = {
  async create(bytes) {
    if (bytes.length < 2) throw new Error("empty");
    await misbehave("load");
    return {
      inputNames: ["pixels"], outputNames: ["embedding"],
      inputMetadata: [{ name: "pixels", type: "uint8", shape: ["n", 4, 4, 3] }],
      async run({ pixels }) {
        await misbehave(calls++);
        const data = new Float32Array(pixels.data.slice(0, 3));
        return { embedding: { type: "float32", dims: [1, 3], data } };
      },
    };
  },
};
"""


def faulty_assets(folder: Path, **fault: Any) -> Path:
    """The real assets with the fake runtime among them."""
    for package in _web_assets.PACKAGES:
        for name in (*package.files, "package.json"):
            path = folder / package.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(ASSETS / package.name / name)
    runtime = folder / "onnxruntime-web" / "dist" / "ort.wasm.min.mjs"
    runtime.unlink()
    runtime.write_text(FAKE_ORT % json.dumps(fault))
    return folder


@dataclasses.dataclass
class Remote:
    """A Chromium under remote control: a lifetime is one page."""

    port: int
    target: str

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command of the DevTools protocol, sent to the page."""
        return asyncio.run(self._do(method, params))

    async def _do(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        import aiohttp

        url = f"ws://127.0.0.1:{self.port}/devtools/page/{self.target}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as s:
            await s.send_json({"id": 1, "method": method, "params": params})
            if method == "Page.crash":
                return {}
            async for message in s:
                found = json.loads(message.data)
                if found.get("id") == 1:
                    return dict(found.get("result", {}))
        return {}

    def script(self, code: str) -> Any:
        """What a script gives in the page; asked again while the page is only just there."""
        for _ in range(100):
            found = self.do("Runtime.evaluate", expression=code, awaitPromise=True)
            if "value" in found.get("result", {}):
                return found["result"]["value"]
            time.sleep(0.1)
        raise AssertionError(f"no answer to {code}")


@contextlib.contextmanager
def remote(url: str, *flags: str) -> Iterator[Remote]:
    """A Chromium that has opened `url`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                str(CHROMIUM), *_chromium.FLAGS, "--disable-gpu", "--no-sandbox",
                f"--user-data-dir={profile}", "--remote-debugging-port=0", *flags, url,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield _controlled(Path(profile) / "DevToolsActivePort", url)
        finally:
            process.kill()
            process.wait()


def _controlled(file: Path, url: str) -> Remote:
    import urllib.request

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, StopIteration, IndexError):
            port = int(file.read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                pages = json.loads(answer.read())
            page = next(x for x in pages if x["url"].startswith(url[:20]))
            return Remote(port, str(page["id"]))
        time.sleep(0.1)
    raise AssertionError("Chromium shows no page")
