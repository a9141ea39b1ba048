"""The faults: each one function, which puts it into a scene and brings the run to an end.

A function returns the result that is there in the end. What was reported on the way is in the
scene; a fault that was reported and never noticed is an AssertionError.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.harness.scene import SCENES, NotHere, Page, Phone, Scene, adb, forge, until
from hetero.devices import RunResult
from hetero.errors import HeteroError

Inject = Callable[[Any], RunResult]

#: Kinds of device whose runtime can be told what to do wrong, and whose worker is a process here.
PYTHON = ("local", "ssh")
WORKER = (*PYTHON, "adb")
EVERY = (*WORKER, "browser")


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: What goes wrong, in words.
        kinds: Kinds of device that can have it.
        ends: Whether the run goes on by itself, or has to end in a clear line.
        inject: Makes it.
    """

    name: str
    kinds: tuple[str, ...]
    ends: str
    inject: Inject


FAULTS: list[Fault] = []


def fault(ends: str, *kinds: str) -> Callable[[Inject], Inject]:
    """Enter a function into the table; its docstring is the fault's name."""

    def enter(inject: Inject) -> Inject:
        name = " ".join((inject.__doc__ or "").split()).rstrip(".")
        FAULTS.append(Fault(name, kinds or PYTHON, ends, inject))
        return inject

    return enter


# -- the worker -----------------------------------------------------------------------------------


@fault("survived", *WORKER)
def killed_embedding(s: Scene) -> RunResult:
    """Worker killed between two rows."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))
    return s.run(s.at("run", s.signal, i=4))


@fault("survived")
def killed_loading(s: Scene) -> RunResult:
    """Worker killed while it loads the model."""
    s.runtime(at="load", do="hang", once=str(s.home / "once"))
    return s.run(s.at("hello", s.signal))


@fault("survived", *WORKER)
def killed_measuring(s: Scene) -> RunResult:
    """Worker killed while it measures latency."""
    s.plan = replace(s.plan, min_runs=50, min_s=0.5)
    return s.run(s.at("bench", s.signal))


@fault("survived", *WORKER)
def killed_within_a_row(s: Scene) -> RunResult:
    """Worker killed within a row, half of it written."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))

    def tear() -> None:
        s.signal()
        with (s.folder / "out.bin").open("ab") as file:
            file.write(b"\x01" * 5)

    return s.run(s.at("run", tear, i=4))


@fault("survived")
def killed_without_a_time(s: Scene) -> RunResult:
    """Worker killed when a row is written but its time is not."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))

    def tear() -> None:
        s.signal()
        with (s.folder / "out.bin").open("ab") as file:
            file.write(bytes(12))

    return s.run(s.at("run", tear, i=4))


@fault("survived", *WORKER)
def killed_within_a_line(s: Scene) -> RunResult:
    """Worker killed within a line of its log."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))

    def tear() -> None:
        s.signal()
        with (s.folder / "log.jsonl").open("ab") as file:
            file.write(b'{"hetero": "run", "i": 5, "n"')

    return s.run(s.at("run", tear, i=4))


@fault("survived")
def crashed(s: Scene) -> RunResult:
    """Runtime aborts the process at a row."""
    s.runtime(at=6, do="crash", once=str(s.home / "once"))
    return s.run()


@fault("reported")
def crashes_always(s: Scene) -> RunResult:
    """Runtime aborts the process at the same row each time."""
    s.runtime(at=6, do="crash")
    s.plan = replace(s.plan, restarts=0)
    s.refused()
    s.runtime()
    return s.resumed()


@fault("survived", *WORKER)
def stopped(s: Scene) -> RunResult:
    """Worker frozen (SIGSTOP) and never woken."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))
    s.plan = replace(s.plan, heartbeat_s=1.0)
    return s.run(s.at("run", lambda: s.signal(signal.SIGSTOP), i=4))


@fault("survived", *WORKER)
def frozen_for_a_while(s: Scene) -> RunResult:
    """Worker frozen for a second, as by an overloaded board."""

    def freeze() -> None:
        s.signal(signal.SIGSTOP)
        pid = s.pid
        assert pid is not None
        threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)).start()

    s.plan = replace(s.plan, min_s=0.3)
    return s.run(s.at("run", freeze, i=4))


@fault("survived")
def hung(s: Scene) -> RunResult:
    """Runtime hangs at a row while the worker goes on beating."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))
    s.plan = replace(s.plan, stall_s=2.0)
    return s.run()


