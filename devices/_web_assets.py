"""What a page runs: onnxruntime-web, LiteRT.js and a SHA-256, fetched once by npm and pinned here.

A page gets them from this machine, never from the internet. Only the files named here are kept and
served; a folder of one's own needs the same files, and any ``node_modules`` has them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hetero._files import canonical_json, make_folder, storage_errors, write_atomically
from hetero.errors import ConfigError, DeviceError

NPM_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Package:
    """A package of the npm registry.

    Attributes:
        name, version: As npm has them.
        integrity: Of its archive: "sha512-" and base64, as in a lock file of npm.
        files: What a page needs of it, relative to the package.
    """

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]


_ORT = "dist/ort-wasm-simd-threaded"
_LITERT = "wasm/litert_wasm"

#: A new version is a new line of ``npm view NAME version dist.integrity``.
PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.30.0",
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        (
            "dist/ort.wasm.min.mjs",
            f"{_ORT}.mjs",
            f"{_ORT}.wasm",
            "dist/ort.webgpu.min.mjs",
            f"{_ORT}.asyncify.mjs",
            f"{_ORT}.asyncify.wasm",
        ),
    ),
    Package(
        "@litertjs/core",
        "2.5.3",
        "sha512-PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
        (
            "dist/index.js",
            *(
                f"{_LITERT}{kind}_internal.{end}"
                for kind in ("", "_compat", "_threaded", "_jspi")
                for end in ("js", "wasm")
            ),
        ),
    ),
    Package(
        "@litertjs/wasm-utils",
        "2.5.3",
        "sha512-4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
        ("dist/index.js",),
    ),
    # SubtleCrypto exists only in secure contexts, which a page on the LAN over http is not.
    Package(
        "@noble/hashes",
        "2.4.0",
        "sha512-X5XaVWZIBCT7HHZGm5I7ZQXDwLG+bGXuSrMQAW+7Zvl87h1kmc1ZB1VSRJcpUfoUrGQp4Fkoxm5kZ+Ms+aW+eA==",
        ("sha2.js", "_md.js", "_u64.js", "utils.js"),
    ),
)


def home() -> Path:
    """Where `build` puts the files: a folder of the user's cache, named by what is in it."""
    from platformdirs import user_cache_path

    pinned = [[p.name, p.integrity, *p.files] for p in PACKAGES]
    key = hashlib.sha256(canonical_json(pinned).encode()).hexdigest()[:16]
    return Path(user_cache_path("hetero")) / "web" / key


def served(folder: Path) -> dict[str, Path]:
    """Every file that a page may ask for, by the name it asks with.

    Raises:
        ConfigError: One is missing.
    """
    found = {
        f"{p.name}/{name}": folder / p.name / name
        for p in PACKAGES
        for name in (*p.files, "package.json")
    }
    missing = [name for name, path in found.items() if not path.is_file()]
    if missing:
        fix = (
            "run once, with npm installed: hetero devices build browser"
            if folder == home()
            else "give a folder that has them, such as node_modules, or leave assets= out"
        )
        raise ConfigError(f"browser: {folder}: {missing[0]} is missing ({len(missing)} are); {fix}")
    return found


def versions(folder: Path) -> Mapping[str, str]:
    """The version of each package in a folder, as the package itself says.

    Raises:
        ConfigError: One cannot be read.
    """
    found = {}
    for package in PACKAGES:
        path = folder / package.name / "package.json"
        try:
            found[package.name] = str(json.loads(path.read_text(encoding="utf-8"))["version"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"browser: {path}: no version can be read ({error!r})") from error
    return found


def build(on_step: Callable[[str], None] | None = None) -> Path:
    """The folder of the assets, fetched by npm where it is not there; each archive is verified.

    Args:
        on_step: Told in a few words what comes next; not called when all is there.

    Raises:
        DeviceError: npm is not installed, cannot reach its registry, or an archive is not the
            pinned one.
        StorageError: The cache cannot be written.
    """
    folder = home()
    if folder.is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise DeviceError(
            "browser", "npm is not installed, and fetches what the page runs; install Node.js"
        )
    make_folder(folder.parent)
    with storage_errors(folder), TemporaryDirectory(dir=folder.parent) as temporary:
        fresh = Path(temporary) / "fresh"
        say = on_step or (lambda _: None)
        say("fetch the runtimes by npm")
        _fetch(npm, Path(temporary))
        for package in PACKAGES:
            say(f"verify and unpack {package.name}")
            _unpack(_verified(package, Path(temporary)), package, fresh / package.name)
        try:
            fresh.rename(folder)
        except OSError:  # another process was quicker
            if not folder.is_dir():
                raise
    return folder


def _fetch(npm: str, folder: Path) -> None:
    """Let npm put every archive into `folder`."""
    specs = [f"{p.name}@{p.version}" for p in PACKAGES]
    call = [npm, "pack", "--ignore-scripts", "--silent", "--pack-destination", str(folder), *specs]
    try:
        done = subprocess.run(
            call, cwd=folder, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError("browser", f"npm cannot fetch {', '.join(specs)} ({error})") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-200:] or "nothing"
        raise DeviceError("browser", f"npm cannot fetch {', '.join(specs)}; it said: {said}")


def _verified(package: Package, folder: Path) -> Path:
    """The package's archive, known to be the pinned one."""
    name = package.name.replace("@", "").replace("/", "-")
    archive = folder / f"{name}-{package.version}.tgz"
    raw = archive.read_bytes() if archive.is_file() else b""
    got = "sha512-" + base64.b64encode(hashlib.sha512(raw).digest()).decode()
    if got != package.integrity:
        raise DeviceError(
            "browser",
            f"what npm fetched as {package.name} {package.version} is not the pinned archive: "
            f"{got[:20]}…, expected {package.integrity[:20]}…; is a registry of your own between?",
        )
    return archive


def _unpack(archive: Path, package: Package, target: Path) -> None:
    """Write the needed files, and no other, below `target`."""
    with tarfile.open(archive) as tar:
        for name in (*package.files, "package.json"):
            try:
                file = tar.extractfile(f"package/{name}")
            except KeyError:
                file = None
            if file is None:
                raise DeviceError("browser", f"{package.name} {package.version} has no {name}")
            write_atomically(target / name, file.read())
