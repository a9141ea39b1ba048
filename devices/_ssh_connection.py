"""An SSH connection with its file transfer, for code that is not asynchronous.

The protocol is asyncssh's; here is what we ask of it: host keys that are always checked, a dead
peer that is noticed, and errors of two kinds, a way that is cut and a device that refuses.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import shlex
import threading
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hetero._files import make_folder, storage_errors
from hetero.errors import DeviceError, require

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")

CONNECT_S, LOGIN_S = 10.0, 15.0
#: A peer that does not answer this many of these is gone.
KEEPALIVE_S, KEEPALIVES = 5.0, 3
#: For one answer on a connection that lives; a chunk of a file may take long on a slow line.
ANSWER_S = 60.0


@dataclass(frozen=True)
class Target:
    """Whom to connect to; what is None is left to ~/.ssh/config and its defaults.

    Attributes:
        device: The device's name, for errors.
        host: Name, address, or a Host of ~/.ssh/config.
        user, port, key: As in ``ssh user@host -p port -i key``.
        jump: "[user@]host[:port]" on the way, as in ``ssh -J``.
        accept_new: Store the key of a host that was never seen; a changed one is refused anyway.
        spec: What the user wrote, for a command to copy.
    """

    device: str
    host: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    jump: Target | None = None
    accept_new: bool = False
    spec: str = ""


@dataclass(frozen=True)
class Said:
    """What a command on the device said.

    Attributes:
        status: Exit status, -1 for none.
        out, err: Its output, whatever a login shell added included.
    """

    status: int
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The end of its error output in one line, or "nothing"."""
        return " ".join((self.err or self.out).split()[-30:]) or "nothing"


def known_hosts() -> Path:
    """The file of host keys that this program accepted; the user's own is never written."""
    from platformdirs import user_config_path

    return user_config_path("hetero", appauthor=False) / "known_hosts"


