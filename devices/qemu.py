"""A Raspberry Pi that is not there: its processor is emulated, its ARM64 runtimes are real.

    qemu                    the same as qemu:pi5
    qemu:pi5                a Cortex-A76, whose kernels use dot products
    qemu:pi4,threads=2      a Cortex-A72, without them
    qemu:pi3                a Cortex-A53, also in the Zero 2 W

The runtimes' own NEON kernels compute the vectors, so they are what the board gives. Times are not:
an emulated processor is slower by a factor that differs from one operation to the next, so that
even the order of two models may be wrong. Needs Debian, not root; see `hetero.devices._arm64`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hetero._files import canonical_json, make_folder, storage_errors
from hetero.devices import _arm64
from hetero.devices._types import Execution, read_options, read_threads
from hetero.devices.local import LocalLink
from hetero.errors import ConfigError

CORES = 4


@dataclass(frozen=True)
class Board:
    """What programs see of a processor.

    Attributes:
        cpu: The emulator's name of it.
        part: Its number, as ARM gives them out.
        features: As the board's kernel lists them. They must be what the emulator executes: a
            runtime that is promised more dies of an illegal instruction.
    """

    cpu: str
    part: str
    features: str

    def files(self) -> Mapping[str, str]:
        """What the board has in place of this machine's own files, by path.

        Runtimes look into /proc/cpuinfo for their kernels; onnxruntime's library for it crashes
        when it finds no ARM core there. Sensors are empty: there is nothing to measure.
        """
        lines = {
            "BogoMIPS": "108.00",
            "Features": self.features,
            "CPU implementer": "0x41",
            "CPU architecture": "8",
            "CPU variant": "0x0",
            "CPU part": self.part,
            "CPU revision": "3",
        }
        core = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
        cpus = "sys/devices/system/cpu"
        cores = {f"{cpus}/{name}": f"0-{CORES - 1}\n" for name in ("online", "possible", "present")}
        return {
            "proc/cpuinfo": "\n".join(f"processor\t: {i}\n{core}" for i in range(CORES)),
            "proc/device-tree/model": "",
            **cores,
            f"{cpus}/cpu0/cpufreq/scaling_governor": "",
            f"{cpus}/cpu0/cpufreq/scaling_cur_freq": "",
            "sys/class/thermal/none": "",
        }


BOARDS = {
    "pi3": Board("cortex-a53", "0xd03", "fp asimd evtstrm crc32 cpuid"),
    "pi4": Board("cortex-a72", "0xd08", "fp asimd evtstrm crc32 cpuid"),
    "pi5": Board(
        "cortex-a76",
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
        "dcpop asimddp",
    ),
}
DEFAULT = "pi5"


@dataclass(frozen=True)
class Qemu:
    """An emulated board as a device."""

    name: str
    board: str
    threads: int | None = None
    execution: Execution = "emulated"

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[LocalLink]:
        """The open way, which is `folder` itself; builds the userland where it is missing.

        Raises:
            DeviceError: It cannot be built here.
        """
        python = command(build(), self.board)
        link = LocalLink(self.name, python, make_folder(folder.absolute()))
        try:
            yield link
        finally:
            link.reap()


def build(on_step: _arm64.OnStep | None = None, *, again: bool = False) -> _arm64.Built:
    """The userland that all boards share, made now if it is not there.

    Args:
        on_step: Told in a few words what comes next; not called when all is there.
        again: Make it anew, as after a Debian security update.

    Raises:
        DeviceError: This is no Debian, a program is missing, or a package did not come.
    """
    return _arm64.build(_arm64.recipe(), on_step, again=again)


def command(built: _arm64.Built, board: str) -> tuple[str, ...]:
    """The start of a command that runs a Python file on this board."""
    emulator = [str(built.qemu), "-cpu", BOARDS[board].cpu, "-L", str(_seen_by(board, built))]
    for name in ("LD_LIBRARY_PATH", "LD_PRELOAD"):  # they name this machine's own libraries
        emulator += ["-U", name]
    return (*emulator, str(built.python), "-I")


def _seen_by(board: str, built: _arm64.Built) -> Path:
    """The userland as a board sees it: here the emulator looks for every path first."""
    files = BOARDS[board].files()
    digest = hashlib.sha256(canonical_json(files).encode()).hexdigest()[:8]
    home = built.folder / f"{board}-{digest}"
    if home.is_dir():
        return home
    with (
        storage_errors(home),
        tempfile.TemporaryDirectory(dir=built.folder, prefix=f".{board}.") as temporary,
    ):
        new = Path(temporary, board)
        for name, text in files.items():
            make_folder((new / name).parent)
            (new / name).write_text(text)
        for part in built.root.iterdir():
            (new / part.name).symlink_to(Path("..", built.root.name, part.name))
        # Another process may have been faster; what it made is the same.
        with contextlib.suppress(OSError):
            os.rename(new, home)
    return home


def device(address: str) -> Qemu:
    """An emulated board.

    Args:
        address: "" or a board's name, then options: ``threads=N``.

    Raises:
        ConfigError: There is no such board, or an option is not known or cannot be.
    """
    first, _, rest = address.partition(",")
    board, rest = (DEFAULT, address) if "=" in first or not first else (first, rest)
    if board not in BOARDS:
        raise ConfigError(f"qemu: there is no board {board!r}; there are {', '.join(BOARDS)}")
    threads = read_threads("qemu", read_options("qemu", rest, ("threads",)))
    return Qemu(f"qemu:{address or DEFAULT}", board, threads)