@fault("survived")
def hung_loading(s: Scene) -> RunResult:
    """Runtime hangs while it loads the model."""
    s.runtime(at="load", do="hang", once=str(s.home / "once"))
    s.plan = replace(s.plan, stall_s=2.0)
    return s.run()


@fault("reported")
def failing(s: Scene) -> RunResult:
    """Runtime fails at a row."""
    s.runtime(at=6, do="fail")
    s.refused()
    s.runtime()
    return s.resumed()


@fault("reported")
def out_of_memory(s: Scene) -> RunResult:
    """Device out of memory at a row."""
    s.runtime(at=6, do="memory")
    s.refused()
    s.runtime()
    return s.resumed()


@fault("reported")
def no_runtime(s: Scene) -> RunResult:
    """Runtime does not load."""
    s.runtime(at="import")
    s.refused()
    s.runtime()
    return s.resumed()


@fault("reported")
def no_python(s: Scene) -> RunResult:
    """Python on the device cannot do it."""
    s.python.write_text("#!/bin/sh\necho no NumPy >&2\nexit 3\n")
    s.plan = replace(s.plan, heartbeat_s=1.0, restarts=0)
    s.refused()
    s.runtime()
    return s.resumed()


@fault("survived", *WORKER)
def process_id_given_to_another(s: Scene) -> RunResult:
    """Worker gone, and its process id given to another program."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))

    def replace_it() -> None:
        s.signal()
        (s.folder / "pid").write_text(f"{os.getpid()}\n")

    return s.run(s.at("run", replace_it, i=4))


# -- what comes back ------------------------------------------------------------------------------


@fault("survived")
def chatter(s: Scene) -> RunResult:
    """Runtime prints to stdout and stderr, a forged 'done' included."""
    result = s.run()
    assert "chatter" in (s.folder / "stdout.txt").read_text()
    return result


@fault("survived", *WORKER)
def chatter_in_the_log(s: Scene) -> RunResult:
    """Garbage between the lines of the log."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))

    def spoil() -> None:
        with (s.folder / "log.jsonl").open("ab") as file:
            file.write(b'\x00\xff chatter\n{"hetero": 3}\n["hetero"]\n{"hetero": "new", "x": 1}\n')
        s.signal()

    return s.run(s.at("run", spoil, i=4))


@fault("reported", *WORKER)
def forged_done(s: Scene) -> RunResult:
    """A 'done' that claims fewer rows than were ordered."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))
    none = "0" * 64
    lie = forge(
        "done", rows=1, dim=3, runs=0, out_bytes=12, out_sha256=none, lat_bytes=8, lat_sha256=none
    )

    def spoil() -> None:
        with (s.folder / "log.jsonl").open("ab") as file:
            file.write(lie)

    s.refused(s.at("run", spoil, i=4))
    return s.anew()


@fault("reported", *EVERY)
def wrong_answer(s: Scene) -> RunResult:
    """A result altered after its worker signed it."""

    def alter() -> None:
        path = s.folder / "out.bin"
        data = bytearray(path.read_bytes())
        data[5] ^= 1
        path.write_bytes(data)

    s.refused(s.at("done", alter))
    return s.anew()


@fault("reported", *EVERY)
def torn_answer(s: Scene) -> RunResult:
    """A result cut short after its worker signed it."""
    s.refused(s.at("done", lambda: os.truncate(s.folder / "lat.bin", 11)))
    return s.anew()


@fault("reported", *EVERY)
def lost_answer(s: Scene) -> RunResult:
    """A result removed after its worker signed it."""
    s.refused(s.at("done", lambda: (s.folder / "out.bin").unlink()))
    return s.anew()


@fault("survived", *WORKER)
def model_altered(s: Scene) -> RunResult:
    """Stored model altered on the device between two runs."""
    s.run()
    (stored,) = (s.far / "store").glob("*.onnx")
    size = stored.stat().st_size
    stored.unlink()
    stored.write_bytes(bytes(size))
    return s.run()


@fault("survived", *WORKER)
def inputs_altered(s: Scene) -> RunResult:
    """Stored inputs altered on the device between two runs."""
    s.run()
    (stored,) = (s.far / "store").glob("*.bin")
    size = stored.stat().st_size
    stored.unlink()
    stored.write_bytes(bytes(size))
    return s.run()


@fault("survived", *WORKER)
def order_lost(s: Scene) -> RunResult:
    """Run folder removed on the device between two runs."""
    s.run()
    subprocess.run(["rm", "-r", str(s.folder)], check=True)
    return s.run()


# -- the disk -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _small_disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        raise NotHere("only root can mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@fault("reported")
def disk_full_embedding(s: Scene) -> RunResult:
    """Disk full while rows are written."""
    from fakes import tiny_pixels

    s.pixels = tiny_pixels(600)
    # Until the end of the scene: locally the results lie there too.
    s.until_end(_small_disk(s.far, "240k"))
    ballast = s.far / "ballast"
    ballast.write_bytes(bytes(96 << 10))
    s.refused()
    assert "disk is full" in s.said[-1][1], s.said
    ballast.unlink()
    return s.resumed()


@fault("reported", "ssh")
def disk_full_sending(s: Scene) -> RunResult:
    """Disk full while the model is sent."""
    s.model.write_bytes(os.urandom(400 << 10))
    with _small_disk(s.far, "700k"):
        ballast = s.far / "ballast"
        ballast.write_bytes(bytes(500 << 10))
        s.refused()
        assert "disk is full" in s.said[-1][1], s.said
        ballast.unlink()
        return s.resumed()


# -- the host -------------------------------------------------------------------------------------


@fault("survived", *WORKER)
def host_killed(s: Scene) -> RunResult:
    """Host killed while the worker goes on, then run again with --resume."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))
    s.host(until_row=4)
    until(lambda: (s.home / "once").exists())
    orphan = s.pid
    assert orphan is not None, "the worker died with its host"
    # The hang is over when it is killed, and the next one goes on.
    return s.run(s.at("run", s.signal, i=4), resume=True)


