"""AOSP's own adbd, built from Debian's source package, under the tests of phones.

Debian packages Android's client and not its daemon, but the source package of `adb` holds both. It
is unpacked with Debian's patches, the daemon's files are compiled for this machine against Debian's
packages of Android's libraries, and nothing is installed. Behind it is a small Android: mksh and
toybox, which are Android's shell and tools, as ARM64 programs, emulated, in namespaces of its own.
The daemon listens on all addresses, so all of it, the client too, has a network of its own.

    python -m benchmarks.harness adbd
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import armpi

from benchmarks.lab import WORK
from hetero.devices import _debian, _native
from hetero.errors import DeviceError

SOURCE = "android-platform-tools"
#: Android's libraries and headers, and what adbd wants besides.
LIBRARIES = ("android-libbase", "android-libcutils", "android-liblog", "android-libboringssl")
HEADERS = ("android-platform-system-core-headers", "libcap-dev", "libcap2")

ADB, CORE = "system/core/adb", "system/core"
FILES = (
    *(f"{ADB}/{x}.cpp" for x in (
        "adb", "adb_io", "adb_listeners", "adb_trace", "adb_unique_fd", "adb_utils",
        "fdevent/fdevent", "fdevent/fdevent_epoll", "fdevent/fdevent_poll", "services", "sockets",
        "socket_spec", "sysdeps/errno", "transport", "transport_fd", "transport_local",
        "transport_usb", "types", "sysdeps_unix", "sysdeps/posix/network",
        "shell_service_protocol", "adbconnection/adbconnection_server", "daemon/auth",
        "daemon/file_sync_service", "daemon/jdwp_service", "daemon/main", "daemon/services",
        "daemon/shell_service", "daemon/usb_dummy",
    )),
    f"{CORE}/diagnose_usb/diagnose_usb.cpp",
    f"{CORE}/libasyncio/AsyncIO.cpp",
    f"{CORE}/libcrypto_utils/android_pubkey.c",
    "frameworks/native/libs/adbd_auth/adbd_auth.cpp",
)  # fmt: skip
INCLUDE = (
    f"{CORE}/libcutils/include", ADB, f"{ADB}/daemon/include", f"{ADB}/adbconnection/include",
    f"{CORE}/libcrypto_utils/include", f"{CORE}/diagnose_usb/include", f"{CORE}/libasyncio/include",
    "frameworks/native/libs/adbd_auth/include", f"{CORE}/base/include", f"{CORE}/include",
    f"{CORE}/liblog/include",
)  # fmt: skip
#: Headers of Android alone, which do nothing here.
STUBS = {
    "android/fdsan.h": "#pragma once\n",
    "utils/Trace.h": "#pragma once\n#define ATRACE_NAME(x)\n#define ATRACE_CALL()\n",
}


def built(folder: Path, again: bool = False) -> dict[str, Any]:
    """What is known of the daemon, which then is in `folder`, with the libraries that it needs."""
    about = folder / "about.json"
    if about.exists() and not again:
        return dict(json.loads(about.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hetero-") as temporary:
        work = Path(temporary)
        version = _fetched(work)
        print(f"{SOURCE} {version}: compiling {len(FILES)} files", flush=True)
        fetched_s = time.monotonic() - begun
        _compiled(work, version)
        folder.mkdir(parents=True)
        shutil.copy(work / "adbd", folder)
        _with_libraries(work / "adbd", work / "sysroot", folder)
    value = {
        "source": f"{SOURCE} {version}",
        "release": _debian.release(),
        "compiler": _said("g++", "-dumpfullversion"),
        "files": len(FILES),
        "bytes": (folder / "adbd").stat().st_size,
        "sha256": hashlib.sha256((folder / "adbd").read_bytes()).hexdigest(),
        "fetch_s": round(fetched_s),
        "build_s": round(time.monotonic() - begun - fetched_s),
    }
    about.write_text(json.dumps(value))
    return value


def _fetched(work: Path) -> str:
    """Unpack source and libraries; the version."""
    apt = _debian.apt(work, _debian.release())
    sources = work / "debian.sources"
    sources.write_text(sources.read_text().replace("Types: deb\n", "Types: deb deb-src\n"))
    _debian.call([*apt, "update"])
    _debian.call([*apt, "source", "--download-only", SOURCE], cwd=work)
    here = f":{_debian.architecture()}"
    wanted = [x + y + here for x in LIBRARIES for y in ("", "-dev")]
    wanted += [x if x.endswith("headers") else x + here for x in HEADERS]
    _debian.call([*apt, "download", *wanted], cwd=work)
    _debian.unpack(sorted(work.glob("*.deb")), work / "sysroot")
    (dsc,) = work.glob("*.dsc")
    _debian.call(["dpkg-source", "--no-check", "-x", str(dsc), str(work / "source")])
    (version,) = (
        x.removeprefix("Version: ")
        for x in dsc.read_text().splitlines()
        if x.startswith("Version: ")
    )
    return version


def _compiled(work: Path, version: str) -> None:
    source, usr = work / "source", work / "sysroot/usr"
    # GCC takes no annotations for Clang's analysis of threads.
    notes = source / CORE / "base/include/android-base/thread_annotations.h"
    notes.write_text(notes.read_text().replace("__attribute__((x))", ""))
    for name, text in STUBS.items():
        (work / "stubs" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "stubs" / name).write_text(text)
    include = [work / "stubs", *(source / x for x in INCLUDE), usr / "include"]
    include.append(usr / "include/android")
    flags = [f"-I{x}" for x in include]
    flags += ["-DADB_HOST=0", "-DALLOW_ADBD_NO_AUTH=1", "-D_GNU_SOURCE", "-O1", "-w"]
    flags += [f'-D{x}="{version}"' for x in ("ADB_VERSION", "PLATFORM_TOOLS_VERSION")]
    plus = ["-std=gnu++2a", "-fpermissive"]
    for header in ("atomic", "optional", "string.h", "cstdint"):
        plus += ["-include", header]
    objects = []
    for number, name in enumerate(FILES):
        objects.append(str(work / f"{number}.o"))
        compiler = ["gcc"] if name.endswith(".c") else ["g++", *plus]
        _debian.call([*compiler, *flags, "-c", str(source / name), "-o", objects[-1]])
    where = usr / "lib" / f"{platform.machine()}-linux-gnu"
    android = [str(where / f"android/lib{x}.so.0") for x in ("base", "cutils", "log", "crypto")]
    link = ["g++", "-o", str(work / "adbd"), *objects, *android]
    _debian.call([*link, f"-L{where}", "-lcap", "-lpthread", "-lresolv"])


def _with_libraries(program: Path, sysroot: Path, folder: Path) -> None:
    """Copy what the program loads, for a root that has nothing of this machine's."""
    (android,) = sysroot.glob("usr/lib/*/android")
    env = {**os.environ, "LD_LIBRARY_PATH": f"{android}:{android.parent}"}
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True, env=env)
    for line in listed.stdout.splitlines():
        path = next((x for x in line.split() if x.startswith("/")), "")
        if path:
            shutil.copy(path, folder / Path(path).name)


