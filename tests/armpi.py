"""Boards that are not there: an ARM64 userland of Debian in namespaces of its own, emulated.

Neither root nor any setting of this machine is needed: the shells, servers, Python and runtimes are
ARM64 programs, the processor looks like a Raspberry Pi's, and only the network is this machine's.
`Board` is such a one with an SSH server on it; to a client it is a machine in the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sshd import free_port, make_key

from hetero.devices import _arm64, qemu

#: $1 the root, $2 its /usr, $3 the emulator, $4 its /proc/cpuinfo, $5 the user's number, then pairs
#: of what else is to be seen where, "--", and the command. The kernel starts ARM64 programs by the
#: emulator in these namespaces alone. The command is run as a user and not as root: a server that
#: is root wants further users, and here is only one.
SET_UP = r"""
set -eu
root=$1 usr=$2 qemu=$3 cpuinfo=$4 user=$5
shift 5
mount --bind "$usr" "$root/usr"
for x in null zero urandom; do mount --bind /dev/$x "$root/dev/$x"; done
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 none "$root/dev/pts"
mount --rbind /proc "$root/proc"
mount --bind "$cpuinfo" "$root/proc/cpuinfo"
while [ "$1" != -- ]; do mount --bind "$1" "$root/$2"; shift 2; done
shift
mount -t binfmt_misc none "$root/binfmt"
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":hetero:M::$magic:$mask:$qemu:PF" >"$root/binfmt/register"
exec unshare --user --map-user=$user --map-group=$user --root="$root" --wd=/ "$@"
"""


def missing() -> str:
    """Why there can be no such thing here, or ""."""
    for program in ("unshare", "mount", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    # A kernel from 6.7 on lets a user namespace have a table of emulators of its own.
    script = "exec mount -t binfmt_misc none /mnt"
    call = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"no emulation in a user namespace here: {' '.join(done.stderr.split())}"
    return ""


@dataclass
class Userland:
    """A root of its own in a folder; `start` and `stop` as often as one likes.

    Attributes:
        folder: Empty.
        kind: Of `qemu.BOARDS`.
        port: On which what runs there listens, on the loopback interface.
    """

    folder: Path
    kind: str = "pi5"
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    #: Debian packages beside those that Python needs, number of the user, folders of the root.
    PACKAGES = ()
    USER = 1000
    FOLDERS = ("usr", "etc", "dev/pts", "proc", "tmp", "binfmt")

    def __post_init__(self) -> None:
        self.built = self.userland()
        self.root = self.folder / "root"
        for name in self.FOLDERS:
            (self.root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib"):
            (self.root / name).symlink_to(f"usr/{name}")
        for name in ("null", "zero", "urandom"):
            (self.root / "dev" / name).touch()
        (self.root / "dev/ptmx").symlink_to("pts/ptmx")
        files = dict(qemu.BOARDS[self.kind].files())
        self.cpuinfo = self.folder / "cpuinfo"
        self.cpuinfo.write_text(files.pop("proc/cpuinfo"))
        for name, text in files.items():
            if name.startswith("sys/"):
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_text(text)
        # By its usual name, by which a program there can tell what it runs on.
        self.emulator = self.folder / "qemu-aarch64"
        shutil.copy(self.built.qemu, self.emulator)

    @classmethod
    def userland(cls) -> _arm64.Built:
        """What is below /usr there, made now if it is not in the cache."""
        # Without the runtimes, which the boards of `qemu` have already.
        return _arm64.build(dataclasses.replace(_arm64.recipe(*cls.PACKAGES), wheels=()))

    def command(self) -> Sequence[str]:
        """What runs there."""
        raise NotImplementedError

    def seen(self) -> Sequence[tuple[Path, str]]:
        """Folders of this machine that are seen there, and where."""
        return ()

    def start(self) -> None:
        """Power on, and come back when somebody listens."""
        call = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SET_UP, "userland"]
        call += [str(self.root), str(self.built.root / "usr"), str(self.emulator)]
        call += [str(self.cpuinfo), str(self.USER)]
        call += [str(x) for pair in self.seen() for x in pair]
        call += ["--", *self.command()]
        log = self.folder / "log"
        with log.open("ab") as out:
            env = {"PATH": "/usr/bin:/bin:/usr/sbin", "LC_ALL": "C", "ADBD_PORT": str(self.port)}
            env["QEMU_CPU"] = qemu.BOARDS[self.kind].cpu
            self._process = subprocess.Popen(
                call, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)

    def stop(self) -> None:
        """Power off: whatever runs there, workers too."""
        if self._process is None:
            return
        for pid in psutil.pids():
            # By the file, not by its name: these processes have another view of the disk.
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/exe").samefile(self.emulator):
                    os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._process = None


USERS = """\
root:x:0:0::/root:/bin/sh
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
pi:x:1000:1000::/home/pi:/bin/sh
"""
CONFIG = """\
HostKey /etc/ssh/host
ListenAddress 127.0.0.1:{port}
AuthorizedKeysFile /etc/ssh/authorized
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv QEMU_CPU={cpu} PYTHONPATH=/site ORT_DISABLE_TELEMETRY=1
Subsystem sftp /usr/lib/openssh/sftp-server
"""


@dataclass
class Board(Userland):
    """A Raspberry Pi with an SSH server, Python and the runtimes."""

    PACKAGES = ("openssh-server", "openssh-sftp-server", "dash", "coreutils", "grep", "util-linux")
    FOLDERS = (*Userland.FOLDERS, "etc/ssh", "run/sshd", "home/pi", "site")

    def __post_init__(self) -> None:
        super().__post_init__()
        (self.site,) = qemu.build().root.glob("usr/local/lib/python3.*/dist-packages")
        (self.root / "etc/passwd").write_text(USERS)
        (self.root / "etc/group").write_text("root:x:0:\npi:x:1000:\n")
        make_key(self.root / "etc/ssh/host")
        self.key = make_key(self.folder / "id")
        shutil.copyfile(f"{self.key}.pub", self.root / "etc/ssh/authorized")
        config = CONFIG.format(port=self.port, cpu=qemu.BOARDS[self.kind].cpu)
        (self.root / "etc/ssh/config").write_text(config)

    @property
    def address(self) -> str:
        """What goes after "ssh:"."""
        python = f"/usr/bin/{self.built.python.name}"
        return f"pi@127.0.0.1:{self.port},key={self.key},python={python},accept-new=yes"

    def command(self) -> Sequence[str]:
        return ("/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/config")

    def seen(self) -> Sequence[tuple[Path, str]]:
        return ((self.site, "site"),)
