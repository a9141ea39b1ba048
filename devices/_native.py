"""The native worker: the program for a machine, the runtimes it opens, and all of it for a phone.

The programs lie in ``native/``, built from the C there by ``native/build.py``. The runtimes come
out of wheels: onnxruntime's own, in the version that is installed here, and pymicro-wakeword's, the
one wheel that has TensorFlow Lite's C library (2.17.1, for x86_64 and aarch64).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

from hetero._files import sha256
from hetero.devices import _arm64
from hetero.errors import ConfigError

FOLDER = Path(__file__).with_name("native")
#: The worker's variable that names a runtime's library: the wheel, and where it lies in there.
LIBRARIES = {
    "HETERO_ONNXRUNTIME": ("onnxruntime", "capi/libonnxruntime.so.[0-9]*"),
    "HETERO_LITERT": ("pymicro_wakeword", "lib/**/libtensorflowlite_c.so"),
}
#: As the worker asks for them when no variable names them.
NAMES = {"HETERO_ONNXRUNTIME": "libonnxruntime.so", "HETERO_LITERT": "libtensorflowlite_c.so"}
#: What a program for glibc needs where there is none, by the names it is asked for.
SYSTEM = (
    "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libstdc++.so.6",
    "libgcc_s.so.1",
)  # fmt: skip
LOADERS = {"aarch64": "ld-linux-aarch64.so.1", "x86_64": "ld-linux-x86-64.so.2"}
PROGRAM = "hetero-worker"


def program(machine: str) -> Path:
    """The worker for a machine, as `uname -m` calls it.

    Raises:
        ConfigError: There is none.
    """
    path = FOLDER / f"{PROGRAM}-{machine}"
    if not path.is_file():
        machines = sorted(x.name.removeprefix(f"{PROGRAM}-") for x in FOLDER.glob(f"{PROGRAM}-*"))
        raise ConfigError(
            f"there is no native worker for {machine}; there are {', '.join(machines)}"
        )
    return path


def libraries() -> Mapping[str, str]:
    """Variables that name the runtimes' libraries installed in this Python; absent are left out."""
    found = {}
    for variable, (package, pattern) in LIBRARIES.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in sorted(Path(folder).glob(pattern)):
                found[variable] = str(path)
    return found


def bundle(machine: str, on_step: _arm64.OnStep | None = None) -> Mapping[str, Path]:
    """Every file the worker needs on a machine that has no glibc, by its name there.

    For another processor than this machine's they are fetched, once. A runtime that is not to be
    had is left out.

    Args:
        machine: "aarch64", or this machine's own.
        on_step: Told in a few words what comes next, when something has to be fetched.

    Raises:
        ConfigError: There is no worker for it, or a program is missing here.
        DeviceError: A package did not come.
    """
    files = {PROGRAM: program(machine)}
    if machine == platform.machine():
        root, found = Path("/"), libraries()
        files |= {NAMES[variable]: Path(path) for variable, path in found.items()}
    else:
        built = _arm64.build(_recipe(), on_step)
        root, where = built.root, "usr/local/lib/python3.*/dist-packages"
        for variable, (package, pattern) in LIBRARIES.items():
            files[NAMES[variable]] = _only(root, f"{where}/{package}/{pattern}")
    for name in (LOADERS[machine], *SYSTEM):
        folders = ("usr/lib", f"usr/lib/{machine}-linux-gnu", "lib64", "usr/lib64")
        files[name] = _only(root, *(f"{folder}/{name}" for folder in folders))
    return files


def emulator() -> Path:
    """The ARM64 emulator, which comes with that bundle's files; for trying them here."""
    return _arm64.build(_recipe()).qemu


def _recipe() -> _arm64.Recipe:
    """What an ARM64 bundle is taken out of."""
    whole = _arm64.recipe()
    wheels = [x for x in whole.wheels if x.startswith("onnxruntime")]
    return dataclasses.replace(whole, wheels=(*wheels, _arm64._as_installed("pymicro-wakeword")))


def key(files: Mapping[str, Path]) -> str:
    """Names a bundle by its content: 12 hexadecimal digits."""
    text = "".join(f"{name} {sha256(path)}\n" for name, path in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def copy(files: Mapping[str, Path], folder: Path) -> None:
    """Lay a bundle out in a folder of this machine, as it is on a device."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        shutil.copyfile(path, folder / name)
        (folder / name).chmod(0o755)


def _only(root: Path, *patterns: str) -> Path:
    found = [x.resolve() for pattern in patterns for x in root.glob(pattern)]
    if not found:
        raise ConfigError(
            f"{root} has no {patterns[-1]}; remove the folder {root.parent}, it is made again"
        )
    return found[0]
