"""A real OpenSSH server for tests, on this machine and yet touching nothing of it.

Its keys, its configuration and the file of keys that may log in lie in a folder of the test, it
listens on a free port of the loopback interface, and it serves the user who runs the tests.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
)


def program() -> str | None:
    """The path of sshd, which is seldom in a user's PATH."""
    return shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


def missing() -> str:
    """Why there can be no server here, or ""."""
    if program() is None or shutil.which("ssh-keygen") is None:
        return "no sshd here; on Debian: apt-get install openssh-server"
    return ""


def make_key(path: Path) -> Path:
    """A private key, and its public half beside it."""
    call = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(call, check=True)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Sshd:
    """A server's folder; `start` and `stop` as often as one likes, always on the same port."""

    folder: Path
    more: tuple[str, ...] = ()
    sftp: str = ""
    port: int = field(default_factory=free_port)
    _server: subprocess.Popen | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.key, self.host_key = (self.folder / x for x in ("id", "host"))
        for key in (self.key, self.host_key):
            if not key.exists():
                make_key(key)
        shutil.copyfile(f"{self.key}.pub", self.folder / "authorized")
        sftp = self.sftp or next(filter(os.path.exists, SFTP_SERVERS), "internal-sftp")
        lines = [
            f"HostKey {self.host_key}",
            f"ListenAddress 127.0.0.1:{self.port}",
            f"AuthorizedKeysFile {self.folder / 'authorized'}",
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "MaxStartups 100",
            f"Subsystem sftp {sftp}",
            *self.more,
        ]
        (self.folder / "config").write_text("\n".join(lines) + "\n")

    @property
    def address(self) -> str:
        """What goes after "ssh:", for a worker of this Python."""
        who = f"{getpass.getuser()}@127.0.0.1:{self.port}"
        return f"{who},key={self.key},python={sys.executable},accept-new=yes"

    def through(self, port: int) -> str:
        """The same address by way of another port."""
        return self.address.replace(f":{self.port},", f":{port},")

    def start(self) -> Sshd:
        if os.geteuid() == 0:  # sshd insists on this folder; it is empty and made anew at each boot
            Path("/run/sshd").mkdir(exist_ok=True)
        log = (self.folder / "log").open("ab")
        call = [str(program()), "-D", "-e", "-f", str(self.folder / "config")]
        with log:
            self._server = subprocess.Popen(call, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return self
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.02)

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve open connections."""
        if self._server is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._server.pid).children(recursive=True)
            return [x for x in children if x.name().startswith(("sshd", "sftp-server"))]
        return []

    def cut(self, send: int = signal.SIGKILL) -> int:
        """Kill, or otherwise signal, what serves the open connections; how many there were."""
        found = self.sessions()
        for one in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(send)
        return len(found)

    def stop(self) -> None:
        """The machine goes away: the server and every open connection."""
        if self._server is not None:
            self.cut()
            self._server.kill()
            self._server.wait()
            self._server = None


@contextlib.contextmanager
def serving(folder: Path, *more: str, sftp: str = "") -> Iterator[Sshd]:
    """A running server whose host key is not known to anybody yet."""
    server = Sshd(folder, more, sftp).start()
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Proxy:
    """Stands in the way to a server and cuts it: a connection ends after so many bytes.

    `budgets` are for the connections in turn, each (bytes to the server, bytes from it), None for
    no end; connections after the last one have none. With `silent` a cut is felt as silence.
    `flips` are likewise the places where one bit is turned round. While it is `down` nobody is let
    in.
    """

    target: int
    budgets: list[tuple[int | None, int | None]] = field(default_factory=list)
    flips: list[tuple[int | None, int | None]] = field(default_factory=list)
    silent: bool = False
    down: bool = False
    connections: int = 0
    cuts: int = 0
    passed: list[int] = field(default_factory=lambda: [0, 0])

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut every open connection."""
        for one in self._open:
            _shut(one)
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                if self.down:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.target))
            except ConnectionRefusedError:
                near.close()
                continue
            except OSError:
                return
            # Without it each small answer waits 40 ms for an acknowledgement.
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            budgets = self.budgets.pop(0) if self.budgets else (None, None)
            flips = self.flips.pop(0) if self.flips else (None, None)
            self._open += [near, far]
            for way, ends in enumerate([(near, far), (far, near)]):
                arguments = (way, *ends, budgets[way], flips[way])
                threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(
        self,
        way: int,
        one: socket.socket,
        other: socket.socket,
        left: int | None,
        flip: int | None,
    ) -> None:
        with contextlib.suppress(OSError):
            while left is None or left > 0:
                data = one.recv(65536 if left is None else min(left, 65536))
                if not data:
                    break
                if flip is not None:
                    if flip < len(data):
                        data = data[:flip] + bytes([data[flip] ^ 1]) + data[flip + 1 :]
                    flip = flip - len(data) if flip >= len(data) else None
                other.sendall(data)
                self.passed[way] += len(data)
                left = None if left is None else left - len(data)
        if left == 0:
            self.cuts += 1
            if self.silent:
                return
        _shut(one)
        _shut(other)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
