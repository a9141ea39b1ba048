"""An ARM64 Debian userland with Python and the runtimes, and an emulator to run it; without root.

The packages come from Debian and from the Python package index, see `hetero.devices._debian`.
Everything is kept below the user's cache:

    CACHE/hetero/arm64/KEY/qemu     the emulator, a static program of this machine's architecture
    CACHE/hetero/arm64/KEY/root     the userland; runtimes in usr/local/lib/python3.*/dist-packages

KEY stands for the recipe. A build is made in a folder beside and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hetero._files import canonical_json, lock, make_folder, storage_errors
from hetero.devices import _debian
from hetero.errors import ConfigError, DeviceError

OnStep = Callable[[str], None]

#: What Python needs, whichever version of it the release has.
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
#: The runtimes and what they import, as the package index calls them.
WHEELS = (
    "numpy", "onnxruntime", "ai-edge-litert", "flatbuffers", "protobuf", "packaging", "tqdm",
    "typing_extensions", "backports.strenum",
)  # fmt: skip
#: The emulator, by the names it has had: package, and file in it.
EMULATORS = (
    ("qemu-user-static", "usr/bin/qemu-aarch64-static"),
    ("qemu-user", "usr/bin/qemu-aarch64"),
)
#: With fewer tags pip silently takes an older release that has them.
PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{x}_aarch64" for x in range(17, 40)))


@dataclass(frozen=True)
class Recipe:
    """What a build is made of; equal recipes share one.

    Attributes:
        release: Debian's name of it, "bookworm".
        packages: Debian packages; what they depend on comes with them.
        wheels: Python packages as pip takes them, "numpy==2.3.5"; nothing comes with them.
    """

    release: str
    packages: tuple[str, ...] = PACKAGES
    wheels: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Names the build: 16 hexadecimal digits."""
        parts = [1, platform.machine(), self.release, sorted(self.packages), sorted(self.wheels)]
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Built:
    """A build that is there.

    Attributes:
        folder: Of the whole; belongs to this recipe alone.
        qemu: The emulator.
        root: The userland.
        python: Its Python.
    """

    folder: Path

    @property
    def qemu(self) -> Path:
        return self.folder / "qemu"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def python(self) -> Path:
        return self.root / "usr/bin" / _python(self.root)


def recipe(*more: str) -> Recipe:
    """The recipe for this machine: its own Debian release and its own versions of the runtimes.

    Equal versions at both ends leave the processor as the only difference. What is not installed
    here comes in its newest version.

    Args:
        *more: Debian packages beside those that Python needs.

    Raises:
        DeviceError: This machine is no Debian.
    """
    return Recipe(_debian.release(), (*PACKAGES, *more), tuple(_as_installed(x) for x in WHEELS))


def build(wanted: Recipe, on_step: OnStep | None = None, *, again: bool = False) -> Built:
    """The build of this recipe, made now if it is not there; two at once wait for each other.

    Args:
        wanted: From `recipe`.
        on_step: Told in a few words what comes next; not called when all is there.
        again: Make it anew, as after a Debian security update.

    Raises:
        DeviceError: A package did not come, this machine lacks a program or Debian's sources, or
            the cache cannot be written.
        StorageError: The disk is full.
    """
    say = on_step or (lambda _: None)
    home = cache() / wanted.key
    if home.is_dir() and not again:
        return Built(home)
    with _writing(home.parent), _locked(home.with_suffix(".lock"), say):
        if home.is_dir() and not again:
            return Built(home)
        for left in home.parent.glob(f".{wanted.key}.*"):  # by a build that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(
            prefix=f".{wanted.key}.", dir=home.parent, ignore_cleanup_errors=True
        ) as temporary:
            done = Path(temporary, "done")
            _make(wanted, Path(temporary), done, say)
            if home.is_dir():
                os.rename(home, Path(temporary, "old"))
            os.rename(done, home)
    return Built(home)


def cache() -> Path:
    """Where builds are kept: below XDG_CACHE_HOME, else below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else Path.home() / ".cache") / "hetero" / "arm64"


def _make(wanted: Recipe, work: Path, done: Path, say: OnStep) -> None:
    """A whole build in the folder `done`, with room to work in beside it."""
    apt = _debian.apt(work, wanted.release)
    say("reading Debian's package lists")
    _debian.call([*apt, "update"])
    say("downloading packages")
    _debian.call([*apt, "install", "--download-only", "--yes", *wanted.packages])
    say("unpacking packages")
    _debian.unpack(sorted((work / "cache/archives").glob("*.deb")), done / "root")
    say("downloading the emulator")
    _emulator(apt, work, done / "qemu")
    if wanted.wheels:
        say("downloading runtimes")
        _wheels(wanted.wheels, work / "wheels", done / "root")


def _emulator(apt: list[str], work: Path, target: Path) -> None:
    """The emulator out of its Debian package, which needs not be installed for it."""
    for package, file in EMULATORS:
        try:
            _debian.call([*apt, "download", f"{package}:{_debian.architecture()}"], cwd=work)
            [found] = work.glob(f"{package}_*.deb")
            _debian.untar(found, work, f"./{file}")
        except DeviceError:
            if package == EMULATORS[-1][0]:
                raise
            continue
        os.rename(work / file, target)
        return


def _wheels(wheels: Iterable[str], work: Path, root: Path) -> None:
    """Unpack Python packages for the userland's Python to where it looks for them by itself."""
    version = _python(root).removeprefix("python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    pip += ["--no-deps", "--only-binary=:all:", "--dest", str(work), "--implementation", "cp"]
    pip += ["--python-version", version, "--abi", f"cp{version.replace('.', '')}"]
    for tag in PLATFORMS:
        pip += ["--platform", tag]
    _debian.call([*pip, *wheels])
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(root / "usr/local/lib" / f"python{version}" / "dist-packages")


def _python(root: Path) -> str:
    """The name of a userland's Python, "python3.11"."""
    names = [x.name for x in (root / "usr/bin").glob("python3.*") if x.name[8:].isdecimal()]
    if len(names) != 1:
        raise DeviceError("qemu", f"{root} has {len(names)} Pythons, expected 1; build it again")
    return names[0]


def _as_installed(package: str) -> str:
    """What pip is asked for: the version that is installed here, else any."""
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns what refuses a folder of the cache into an error that says how to choose another."""
    try:
        with storage_errors(folder):
            make_folder(folder)
            yield
    except ConfigError as error:
        raise DeviceError(
            "qemu", f"{folder} cannot be written; set XDG_CACHE_HOME to a folder that can be"
        ) from error


@contextlib.contextmanager
def _locked(path: Path, say: OnStep) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it."""
    with path.open("w") as file:
        lock(file, lambda: say("waiting for another process that builds the same"))
        yield
