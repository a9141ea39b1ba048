"""Guard: whether a file's bytes hold together, before a native runtime sees them.

Runtimes trust their files: an offset beyond the end ends the process, a dimension of a million
fills the memory, a loop never returns. Everything here is read in Python with every length checked,
and nothing is allocated that a file merely claims. `hetero.export._seal` calls it for every file,
after the seal: a seal detects accidents, and whoever forges one is met here.
"""

from __future__ import annotations

from pathlib import Path

from hetero.errors import BundleError
from hetero.export._guard_limits import MAX_BYTES, MAX_FILES, MAX_TEXT_BYTES
from hetero.export._guard_onnx import onnx
from hetero.export._guard_tflite import tflite

__all__ = ["MAX_FILES", "MAX_TEXT_BYTES", "bounded", "onnx", "package", "structure", "tflite"]


def bounded(path: Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of an ordinary file of at most so many bytes.

    A pipe would never end, and a device has no end.

    Raises:
        BundleError: It is something else, too large, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise BundleError(f"{path}: not an ordinary file")
        size = path.stat().st_size
        if size > most:
            raise BundleError(f"{path}: {size} bytes are more than the {most} that are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or error
        raise BundleError(f"{path}: cannot be read ({text})") from error


def structure(raw: bytes, name: str, what: str) -> None:
    """Nothing, if a file of this kind holds together.

    Args:
        raw: The file.
        name: For messages.
        what: "an ONNX", "a TFLite" or another, of which nothing is asked here.

    Raises:
        BundleError: It does not; the message says where.
    """
    if what == "an ONNX":
        onnx(raw, name)
    elif what == "a TFLite":
        tflite(raw, name)


def package(path: Path) -> None:
    """Nothing, if a Core ML package is a plain folder of a few ordinary files.

    Raises:
        BundleError: It has links, pipes, too many or too large files.
    """
    try:
        if not path.is_dir() or path.is_symlink():
            raise BundleError(f"{path}: not a Core ML package: a folder was expected")
        found: list[Path] = []
        for inner in path.rglob("*"):
            found.append(inner)
            if len(found) > MAX_FILES:
                raise BundleError(f"{path}: more than {MAX_FILES} files; export it again")
            if inner.is_symlink() or not (inner.is_file() or inner.is_dir()):
                raise BundleError(f"{inner}: a link or no ordinary file; export it again")
        contents = path / "Manifest.json"
        if contents.exists() and contents.stat().st_size > MAX_TEXT_BYTES:
            raise BundleError(f"{contents}: more than {MAX_TEXT_BYTES} bytes; export it again")
        if sum(p.stat().st_size for p in found if p.is_file()) > MAX_BYTES:
            raise BundleError(f"{path}: more than {MAX_BYTES} bytes; export it again")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error
