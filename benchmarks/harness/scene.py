"""One device of a kind, all of it on this machine, in a state that a fault can be put into."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from adbd import Adbd
from fakes import fake_answers, put_fake_runtime, tiny_pixels
from pages import FAKE_ORT, MISSING, Remote, faulty_assets, remote
from sshd import Proxy, Sshd, free_port, missing

from benchmarks.latency_ab import write_stack
from hetero.devices import Device, Plan, RunResult, open_device, run
from hetero.devices._protocol import Error, Reader, Row
from hetero.errors import HeteroError

KINDS = ("local", "ssh", "adb", "browser")
ROWS = 12
#: Of the net on the phone's double, whose runtime is real: some tens of milliseconds a row.
LAYERS, CHANNELS, SIZE, SLOW_ROWS = 60, 32, 40, 80
PLAN = Plan(
    warmup_runs=0, warmup_s=0, min_runs=3, min_s=0, max_s=60, timeout_s=240, heartbeat_s=10,
    stall_s=60, beat_s=0.2, restarts=1, reconnect_s=60,
)  # fmt: skip

OnEvent = Callable[[Mapping[str, Any]], None]


class NotHere(Exception):
    """This fault cannot be made on this machine; the text says why."""


@dataclass
class Scene:
    """A device with a runtime that does what it is told, and a run on it.

    Attributes:
        kind: Of device.
        home: Folder of the scene.
        said: The errors that were reported, each with its exit code.
        then: What was done after them.
    """

    kind: str
    home: Path
    said: list[tuple[int, str]] = field(default_factory=list)
    then: str = ""
    far: Path = Path()
    plan: Plan = PLAN
    pixels: np.ndarray = field(default_factory=lambda: tiny_pixels(ROWS))
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.model = self.home / "any.onnx"
        self.model.write_bytes(bytes(range(256)) * 40)
        self.out = self.home / "out"
        self.far = self.out if self.kind == "local" else self.home / "far"
        self.python = self.home / "python"
        self.runtime()

    @contextlib.contextmanager
    def open(self) -> Iterator[Scene]:
        """With everything that is at the other end."""
        # Host keys are stored there; the user's own file is none of our business.
        own = mock.patch.dict(os.environ, XDG_CONFIG_HOME=str(self.home / "config"))
        with own, self._stack as stack:
            if self.kind == "ssh":
                if why := missing():
                    raise NotHere(why)
                self.server = Sshd(self.home / "sshd").start()
                stack.callback(self.server.stop)
                self.proxy = stack.enter_context(Proxy(self.server.port))
            stack.callback(self._end)
            yield self

    def until_end(self, context: contextlib.AbstractContextManager[None]) -> None:
        """Enter something that is left when the scene is closed."""
        self._stack.enter_context(context)

    @property
    def spec(self) -> str:
        """What `open_device` takes."""
        if self.kind == "local":
            return f"local:python={self.python}"
        who = f"{getpass.getuser()}@127.0.0.1:{self.proxy.port}"
        more = f"key={self.server.key},python={self.python},folder={self.far},accept-new=yes"
        return f"ssh:{who},{more}"

    @property
    def device(self) -> Device:
        """The device; opening it does nothing yet."""
        return open_device(self.spec)

    def runtime(self, **fault: Any) -> None:
        """Make the device's runtime fail like this, see `fakes.FAKE_RUNTIME`, or not at all."""
        words = put_fake_runtime(self.home / "fake", **fault)
        env = " ".join(f"{k}={shlex.quote(v)}" for k, v in words.items())
        self.python.write_text(f'#!/bin/sh\n{env} exec {shlex.quote(sys.executable)} "$@"\n')
        self.python.chmod(0o755)

    # -- the run --------------------------------------------------------------------------------

    def run(self, on_event: OnEvent | None = None, *, resume: bool = False) -> RunResult:
        """One run of the whole."""
        return run(
            self.device, self.model, "onnx", self.pixels,
            folder=self.out, plan=self.plan, resume=resume, on_event=on_event,
        )  # fmt: skip

    def refused(self, on_event: OnEvent | None = None, *, resume: bool = False) -> None:
        """A run that has to end in one clear line, which is kept."""
        try:
            self.run(on_event, resume=resume)
        except HeteroError as error:
            self.said.append((error.exit_code, str(error)))
            return
        raise AssertionError("the fault was neither survived nor reported: it was not noticed")

    def resumed(self) -> RunResult:
        """The run that goes on after a report."""
        self.then = "resumed"
        return self.run(resume=True)

    def anew(self) -> RunResult:
        """The run that begins again after a report, because the results cannot be trusted."""
        self.then = "measured anew"
        return self.run()

    # -- the other end --------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The run folder on the device."""
        (found,) = [x.parent for x in self.far.glob("*/job.json")]
        return found

    @property
    def pid(self) -> int | None:
        """The worker's process, if it lives."""
        with contextlib.suppress(ValueError, FileNotFoundError):
            pid = int((self.folder / "pid").read_text())
            if str(self.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def signal(self, number: int = signal.SIGKILL) -> None:
        """Signal the worker, and if that is its end wait for it."""
        pid = self.pid
        assert pid is not None, "there is no worker to signal"
        os.kill(pid, number)
        if number == signal.SIGKILL:
            until(lambda: self.pid is None)

    def at(self, event: str, do: Callable[[], None], **fields: Any) -> OnEvent:
        """A listener that does something once, at the first event like this."""
        done: list[int] = []

        def listen(sent: Mapping[str, Any]) -> None:
            like = sent["hetero"] == event and all(sent[k] == v for k, v in fields.items())
            if like and not done:
                done.append(1)
                do()

        return listen

    def host(self, *, until_row: int) -> None:
        """A host in a process of its own, killed when the worker has done so many rows."""
        code = (
            "import sys; sys.path[:0] = ['.', 'tests']\n"
            "from pathlib import Path; from benchmarks.harness.scene import Scene, PLAN\n"
            "from hetero.devices import open_device, run; import numpy as np\n"
            "device, model, out, pixels = sys.argv[1:]\n"
            "run(open_device(device), Path(model), 'onnx', np.load(pixels),\n"
            "    folder=Path(out), plan=PLAN)\n"
        )
        np.save(pixels := self.home / "pixels.npy", self.pixels)
        call = [sys.executable, "-c", code, self.spec]
        call += [str(x) for x in (self.model, self.out, pixels)]
        process = subprocess.Popen(call, stderr=subprocess.DEVNULL)
        try:
            until(lambda: len(list(self.far.glob("*/job.json"))) == 1)
            log = self.folder / "log.jsonl"
            until(lambda: log.exists() and f'"i": {until_row}' in log.read_text())
        finally:
            process.kill()
            process.wait()

    def _end(self) -> None:
        with contextlib.suppress(ValueError):
            if (pid := self.pid) is not None:
                os.kill(pid, signal.SIGKILL)

    # -- judging --------------------------------------------------------------------------------

    def answers(self) -> np.ndarray:
        """What every row has to be."""
        return fake_answers(self.pixels)

    def same(self, got: np.ndarray, want: np.ndarray) -> bool:
        """Whether a row is the right one: to the bit, as the stand-in for a runtime gives it."""
        return np.array_equal(got, want)

    def count(self, result: RunResult) -> tuple[int, int]:
        """Rows that are missing or wrong, and rows that were measured more than once.

        Those that a worker embedded from inputs that turned out to be torn it has thrown away.
        """
        want = self.answers()
        got = result.outputs
        right = sum(self.same(a, b) for a, b in zip(got, want, strict=False))
        assert result.folder is not None
        log = (result.folder / "log.jsonl").read_bytes()
        events: list[Row] = []
        for _, event in Reader().feed(log + b"\n"):
            if isinstance(event, Row):
                events.append(event)
            elif isinstance(event, Error) and event.kind == "file-torn":
                events.clear()
        often = Counter(e.i for e in events)
        times = {e.i: e.ns for e in events}
        # A row's time has to be that of the one time it was run.
        other = sum(int(result.embed_ns[i]) != ns for i, ns in times.items())
        doubled = sum(often.values()) - len(often) + max(0, len(got) - len(want))
        return len(want) - right, max(doubled, other)


class Phone(Scene):
    """The real adb client, a double of the phone's daemon, and the native worker behind it.

    Its runtime is onnxruntime itself, on a net that is slow enough to be disturbed at a row.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if shutil.which("adb") is None:
            raise NotHere("adb is not installed")
        write_stack(self.model, LAYERS, CHANNELS, SIZE)
        draw = np.random.default_rng(3)
        self.pixels = draw.integers(0, 256, (SLOW_ROWS, SIZE, SIZE, 3), dtype=np.uint8)

    @contextlib.contextmanager
    def open(self) -> Iterator[Scene]:
        """With an adb server of its own."""
        own = {"ANDROID_ADB_SERVER_PORT": str(free_port()), "HOME": str(self.home)}
        with mock.patch.dict(os.environ, own), self._stack as stack:
            os.environ.pop("ANDROID_SERIAL", None)
            stack.callback(adb, "kill-server")
            self.phone = Adbd()
            self.phone.start()
            stack.callback(self.phone.stop)
            stack.callback(self._end)
            yield self

    def runtime(self, **fault: Any) -> None:
        """It is as it is; where a row is to hang, rows are slow."""
        if "once" in fault:
            Path(fault["once"]).touch()

    @property
    def spec(self) -> str:
        return f"adb:127.0.0.1:{self.phone.port},folder={self.far}"

    def answers(self) -> np.ndarray:
        import onnxruntime

        session = onnxruntime.InferenceSession(self.model, providers=["CPUExecutionProvider"])
        rows = [session.run(None, {"pixels": x[None]})[0] for x in self.pixels]
        return np.concatenate(rows)

    def same(self, got: np.ndarray, want: np.ndarray) -> bool:
        return np.allclose(got, want, rtol=1e-5)  # another build of the runtime


class Page(Scene):
    """A page in a real Chromium under remote control, its runtime a slow stand-in."""

    hand: Remote
    _assets: Path | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Scene]:
        """The browser is started by `runtime`, with what it is to do wrong."""
        if MISSING:
            raise NotHere(MISSING)
        from hetero.devices import browser

        self.far = self.out
        with self._stack as stack:
            stack.callback(browser.close_all)
            self._tab = stack.enter_context(contextlib.ExitStack())
            self._assets = faulty_assets(self.home / "assets")
            self.runtime()
            yield self

    def runtime(self, **fault: Any) -> None:
        """Show the page anew in a new browser, with a runtime that fails like this."""
        if self._assets is None:  # the scene is not open yet
            return
        at = self._assets / "onnxruntime-web/dist/ort.wasm.min.mjs"
        at.write_text(FAKE_ORT % json.dumps({"slow_ms": 60, **fault}))
        self.show()

    def show(self) -> None:
        """Open the page in a new browser; the one before is gone."""
        self._tab.close()
        self.hand = self._tab.enter_context(remote(self.server.address("127.0.0.1")))
        assert self.server.wait(120), "nobody opened the page"

    @property
    def server(self) -> Any:
        """The page's other end."""
        from hetero.devices import browser

        device: Any = self.device
        return browser._host(device).server

    @property
    def spec(self) -> str:
        return f"browser:port=0,wait_s=60,assets={self._assets}"


SCENES = {"local": Scene, "ssh": Scene, "adb": Phone, "browser": Page}


def adb(*words: str) -> None:
    """A command of adb whose answer nobody needs."""
    subprocess.run(["adb", *words], check=False, capture_output=True, timeout=60)


def until(true: Callable[[], bool]) -> None:
    """Wait for something that has to come."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "waited for a minute in vain"
        time.sleep(0.01)


def forge(event: str, **fields: Any) -> bytes:
    """A line of a log that no worker wrote."""
    return json.dumps({"hetero": event, "t_s": 0.0, **fields}).encode() + b"\n"