@fault("reported", *EVERY)
def interrupted(s: Scene) -> RunResult:
    """Ctrl-C at the host."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    s.plan = replace(s.plan, min_s=0.3)
    s.refused(s.at("run", interrupt, i=4))
    assert s.pid is None, "the worker was not stopped"
    return s.resumed()


# -- the way --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _hasty(**constants: Any) -> Iterator[None]:
    """The connection with other constants, so that little time is spent waiting."""
    with contextlib.ExitStack() as stack:
        for name, value in constants.items():
            module = "_way" if name == "PAUSES_S" else "_ssh_connection"
            stack.enter_context(mock.patch(f"hetero.devices.{module}.{name}", value))
        yield


def _cuts(s: Scene, up: list[int], down: list[int]) -> RunResult:
    s.proxy.budgets = [*((n, None) for n in up), *((None, n) for n in down)]
    s.plan = replace(s.plan, min_s=0.3, reconnect_s=300)
    with _hasty(PAUSES_S=(0.0, 0.0)):
        result = s.run()
    assert s.proxy.cuts >= (len(up) + len(down)) // 2, f"only {s.proxy.cuts} cuts"
    return result


def _away(
    s: Scene,
    leave: Callable[[], object],
    back: Callable[[], object],
    row: int = 4,
    reconnect_s: float = 2.0,
) -> RunResult:
    """A device that leaves at a row and stays away until that was told, then is there again."""
    s.plan = replace(s.plan, reconnect_s=reconnect_s)
    s.refused(s.at("run", leave, i=row))
    assert s.said[-1][0] == 4
    back()
    s.plan = replace(s.plan, reconnect_s=60.0)
    return s.resumed()


@fault("survived", "ssh")
def cut_in_the_handshake(s: Scene) -> RunResult:
    """Link cut in the handshake, at 10 places in each direction."""
    up = [1, 9, 40, 90, 200, 400, 700, 1000, 1300, 1500]
    return _cuts(s, up, [1, 21, 45, 100, 500, 900, 1100, 1300, 1500, 1700])


@fault("survived", "ssh")
def cut_in_the_login(s: Scene) -> RunResult:
    """Link cut while logging in, at 10 places in each direction."""
    return _cuts(s, list(range(1700, 3700, 200)), list(range(1900, 3500, 160)))


@fault("survived", "ssh")
def cut_while_sending(s: Scene) -> RunResult:
    """Link cut while the model is sent, each time after another 60 kB of 800."""
    s.model.write_bytes(os.urandom(800_000))
    with mock.patch("hetero.devices.ssh.CHUNK_BYTES", 32_768):
        return _cuts(s, [60_000 + 977 * i for i in range(20)], [])


@fault("survived", "ssh")
def cut_while_working(s: Scene) -> RunResult:
    """Link cut again and again while the worker works."""
    s.plan = replace(s.plan, min_runs=200, min_s=1.0)
    return _cuts(s, list(range(6000, 16_000, 800)), list(range(6000, 16_000, 800)))


@fault("survived", "ssh")
def cut_while_fetching(s: Scene) -> RunResult:
    """Link cut while the results are fetched."""

    def shorten() -> None:
        s.proxy.cut()
        s.proxy.budgets = [(None, n) for n in range(4200, 9000, 400)]

    with _hasty(PAUSES_S=(0.0, 0.0)):
        result = s.run(s.at("done", shorten))
    assert s.proxy.cuts > 2
    return result


@fault("survived", "ssh")
def cut_at_the_start(s: Scene) -> RunResult:
    """Link cut just when the worker was started, before the answer."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))
    done = threading.Event()

    def cut() -> None:
        while not done.is_set():
            if list(s.far.glob("*/pid")):
                s.proxy.cut()
                return

    threading.Thread(target=cut, daemon=True).start()
    try:
        result = s.run(s.at("run", s.signal, i=4))
    finally:
        done.set()
    assert s.proxy.connections > 1
    return result


