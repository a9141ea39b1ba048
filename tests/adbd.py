"""A double of Android's adbd, for the real adb client: it runs its commands on this machine.

It speaks the transport (CNXN, AUTH, OPEN, WRTE, OKAY, CLSE) and the services that are used: shell
v1 and v2, exec, sync v1. It refuses authentication, is slow, and cuts the connection at any byte.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

MAX_DATA = 1 << 18
VERSION = 0x01000001  # from here on without checksums
BANNER = b"device::ro.product.name=double;ro.product.model=Double;ro.product.device=double;"
FEATURES = b"features=shell_v2,cmd"


class CutError(ConnectionError):
    """The connection is gone, by us or by the client."""


@dataclass
class Adbd:
    """Listens from `start` to `stop`.

    Attributes:
        trusting: Off, every client is left unauthorised.
        delay_s: Before each message that is sent.
        cuts: How many bytes, both directions together, until the connection is reset; one for
            each connection in turn, counted from its first message after the greeting.
        connections: How many greeted.
    """

    trusting: bool = True
    delay_s: float = 0.0
    cuts: list[int] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    _listener: socket.socket | None = None
    _open: list[Connection] = field(default_factory=list)

    def start(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        assert not 5555 <= self.port <= 5585, "there adb takes it for an emulator"
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                one = Connection(self, listener.accept()[0])
                self._open.append(one)
                threading.Thread(target=one.serve, daemon=True).start()

    def stop(self) -> None:
        """Gone, as a phone whose cable is pulled; `start` brings it back at the same port."""
        if self._listener:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.cut_now()

    def cut_now(self) -> None:
        """Reset every connection; the next ones take their turns in `cuts`."""
        for one in self._open:
            one.cut()
        self._open.clear()


class Connection:
    """One client: its messages, its streams."""

    def __init__(self, owner: Adbd, way: socket.socket) -> None:
        self.owner, self.way = owner, way
        self.lock = threading.Lock()
        self.streams: dict[int, Stream] = {}
        self.left: int | None = None

    def serve(self) -> None:
        try:
            while True:
                command, one, other, data = self._message()
                if command == b"CNXN" or (command == b"AUTH" and self.owner.trusting):
                    self._greet()
                elif command == b"AUTH":
                    self.send(b"AUTH", 1, 0, bytes(20))
                elif command == b"OPEN":
                    stream = Stream(self, len(self.streams) + 1, one)
                    self.streams[stream.local] = stream
                    stream.begin(data.rstrip(b"\0").decode())
                elif other in self.streams:
                    self.streams[other].take(command, data)
        except (CutError, OSError):
            self.cut()

    def _greet(self) -> None:
        if not self.owner.trusting:
            self.send(b"AUTH", 1, 0, bytes(20))
            return
        self.send(b"CNXN", VERSION, MAX_DATA, BANNER + FEATURES)
        self.owner.connections += 1
        self.left = self.owner.cuts.pop(0) if self.owner.cuts else None

    def _message(self) -> tuple[bytes, int, int, bytes]:
        command, one, other, size, _, _ = struct.unpack("<4s5I", self._read(24))
        return command, one, other, self._read(size)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.way.recv(size - len(data))
            if not part:
                raise CutError("closed by the client")
            data += part
            self._count(len(part))
        return data

    def send(self, command: bytes, one: int, other: int, data: bytes = b"") -> None:
        time.sleep(self.owner.delay_s)
        magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
        whole = struct.pack("<4s5I", command, one, other, len(data), 0, magic) + data
        with self.lock:
            if self.left is not None and self.left < len(whole):
                with contextlib.suppress(OSError):
                    self.way.sendall(whole[: self.left])
                self.cut()
                raise CutError("cut while sending")
            self.way.sendall(whole)
            self._count(len(whole))

    def _count(self, size: int) -> None:
        if self.left is None:
            return
        self.left -= size
        if self.left <= 0:
            self.cut()
            raise CutError("cut")

    def cut(self) -> None:
        """Reset it, and hang up on what runs attached to it, as adbd does."""
        with contextlib.suppress(OSError):
            self.way.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.way.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self.way.close()
        for stream in list(self.streams.values()):
            stream.hang_up()


class Stream:
    """One service that is open: what comes in by `take`, what goes out by `write`."""

    def __init__(self, connection: Connection, local: int, remote: int) -> None:
        self.connection, self.local, self.remote = connection, local, remote
        self.changed = threading.Condition()
        self.arrived, self.may_write, self.closed = b"", True, False
        self.child: subprocess.Popen[bytes] | None = None

    def begin(self, service: str) -> None:
        kind, _, command = service.partition(":")
        known = {"shell": self._shell, "exec": self._shell, "sync": self._sync}
        work = known.get(kind.partition(",")[0])
        if work is None:
            self.connection.send(b"CLSE", 0, self.remote)
            return
        self.connection.send(b"OKAY", self.local, self.remote)
        framed = kind.startswith("shell,v2")
        threading.Thread(target=self._run, args=(work, command, framed), daemon=True).start()

    def _run(self, work, command: str, framed: bool) -> None:
        with contextlib.suppress(CutError, OSError):
            work(command, framed)
            self.connection.send(b"CLSE", self.local, self.remote)

    def take(self, command: bytes, data: bytes) -> None:
        with self.changed:
            if command == b"OKAY":
                self.may_write = True
            elif command == b"WRTE":
                self.arrived += data
            else:
                self.closed = True
            self.changed.notify_all()
        if command == b"WRTE":
            self.connection.send(b"OKAY", self.local, self.remote)
        if command == b"CLSE":
            self.hang_up()

    def hang_up(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        if self.child and self.child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGHUP)

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_DATA // 4):
            with self.changed:
                self.changed.wait_for(lambda: self.may_write or self.closed, timeout=60)
                if self.closed:
                    raise CutError("the stream is closed")
                self.may_write = False
            part = data[start : start + MAX_DATA // 4]
            self.connection.send(b"WRTE", self.local, self.remote, part)

    def read(self, size: int) -> bytes:
        with self.changed:
            self.changed.wait_for(lambda: len(self.arrived) >= size or self.closed, timeout=60)
            if len(self.arrived) < size:
                raise CutError("the stream ended")
            data, self.arrived = self.arrived[:size], self.arrived[size:]
            return data

    # -- services ---------------------------------------------------------------------------------

    def _shell(self, command: str, framed: bool) -> None:
        self.child = subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with self.child as child:  # which closes its pipe, whatever becomes of the connection
            assert child.stdout
            while part := child.stdout.read1(1 << 16):
                self.write(struct.pack("<BI", 1, len(part)) + part if framed else part)
        status = child.returncode & 255
        if framed:
            self.write(struct.pack("<BIB", 3, 1, status))

    def _sync(self, _: str, __: bool) -> None:
        while True:
            what, size = struct.unpack("<4sI", self.read(8))
            if what == b"QUIT":
                return
            name = self.read(size).decode()
            if what == b"STAT":
                self._stat(name)
            elif what == b"SEND":
                self._receive(name)
            elif what == b"RECV":
                self._give(name)
            else:
                self.write(struct.pack("<4sI", b"FAIL", 7) + b"unknown")

    def _stat(self, name: str) -> None:
        try:
            found = os.stat(name)
            numbers = found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime) & 0xFFFFFFFF
        except OSError:
            numbers = 0, 0, 0
        self.write(b"STAT" + struct.pack("<3I", *numbers))

    def _receive(self, name: str) -> None:
        path, _, mode = name.rpartition(",")
        fault = b""
        try:
            file = Path(path).open("wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            fault = f"couldn't create file: {error.strerror}".encode()
            file = Path(os.devnull).open("wb", buffering=0)  # noqa: SIM115
        with file:
            while True:
                what, size = struct.unpack("<4sI", self.read(8))
                if what != b"DATA":
                    break
                data = self.read(size)
                try:
                    while data and not fault:
                        data = data[file.write(data) or 0 :]
                except OSError as error:
                    fault = f"write failed: {error.strerror}".encode()
        if fault:
            self.write(struct.pack("<4sI", b"FAIL", len(fault)) + fault)
            return
        os.chmod(path, int(mode) & 0o777)
        self.write(struct.pack("<4sI", b"OKAY", 0))

    def _give(self, name: str) -> None:
        try:
            data = Path(name).read_bytes()
        except OSError as error:
            fault = str(error.strerror).encode()
            self.write(struct.pack("<4sI", b"FAIL", len(fault)) + fault)
            return
        for start in range(0, len(data), 1 << 16):
            part = data[start : start + (1 << 16)]
            self.write(struct.pack("<4sI", b"DATA", len(part)) + part)
        self.write(struct.pack("<4sI", b"DONE", 0))