@dataclass
class Phone(armpi.Userland):
    """A small Android with the daemon.

    Attributes:
        daemon: The folder of `built`.
        shared: A folder that is seen on the phone under the same name.
    """

    daemon: Path = Path()
    shared: Path = Path()

    PACKAGES = ("mksh", "toybox")
    USER = 2000
    FOLDERS = (*armpi.Userland.FOLDERS, "data/local/tmp", "adbd")

    def __post_init__(self) -> None:
        super().__post_init__()
        (self.root / "etc/passwd").write_text("shell:x:2000:2000::/data/local/tmp:/bin/sh\n")
        (self.root / "bin").unlink()
        (self.root / "bin").mkdir()
        usr = self.built.root / "usr"
        (self.root / "bin/sh").symlink_to("/usr/bin/mksh")
        toybox = (str(self.built.qemu), "-L", str(self.built.root), str(usr / "bin/toybox"))
        for name in _said(*toybox).split():
            if name != "sh":
                (self.root / "bin" / name).symlink_to("/usr/bin/toybox")
        (self.root / str(self.shared).lstrip("/")).mkdir(parents=True, exist_ok=True)

    def command(self) -> Sequence[str]:
        loader = next(self.daemon.glob("ld-linux*")).name
        return (f"/adbd/{loader}", "--library-path", "/adbd", "/adbd/adbd")

    def seen(self) -> Sequence[tuple[Path, str]]:
        return ((self.daemon, "adbd"), (self.shared, str(self.shared).lstrip("/")))


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def tried(again: bool = False) -> dict[str, Any]:
    """The outcome of the tests of phones, with the daemon in the place of its double."""
    if why := armpi.missing():
        raise DeviceError("adbd", why)
    daemon = (WORK / "adbd").absolute()
    about = built(daemon, again)
    # While there is a network.
    Phone.userland()
    _native.bundle("aarch64")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hetero-") as folder:
        call = ["unshare", "--user", "--map-root-user", "--net", "--mount", sys.executable]
        call += ["-m", "benchmarks.harness.adbd", str(daemon), folder]
        subprocess.run(call, check=True)
        found = json.loads(Path(folder, "found.json").read_text())
    return {"adbd": about, "seconds": round(time.monotonic() - begun), **found}