@fault("survived", "ssh")
def flipped_bit(s: Scene) -> RunResult:
    """A bit flipped on the way, once in each direction."""
    s.proxy.flips = [(9_000, None), (None, 7_000)]
    result = s.run()
    assert s.proxy.connections > 2
    return result


@fault("survived", "ssh")
def silent_link(s: Scene) -> RunResult:
    """Link goes silent without an end, as when a cable is pulled."""
    s.proxy.silent = True
    s.proxy.budgets = [(12_000, None), (None, 12_000)]
    s.plan = replace(s.plan, min_runs=200, min_s=1.0)
    with _hasty(KEEPALIVE_S=0.3):
        result = s.run()
    assert s.proxy.connections > 2
    return result


@fault("survived", "ssh")
def link_away_for_a_while(s: Scene) -> RunResult:
    """Link away for three seconds."""

    def away() -> None:
        s.proxy.down = True
        s.proxy.cut()
        threading.Timer(3.0, setattr, (s.proxy, "down", False)).start()

    return s.run(s.at("run", away, i=4))


@fault("survived", "ssh")
def sshd_child_killed(s: Scene) -> RunResult:
    """Server's process for this connection killed."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))

    def kill() -> None:
        assert s.server.cut() > 0
        s.signal()

    return s.run(s.at("run", kill, i=4))


@fault("survived", "ssh")
def sshd_restarted(s: Scene) -> RunResult:
    """SSH server stopped and started again while the worker goes on."""
    s.plan = replace(s.plan, min_runs=100, min_s=1.0)

    def again() -> None:
        s.server.stop()
        s.server.start()

    return s.run(s.at("run", again, i=4))


@fault("survived", "ssh")
def rebooted(s: Scene) -> RunResult:
    """Device rebooted: server and worker gone, back after two seconds."""
    s.runtime(at=6, do="hang", once=str(s.home / "once"))

    def reboot() -> None:
        s.signal()
        s.server.stop()
        threading.Timer(2.0, s.server.start).start()

    return s.run(s.at("run", reboot, i=4))


@fault("survived", "ssh")
def file_transfer_stopped(s: Scene) -> RunResult:
    """Server's file transfer frozen, its connection alive."""

    def freeze() -> None:
        for one in s.server.sessions():
            if one.name() == "sftp-server":
                one.suspend()

    with _hasty(ANSWER_S=2.0):
        return s.run(s.at("run", freeze, i=4))


@fault("reported", "ssh")
def gone_for_good(s: Scene) -> RunResult:
    """Device away for good while the worker works."""
    return _away(s, s.server.stop, s.server.start)


@fault("reported", "ssh")
def never_there(s: Scene) -> RunResult:
    """Device not there at all."""
    s.plan = replace(s.plan, reconnect_s=1.0)
    s.server.stop()
    s.refused()
    s.server.start()
    s.plan = replace(s.plan, reconnect_s=60.0)
    return s.resumed()