class Connection:
    """An open connection; a lifetime.

    Every method raises ConnectionError when the way is cut, and DeviceError when the device
    refuses.

    Args:
        target: Whom to connect to.

    Raises:
        MissingExtraError: asyncssh is not installed.
    """

    def __init__(self, target: Target) -> None:
        require("asyncssh", "ssh")
        self.device = target.device
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._opened: list[asyncssh.SSHClientConnection] = []
        self._thread.start()
        try:
            self._wait(self._open(target), 2 * (CONNECT_S + LOGIN_S))
            self._sftp = self._start_sftp()
            self.home = self._wait(self._sftp.realpath("."))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close everything; what is cut already is no error."""
        with contextlib.suppress(ConnectionError, DeviceError):
            self._wait(self._close(), 5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- operations -----------------------------------------------------------------------------

    def run(self, script: str, *arguments: str, timeout_s: float | None = None) -> Said:
        """What a script of /bin/sh says.

        Args:
            script: A constant; what varies comes in `arguments`, as $1, $2 ...
            arguments: Any text.
            timeout_s: For all of it; `ANSWER_S` unless given.
        """
        # The login shell, whichever it is, sees one command of quoted words.
        command = "exec /bin/sh -c " + shlex.join([script, "hetero", *arguments])
        done = self._wait(self._opened[-1].run(command, check=False), timeout_s)
        out, err = (
            x if isinstance(x, str) else bytes(x or b"").decode(errors="replace")
            for x in (done.stdout, done.stderr)
        )
        return Said(-1 if done.exit_status is None else done.exit_status, out, err)

    def stat(self, path: str) -> tuple[int, int] | None:
        """Size in bytes and time of change in seconds of a file, or None if there is none."""
        try:
            found = self._wait(self._sftp.stat(path))
        except FileNotFoundError:
            return None
        return found.size or 0, int(found.mtime or 0)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """At most `size` bytes of a file from `offset` on.

        Raises:
            FileNotFoundError: There is none.
        """
        return self._wait(self._read(path, offset, size))

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Write into a file at `offset` and cut off what was behind; makes it if need be."""
        self._wait(self._write(path, offset, data))

    def rename(self, old: str, new: str) -> None:
        """Put a file into the place of another, if there is one."""
        self._wait(self._sftp.posix_rename(old, new))

    def remove(self, path: str) -> None:
        """Remove a file; none is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._wait(self._sftp.remove(path))

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it."""
        self._wait(self._sftp.makedirs(path, exist_ok=True))

    def free_bytes(self, path: str) -> int | None:
        """Room left where `path` is, or None where the device does not tell."""
        try:
            found = self._wait(self._sftp.statvfs(path))
        except DeviceError:
            return None
        return int(found.bavail * found.frsize)

    # -- asynchronous ---------------------------------------------------------------------------

    async def _read(self, path: str, offset: int, size: int) -> bytes:
        async with self._sftp.open(path, "rb") as file:
            data: bytes = await file.read(size, offset)
            return data

    async def _write(self, path: str, offset: int, data: bytes) -> None:
        import asyncssh

        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT
        async with self._sftp.open(path, flags, encoding=None) as file:
            await file.truncate(offset)
            await file.write(data, offset)

    async def _open(self, target: Target) -> None:
        """Connect, through the jump host if there is one."""
        import asyncssh

        if target.jump is not None:
            await self._open(target.jump)
        options = await asyncssh.SSHClientConnectionOptions.construct(
            host=target.host,
            username=() if target.user is None else target.user,
            port=() if target.port is None else target.port,
            client_keys=() if target.key is None else [str(target.key)],
            connect_timeout=CONNECT_S,
            login_timeout=LOGIN_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVES,
        )
        judge = _HostKeys(target, options)
        try:
            opened = await asyncssh.connect(
                target.host,
                options=options,
                known_hosts=judge.known,
                client_factory=judge.client,
                tunnel=self._opened[-1] if target.jump is not None else (),
            )
        except asyncssh.HostKeyNotVerifiable as error:
            raise DeviceError(self.device, judge.verdict or f"host key refused: {error}") from error
        except asyncssh.PermissionDenied as error:
            raise DeviceError(
                self.device,
                f"{target.host} refuses the login ({error.reason}); name a user and a key that it "
                f"knows: ssh:USER@{target.host},key=FILE, or put the key there with: ssh-copy-id "
                f"{target.user or 'USER'}@{target.host}",
            ) from error
        except (
            asyncssh.KeyExchangeFailed,
            asyncssh.ProtocolNotSupported,
            asyncssh.IllegalUserName,
        ) as error:
            raise DeviceError(self.device, f"{target.host}: {error.reason}") from error
        self._opened.append(opened)
        judge.store()

    async def _close(self) -> None:
        while self._opened:
            last = self._opened.pop()
            last.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(last.wait_closed(), 1.0)

    # -- bridging -------------------------------------------------------------------------------

    def _start_sftp(self) -> asyncssh.SFTPClient:
        """The file transfer, or a word on why there is none."""
        try:
            return self._wait(self._opened[-1].start_sftp_client(), LOGIN_S)
        except (DeviceError, ConnectionError) as error:
            said = self.run("exit 0", timeout_s=LOGIN_S)  # raises if the way is cut
            if said.out:
                raise DeviceError(
                    self.device,
                    f"its login shell prints {said.out.strip()[:60]!r} into every connection, "
                    "which breaks the file transfer; let ~/.bashrc print only when it is "
                    "interactive",
                ) from error
            raise DeviceError(
                self.device,
                f"its SSH server has no file transfer ({error}); run there: "
                "sudo apt install openssh-sftp-server",
            ) from error

    def _wait(self, work: Awaitable[T], timeout_s: float | None = None) -> T:
        """What comes of it, or one of our errors."""
        import asyncssh

        timeout_s = ANSWER_S if timeout_s is None else timeout_s
        if self._loop.is_closed():
            if asyncio.iscoroutine(work):
                work.close()
            raise ConnectionError("closed")
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout_s), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise ConnectionError("closed") from error
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath) as error:
            raise FileNotFoundError(error.reason) from error
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            raise ConnectionError(error.reason) from error
        except asyncssh.SFTPError as error:
            raise DeviceError(
                self.device, f"its file transfer fails: {error.reason or type(error).__name__}"
            ) from error
        except (asyncssh.DisconnectError, asyncssh.ChannelOpenError) as error:
            raise ConnectionError(error.reason) from error
        except (asyncssh.KeyImportError, asyncssh.ConfigParseError) as error:
            raise DeviceError(self.device, f"{error}") from error
        except TimeoutError as error:
            raise ConnectionError(f"no answer within {timeout_s:g} s") from error
        except OSError as error:
            raise ConnectionError(error.strerror or str(error)) from error
        except BaseException:  # Ctrl-C, while we wait
            future.cancel()
            raise


