"""An ARM64 Debian userland with Python and the runtimes, and an emulator to run it; without root.

Debian's packages are downloaded with an apt state of our own, so that the machine's apt and dpkg
stay as they are, and unpacked, never configured. Everything is kept below the user's cache:

    CACHE/hetero/arm64/KEY/qemu     the emulator, a static program of this machine's architecture
    CACHE/hetero/arm64/KEY/root     the userland; runtimes in usr/local/lib/python3.*/dist-packages

KEY stands for the recipe. A build is made in a folder beside and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import email
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hetero._files import canonical_json, make_folder, storage_errors
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
COMMAND_TIMEOUT_S = 600.0

APT_CONFIG = """\
#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; "{host}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}";
Dir::Etc::sourcelist "{folder}/debian.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


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
        ConfigError: This machine is no Debian.
    """
    return Recipe(_release(), (*PACKAGES, *more), tuple(_as_installed(x) for x in WHEELS))


def build(wanted: Recipe, on_step: OnStep | None = None, *, again: bool = False) -> Built:
    """The build of this recipe, made now if it is not there; two at once wait for each other.

    Args:
        wanted: From `recipe`.
        on_step: Told in a few words what comes next; not called when all is there.
        again: Make it anew, as after a Debian security update.

    Raises:
        ConfigError: This machine has no apt, dpkg-deb, tar or pip, or no Debian sources.
        DeviceError: A package did not come.
        StorageError: The disk is full.
    """
    say = on_step or (lambda _: None)
    home = cache() / wanted.key
    if home.is_dir() and not again:
        return Built(home)
    make_folder(home.parent)
    with storage_errors(home), _locked(home.with_suffix(".lock"), say):
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
    apt = _apt(work, wanted.release)
    say("reading Debian's package lists")
    _call([*apt, "update"])
    say("downloading packages")
    _call([*apt, "install", "--download-only", "--yes", *wanted.packages])
    say("unpacking packages")
    unpack(sorted((work / "cache/archives").glob("*.deb")), done / "root")
    say("downloading the emulator")
    _emulator(apt, work, done / "qemu")
    if wanted.wheels:
        say("downloading runtimes")
        _wheels(wanted.wheels, work / "wheels", done / "root")


def unpack(packages: Iterable[Path], root: Path) -> None:
    """Unpack Debian packages into a folder; nothing in them is run.

    Args:
        packages: The .deb files.
        root: Made where it is not there; /bin, /sbin and /lib in it are links into /usr.
    """
    for name in ("bin", "sbin", "lib"):
        make_folder(root / "usr" / name)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        _untar(package, root, "--keep-directory-symlink")


def _untar(package: Path, folder: Path, *options: str) -> None:
    """Unpack a Debian package, or some of its files."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as source:
            _call(["tar", "-x", "-C", str(folder), *options], stdin=source.stdout)
    except FileNotFoundError as error:
        raise _no_program(command[0]) from error
    if source.returncode:
        raise DeviceError("qemu", f"{package.name} is no whole Debian package; build again")


def _emulator(apt: list[str], work: Path, target: Path) -> None:
    """The emulator out of its Debian package, which needs not be installed for it."""
    for package, file in EMULATORS:
        with contextlib.suppress(DeviceError):
            _call([*apt, "download", f"{package}:{_architecture()}"], cwd=work)
            [found] = work.glob(f"{package}_*.deb")
            _untar(found, work, f"./{file}")
            os.rename(work / file, target)
            return
    names = " or ".join(package for package, _ in EMULATORS)
    raise DeviceError("qemu", f"this Debian's sources offer no {names} with {EMULATORS[-1][1]}")