@fault("reported", "ssh")
def host_key_changed(s: Scene) -> RunResult:
    """Host key changed while the link was cut."""
    key = s.server.host_key.read_bytes()

    def change() -> None:
        from sshd import make_key

        s.server.stop()
        s.server.host_key.unlink()
        make_key(s.server.host_key)
        s.server.start()

    s.refused(s.at("run", change, i=4))
    assert "changed" in s.said[-1][1]
    s.server.stop()
    s.server.host_key.write_bytes(key)
    s.server.start()
    return s.resumed()


@fault("reported", "ssh")
def login_refused(s: Scene) -> RunResult:
    """Login no longer accepted."""
    keys = s.server.folder / "authorized"
    before = keys.read_bytes()

    def forget() -> None:
        keys.write_bytes(b"")
        s.proxy.cut()

    s.refused(s.at("run", forget, i=4))
    keys.write_bytes(before)
    return s.resumed()


@fault("survived", "ssh")
def half_a_file_damaged(s: Scene) -> RunResult:
    """Half-sent model damaged on the device before it is gone on with."""
    s.model.write_bytes(os.urandom(800_000))
    s.proxy.budgets = [(500_000, None)]
    damaged: list[Path] = []

    def damage() -> None:
        deadline = time.monotonic() + 60
        while not damaged and time.monotonic() < deadline:
            for part in (s.far / "store").glob(".*.onnx.*.part"):
                if s.proxy.cuts and part.stat().st_size > 100_000:
                    with part.open("r+b") as file:
                        file.write(b"damaged")
                    damaged.append(part)

    thread = threading.Thread(target=damage, daemon=True)
    thread.start()
    with mock.patch("hetero.devices.ssh.CHUNK_BYTES", 32_768), _hasty(PAUSES_S=(0.5, 0.5)):
        result = s.run()
    assert damaged
    (stored,) = (s.far / "store").glob("*.onnx")
    assert stored.read_bytes() == s.model.read_bytes()
    return result


# -- a phone by adb -------------------------------------------------------------------------------


@fault("survived", "adb")
def adb_cut_again_and_again(s: Phone) -> RunResult:
    """Way to the phone cut at eight places by lot, from within a header to well into the run."""
    with s.device.connect(s.home / "before"):
        pass  # the worker is there, so that the cuts fall into the run
    s.phone.cut_now()
    luck, before = random.Random(0), s.phone.connections
    s.phone.cuts = [luck.randrange(1, 5000) for _ in range(8)]
    s.plan = replace(s.plan, reconnect_s=300)
    result = s.run()
    assert s.phone.connections - before >= 5
    return result


@fault("survived", "adb")
def adb_cut_while_installing(s: Phone) -> RunResult:
    """Way cut while the worker and its runtimes are pushed for the first time."""
    s.phone.cuts = [3_000_000, 20_000_000]
    s.plan = replace(s.plan, reconnect_s=300)
    return s.run()


@fault("survived", "adb")
def adb_away_for_a_while(s: Phone) -> RunResult:
    """Phone unplugged for three seconds."""

    def away() -> None:
        s.phone.stop()
        threading.Timer(3.0, s.phone.start).start()

    return s.run(s.at("run", away, i=4))


@fault("reported", "adb")
def adb_away_for_good(s: Phone) -> RunResult:
    """Phone unplugged for good while the worker works."""
    return _away(s, s.phone.stop, s.phone.start)


@fault("reported", "adb")
def adb_never_there(s: Phone) -> RunResult:
    """Phone not there at all."""
    s.phone.stop()
    s.refused()
    assert s.said[-1][0] == 4
    s.phone.start()
    return s.resumed()


@fault("reported", "adb")
def adb_not_trusted(s: Phone) -> RunResult:
    """Phone no longer trusts this computer."""

    def revoke() -> None:
        s.phone.trusting = False
        s.phone.cut_now()

    return _away(s, revoke, lambda: setattr(s.phone, "trusting", True))


@fault("survived", "adb")
def adb_server_killed(s: Phone) -> RunResult:
    """adb's own server on the host killed."""
    return s.run(s.at("run", lambda: adb("kill-server"), i=4))


@fault("reported", "adb")
def adb_disk_full(s: Phone) -> RunResult:
    """Phone's storage full while the model is sent."""
    with _small_disk(s.far / "store", "64k"):
        s.refused()
        assert "storage is full" in s.said[-1][1], s.said
    return s.resumed()