@dataclass
class _HostKeys:
    """Decides whether a host is the one it was; a lifetime is one attempt to connect.

    Attributes:
        verdict: Why a key was refused.
    """

    target: Target
    options: asyncssh.SSHClientConnectionOptions
    verdict: str = ""
    _lines: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """The user's files of known hosts, then ours, as far as they are there."""
        theirs = self.options.known_hosts
        named = [str(x) for x in theirs] if isinstance(theirs, list) else []
        default = [] if named else [str(Path("~/.ssh/known_hosts").expanduser())]
        return [x for x in (*named, *default, str(known_hosts())) if os.access(x, os.R_OK)]

    @property
    def known(self) -> asyncssh.SSHKnownHosts:
        """Everything in them."""
        import asyncssh

        return asyncssh.read_known_hosts(self.files) if self.files else asyncssh.SSHKnownHosts()

    @property
    def revoked(self) -> asyncssh.SSHKnownHosts:
        """What is marked as revoked in them, as if it were known.

        asyncssh 2.24 overlooks such a line where it is all there is for another port than 22.
        """
        import asyncssh

        mark = "@revoked"
        lines = [x.strip() for file in self.files for x in Path(file).read_text().splitlines()]
        marked = [x.removeprefix(mark).strip() for x in lines if x.startswith(mark)]
        return asyncssh.import_known_hosts("\n".join(marked))

    def client(self) -> asyncssh.SSHClient:
        """The object that asyncssh asks about a key that is not among the known ones."""
        import asyncssh

        ask = self._unknown

        class Client(asyncssh.SSHClient):
            def validate_host_public_key(
                self, host: str, addr: str, port: int, key: asyncssh.SSHKey
            ) -> bool:
                return ask(host, addr, port, key)

        return Client()

    def _unknown(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        import asyncssh

        name = host if port == 22 else f"[{host}]:{port}"
        print_, kind = key.get_fingerprint(), key.get_algorithm()
        at = (host, addr, None if port == 22 else port)
        before = asyncssh.match_known_hosts(self.known, *at)[0]
        if key in asyncssh.match_known_hosts(self.revoked, *at)[0]:
            self.verdict = (
                f"the host key of {name} is revoked: {kind} {print_}, by "
                f"{' or '.join(self.files)}; give the device a new key with "
                "`ssh-keygen -A`, or connect to another one"
            )
            return False
        if before:
            self.verdict = (
                f"the host key of {name} changed: {kind} {print_}, known was "
                f"{' and '.join(sorted(x.get_fingerprint() for x in before))}; if the device was "
                "set up anew, remove the old key with: "
                + "; ".join(shlex.join(["ssh-keygen", "-R", name, "-f", x]) for x in self.files)
            )
            return False
        if self.target.accept_new:
            self._lines.append(f"{name} {key.export_public_key().decode().strip()}\n")
            return True
        spec = f"{self.target.spec or self.target.device},accept-new=yes"
        self.verdict = (
            f"the host key of {name} is not known: {kind} {print_}; compare it with what "
            "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` says there, then trust it with: "
            + shlex.join(["hetero", "doctor", "--device", spec])
        )
        return False

    def store(self) -> None:
        """Write the accepted key down, now that the host has proven that it owns it."""
        if self._lines:
            path = known_hosts()
            make_folder(path.parent)
            with storage_errors(path), path.open("a") as file:
                file.writelines(self._lines)
