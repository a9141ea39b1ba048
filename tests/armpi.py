"""A board that is not there, behind a real SSH server that runs on it.

An ARM64 userland of Debian is emulated in namespaces of its own, so that neither root nor any
setting of this machine is needed: sshd, the shells it starts, sftp, Python and the runtimes are
ARM64 programs, the processor looks like a Raspberry Pi's, and only the loopback interface is this
machine's own. To a client it is a machine in the network.
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
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sshd import free_port, make_key

from hetero.devices import _arm64, qemu

#: What a login and our worker's few lines of shell need on a bare userland.
PACKAGES = ("openssh-server", "openssh-sftp-server", "dash", "coreutils", "grep", "util-linux")

#: $1 the board's root, $2 its /usr, $3 Python's packages, $4 the emulator, $5 its /proc/cpuinfo,
#: then the command. The kernel starts ARM64 programs by the emulator in these namespaces alone. The
#: command is run as a user and not as root, which sshd would need more users than one for.
SET_UP = r"""
set -eu
root=$1 usr=$2 site=$3 qemu=$4 cpuinfo=$5
shift 5
mount --bind "$usr" "$root/usr"
mount --bind "$site" "$root/site"
for x in null zero urandom; do mount --bind /dev/$x "$root/dev/$x"; done
mount --rbind /proc "$root/proc"
mount --bind "$cpuinfo" "$root/proc/cpuinfo"
mount -t binfmt_misc none "$root/binfmt"
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":hetero:M::$magic:$mask:$qemu:PF" >"$root/binfmt/register"
exec unshare --user --map-user=1000 --map-group=1000 --root="$root" --wd=/ "$@"
"""
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


def missing() -> str:
    """Why there can be no such board here, or ""."""
    for program in ("unshare", "mount", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    # A kernel from 6.7 on lets a user namespace have a table of emulators of its own.
    script = 'exec mount -t binfmt_misc none "$1"'
    call = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", "/mnt"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"no emulation in a user namespace here: {' '.join(done.stderr.split())}"
    return ""


@dataclass
class Board:
    """The board's own root, in a folder of the test; `start` and `stop` as often as one likes."""

    folder: Path
    kind: str = "pi5"
    port: int = field(default_factory=free_port)
    _server: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        whole = qemu.build()
        # Its Python comes from the same release; the runtimes are there once already.
        bare = dataclasses.replace(_arm64.recipe(*PACKAGES), wheels=())
        self.built = _arm64.build(bare)
        (self.site,) = whole.root.glob("usr/local/lib/python3.*/dist-packages")
        self.root = self.folder / "root"
        for name in ("usr", "etc/ssh", "dev", "proc", "tmp", "run/sshd", "home/pi", "site",
                     "binfmt"):  # fmt: skip
            (self.root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib"):
            (self.root / name).symlink_to(f"usr/{name}")
        for name in ("null", "zero", "urandom"):
            (self.root / "dev" / name).touch()
        (self.root / "etc/passwd").write_text(USERS)
        (self.root / "etc/group").write_text("root:x:0:\npi:x:1000:\n")
        board = qemu.BOARDS[self.kind]
        self.cpuinfo = self.folder / "cpuinfo"
        self.cpuinfo.write_text(board.files()["proc/cpuinfo"])
        # By its usual name, by which a program on the board can tell what it runs on.
        self.emulator = self.folder / "qemu-aarch64"
        shutil.copy(self.built.qemu, self.emulator)
        make_key(self.root / "etc/ssh/host")
        self.key = make_key(self.folder / "id")
        shutil.copyfile(f"{self.key}.pub", self.root / "etc/ssh/authorized")
        config = CONFIG.format(port=self.port, cpu=board.cpu)
        (self.root / "etc/ssh/config").write_text(config)

    @property
    def address(self) -> str:
        """What goes after "ssh:"."""
        python = f"/usr/bin/{self.built.python.name}"
        return f"pi@127.0.0.1:{self.port},key={self.key},python={python},accept-new=yes"

    def start(self) -> Board:
        call = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SET_UP, "board"]
        call += [str(self.root), str(self.built.root / "usr"), str(self.site), str(self.emulator)]
        call += [str(self.cpuinfo), "/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/config"]
        log = self.folder / "log"
        with log.open("ab") as out:
            env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}
            env["QEMU_CPU"] = qemu.BOARDS[self.kind].cpu
            self._server = subprocess.Popen(
                call, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return self
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)

    def stop(self) -> None:
        """Power off: whatever runs on the board, workers too."""
        if self._server is None:
            return
        for pid in psutil.pids():
            # By the file, not by its name: these processes have another view of the disk.
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/exe").samefile(self.emulator):
                    os.kill(pid, signal.SIGKILL)
        self._server.kill()
        self._server.wait()
        self._server = None