# -- a page ---------------------------------------------------------------------------------------


@fault("survived", "browser")
def page_cut(s: Page) -> RunResult:
    """Page's connection cut without a word, at several moments of the run."""

    cuts: list[int] = []

    def abort() -> None:
        if s.server._socket is not None:  # it may be away since the last time
            s.server._socket._req.transport.abort()
            cuts.append(1)

    def cut(sent: Mapping[str, Any]) -> None:
        if sent["hetero"] in ("hello", "ready", "first") or sent.get("i") in (0, 4, 9):
            s.server._loop.call_soon_threadsafe(abort)

    result = s.run(cut)
    assert cuts
    return result


@fault("survived", "browser")
def page_reloaded(s: Page) -> RunResult:
    """Page loaded anew by its user."""
    return s.run(s.at("run", lambda: s.hand.do("Page.reload"), i=4))


@fault("reported", "browser")
def page_crashed(s: Page) -> RunResult:
    """Page crashed, and nobody opens it again."""
    s.runtime(slow_ms=400)
    return _away(s, lambda: s.hand.do("Page.crash"), s.runtime, row=2, reconnect_s=1.0)


@fault("survived", "browser")
def browser_killed(s: Page) -> RunResult:
    """Browser killed, and the page opened in another one."""
    s.runtime(slow_ms=400)
    return s.run(s.at("run", lambda: threading.Thread(target=s.show).start(), i=2))


@fault("reported", "browser")
def page_fails(s: Page) -> RunResult:
    """Runtime in the page fails at a row."""
    s.runtime(at=6, do="fail")
    s.refused()
    s.runtime()
    return s.resumed()


@fault("reported", "browser")
def page_out_of_memory(s: Page) -> RunResult:
    """Page out of memory at a row."""
    s.runtime(at=6, do="memory")
    s.refused()
    s.runtime()
    return s.resumed()


@fault("reported", "browser")
def page_hangs(s: Page) -> RunResult:
    """Runtime in the page hangs at a row, each time."""
    s.runtime(at=6, do="hang")
    s.plan = replace(s.plan, stall_s=2.0, restarts=0)
    s.refused()
    s.plan = replace(s.plan, stall_s=60.0)
    s.runtime()
    return s.resumed()


def play(fault: Fault, kind: str) -> dict[str, Any]:
    """The row of the table for one fault on one kind of device.

    Raises:
        NotHere: It cannot be made on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="hetero-", ignore_cleanup_errors=True) as folder:
        begun = time.monotonic()
        row: dict[str, Any] = {"fault": fault.name, "kind": kind, "promised": fault.ends}
        scene = SCENES[kind](kind, Path(folder) / "scene")
        try:
            with scene.open():
                result = fault.inject(scene)
                lost, doubled = scene.count(result)
        except (AssertionError, HeteroError, OSError) as error:
            # A run that ended in an error nobody promised, or a fault that nobody noticed.
            shown = _hidden(f"{type(error).__name__}: {error}", folder)
            return {
                **row,
                "outcome": "failed",
                "exit_codes": [],
                "errors": [shown],
                "then": scene.then,
                "restarts": 0,
                "rows": 0,
                "rows_lost": len(scene.pixels),
                "rows_duplicated": 0,
                "seconds": round(time.monotonic() - begun, 1),
            }
        return {
            **row,
            "outcome": "reported" if scene.said else "survived",
            "exit_codes": [code for code, _ in scene.said],
            "errors": [_hidden(text, folder) for _, text in scene.said],
            "then": scene.then,
            "restarts": int(result.facts["restarts"]),
            "rows": len(result.outputs),
            "rows_lost": lost,
            "rows_duplicated": doubled,
            "seconds": round(time.monotonic() - begun, 1),
        }


def _hidden(text: str, folder: str) -> str:
    """An error without what differs from one run to the next, or tells of this machine."""
    known = {
        folder: "FOLDER",
        sys.executable: "PYTHON",
        str(Path.home()): "HOME",
        f"{getpass.getuser()}@": "USER@",
        str(os.getpid()): "PID",
    }
    for old, new in known.items():
        text = text.replace(old, new)
    return re.sub(r"(127\.0\.0\.1\]?):\d+", r"\1:PORT", text)
