"""Debian's packages, downloaded and unpacked beside the machine's own apt and dpkg, without root.

The apt state is one of our own, with the machine's own Debian sources and for any architecture; the
packages are unpacked and never configured, so that nothing in them is run.
"""

from __future__ import annotations

import contextlib
import email
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from hetero._files import make_folder
from hetero.errors import DeviceError

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


def apt(work: Path, release: str) -> list[str]:
    """The start of an apt-get command whose whole state is in the folder `work`."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        make_folder(work / name)
    (work / "status").touch()
    (work / "debian.sources").write_text(_sources(Path("/etc/apt"), release))
    config = work / "apt.conf"
    config.write_text(APT_CONFIG.format(folder=work, host=architecture()))
    return ["apt-get", "-qq", "-c", str(config)]


def architecture() -> str:
    """What Debian calls this machine's architecture, "amd64"."""
    return call(["dpkg", "--print-architecture"]).strip()


def release() -> str:
    """The name of this machine's Debian release."""
    about = {"PRETTY_NAME": platform.platform(terse=True)}
    with contextlib.suppress(OSError):
        about = platform.freedesktop_os_release()
        own = about.get("VERSION_CODENAME") if about["ID"] == "debian" else None
        if name := about.get("DEBIAN_CODENAME", own):
            return name
    raise DeviceError(
        "qemu",
        "emulated boards are made of Debian's packages and need a Debian machine, this is "
        f"{about['PRETTY_NAME']}; use a Debian container, or a real board",
    )


def _sources(etc: Path, release: str) -> str:
    """The machine's own sources of this release, for any architecture, in apt's deb822 form.

    Raises:
        DeviceError: There are none.
    """
    suites = {release, *(f"{release}-{x}" for x in ("updates", "security")), f"{release}/updates"}
    found = [
        entry
        for entry in (*_stanzas(etc), *_lines(etc))
        if suites & set(entry["Suites"].split()) and "main" in entry["Components"].split()
    ]
    if not found:
        raise DeviceError(
            "qemu",
            f"{etc} names no source of Debian {release} with its component main; add Debian's own "
            "sources for this release",
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
                    "Components": components.strip(),
                    "Signed-By": signed[1] if signed else "",
                }


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
        untar(package, root, "--keep-directory-symlink")


def untar(package: Path, folder: Path, *options: str) -> None:
    """Unpack a Debian package, or some of its files."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as source:
            call(["tar", "-x", "-C", str(folder), *options], stdin=source.stdout)
    except FileNotFoundError as error:
        raise _no_program(command[0]) from error
    if source.returncode:
        raise DeviceError("qemu", f"{package.name} is no whole Debian package; build again")


def call(command: list[str], *, cwd: Path | None = None, stdin: IO[bytes] | None = None) -> str:
    """What a program of this machine prints.

    Raises:
        DeviceError: It is not installed, or failed.
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


def _no_program(name: str) -> DeviceError:
    return DeviceError(
        "qemu",
        f"{name} is not on this machine; the ARM64 userland is built with Debian's apt-get, dpkg, "
        "dpkg-deb and tar",
    )