def inside(daemon: Path, folder: Path) -> None:
    """In a network of its own: the phone, and the tests."""
    _loopback_up()
    (folder / "shared").mkdir()
    (folder / "phone").mkdir()
    phone = Phone(folder / "phone", daemon=daemon, shared=folder / "shared")
    phone.start()
    try:
        call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_adb.py"]
        call += [f"--junit-xml={folder / 'junit.xml'}", f"--basetemp={folder / 'shared/tmp'}"]
        env = {**os.environ, "HETERO_ADBD": str(phone.port)}
        subprocess.run(call, check=False, env=env)
        found = {"phone": _about(phone), **_outcomes(folder / "junit.xml")}
    finally:
        phone.stop()
    (folder / "found.json").write_text(json.dumps(found))


def _about(phone: Phone) -> dict[str, str]:
    """What the phone says of itself, by the real client."""
    at = f"127.0.0.1:{phone.port}"
    port = str(armpi.free_port())

    def adb(*words: str) -> str:
        return _said("env", f"ANDROID_ADB_SERVER_PORT={port}", "adb", *words)

    adb("start-server")
    adb("connect", at)
    try:
        return {
            "client": _said("adb", "version").splitlines()[1].removeprefix("Version "),
            "features": " ".join(adb("-s", at, "features").split()),
            "uname": adb("-s", at, "shell", "uname -m"),
            "shell": adb("-s", at, "shell", "echo $KSH_VERSION"),
            "tools": adb("-s", at, "shell", "toybox --version"),
        }
    finally:
        adb("kill-server")


def _outcomes(junit: Path) -> dict[str, Any]:
    """Counts and names out of pytest's own report."""
    passed, skipped, failed = [], {}, {}
    for case in ET.parse(junit).getroot().iter("testcase"):
        name = case.get("name", "")
        if (at := case.find("skipped")) is not None:
            skipped[name] = at.get("message", "")
        elif any(case.find(x) is not None for x in ("failure", "error")):
            at = case.find("failure") if case.find("failure") is not None else case.find("error")
            failed[name] = (at.get("message") or "").splitlines()[:1] if at is not None else []
        else:
            passed.append(name)
    return {
        "tests": {"passed": len(passed), "skipped": len(skipped), "failed": len(failed)},
        "failed": failed,
        "skipped": skipped,
        "passed": passed,
    }


def _loopback_up() -> None:
    """Switch on the loopback interface of a network that was just made."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        # SIOCSIFFLAGS with IFF_UP and IFF_RUNNING
        fcntl.ioctl(one, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))


if __name__ == "__main__":
    inside(Path(sys.argv[1]), Path(sys.argv[2]))