def _wheels(wheels: Iterable[str], work: Path, root: Path) -> None:
    """Unpack Python packages for the userland's Python to where it looks for them by itself."""
    version = _python(root).removeprefix("python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    pip += ["--no-deps", "--only-binary=:all:", "--dest", str(work), "--implementation", "cp"]
    pip += ["--python-version", version, "--abi", f"cp{version.replace('.', '')}"]
    for tag in PLATFORMS:
        pip += ["--platform", tag]
    _call([*pip, *wheels])
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


# -- apt --------------------------------------------------------------------------------------


def _apt(work: Path, release: str) -> list[str]:
    """The start of an apt-get command whose whole state is in the folder `work`."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        make_folder(work / name)
    (work / "status").touch()
    (work / "debian.sources").write_text(_sources(Path("/etc/apt"), release))
    config = work / "apt.conf"
    config.write_text(APT_CONFIG.format(folder=work, host=_architecture()))
    return ["apt-get", "-qq", "-c", str(config)]


def _architecture() -> str:
    """What Debian calls this machine's architecture, "amd64"."""
    return _call(["dpkg", "--print-architecture"]).strip()


def _release() -> str:
    """The name of this machine's Debian release."""
    with contextlib.suppress(OSError):
        about = platform.freedesktop_os_release()
        own = about.get("VERSION_CODENAME") if about["ID"] in ("debian", "raspbian") else None
        if name := about.get("DEBIAN_CODENAME", own):
            return name
    raise ConfigError(
        "qemu: the emulated boards are made of Debian packages and need a Debian machine, "
        f"this is {platform.platform(terse=True)}; use a Debian container, or a real board"
    )


def _sources(etc: Path, release: str) -> str:
    """The machine's own sources of this release, for any architecture, in apt's deb822 form.

    Raises:
        ConfigError: There are none.
    """
    suites = {release, *(f"{release}-{x}" for x in ("updates", "security")), f"{release}/updates"}
    found = [
        entry
        for entry in (*_stanzas(etc), *_lines(etc))
        if suites & set(entry["Suites"].split()) and "main" in entry["Components"].split()
    ]
    if not found:
        raise ConfigError(
            f"qemu: {etc} names no source of Debian {release} with its component main; "
            "add Debian's own sources for this release"
        )
    entries = ({"Types": "deb", **entry} for entry in found)
    return "\n".join("".join(f"{k}: {v}\n" for k, v in x.items() if v) for x in entries)


def _stanzas(etc: Path) -> Iterator[dict[str, str]]:
    """The entries of *.sources files."""
    for file in sorted(etc.glob("sources.list.d/*.sources")):
        text = "\n".join(x for x in file.read_text().splitlines() if not x.startswith("#"))
        for stanza in re.split(r"\n[ \t]*\n", text.strip()):
            entry = email.message_from_string(stanza.strip())
            if "deb" in entry.get("Types", "").split() and entry.get("Enabled", "yes") != "no":
                names = ("URIs", "Suites", "Components", "Signed-By")
                yield {name: entry.get(name, "") for name in names}


def _lines(etc: Path) -> Iterator[dict[str, str]]:
    """The entries of *.list files, a line each."""
    line = re.compile(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)")
    for file in (etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))):
        for text in file.read_text().splitlines() if file.exists() else ():
            if found := line.match(text.strip()):
                options, uri, suite, components = found.groups(default="")
                signed = re.search(r"signed-by=(\S+)", options)
                yield {
                    "URIs": uri,
                    "Suites": suite,
                    "Components": components,
                    "Signed-By": signed[1] if signed else "",
                }


# -- programs ---------------------------------------------------------------------------------


def _call(command: list[str], *, cwd: Path | None = None, stdin: IO[bytes] | None = None) -> str:
    """What a program of this machine prints.

    Raises:
        ConfigError: It is not installed.
        DeviceError: It failed.
    """
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except FileNotFoundError as error:
        raise _no_program(command[0]) from error
    except subprocess.TimeoutExpired as error:
        what = f"{Path(command[0]).name} was not done within {COMMAND_TIMEOUT_S:.0f} s"
        raise DeviceError("qemu", f"{what}; is the network there?") from error
    if done.returncode == 0:
        return str(done.stdout)
    said = [x.strip() for x in done.stderr.splitlines() if x.strip()]
    errors = [x for x in said if x.startswith(("E:", "ERROR:"))] or said or ["nothing"]
    program = Path(command[0]).name.replace(Path(sys.executable).name, "pip")
    raise DeviceError(
        "qemu",
        f"the ARM64 userland could not be built: {program} failed with exit code "
        f"{done.returncode}: {errors[0][:300]}; are Debian's mirror and the Python package index "
        "reachable from here?",
    )


def _no_program(name: str) -> ConfigError:
    return ConfigError(
        f"qemu: {name} is not on this machine; the ARM64 userland is built with Debian's apt-get, "
        "dpkg, dpkg-deb and tar"
    )


@contextlib.contextmanager
def _locked(path: Path, say: OnStep) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that builds the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
