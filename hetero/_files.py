"""Files that are there whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from hetero.errors import ConfigError, StorageError


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal to write below `path` into one clear line.

    Raises:
        StorageError: The disk is full or failed.
        ConfigError: Not permitted, or a file is where a folder has to be.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{path}: the disk is full; free some space and run the command again, "
                "what was finished before is still there"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ConfigError(
                f"{path}: no permission to write; choose another folder with --output"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise ConfigError(f"{path}: {error.strerror}; choose another --output") from error
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ConfigError(f"{path}: {error.strerror}; choose another --output") from error
        if error.errno == errno.EIO:
            raise StorageError(f"{path}: the disk failed ({error.strerror})") from error
        raise


def make_folder(path: Path) -> Path:
    """`path`, made with its parents where it was not there."""
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def lock(file: IO[Any], on_wait: Callable[[], None]) -> None:
    """Hold the lock of an open file until it is closed; whoever has it is waited for.

    Raises:
        OSError: The file system has no locks.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(file, fcntl.LOCK_EX)


def write_atomically(path: Path, data: bytes | memoryview | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never half."""
    write_together({path: data})


def write_together(files: Mapping[Path, bytes | memoryview | str]) -> None:
    """Write files so that a full disk or a lost permission leaves all the old ones as they were.

    Each is there whole or not at all. They take their places in the order given, and only when all
    are on the disk: give the one that vouches for the others last.
    """
    staged: dict[Path, str] = {}
    try:
        for path, data in files.items():
            make_folder(path.parent)
            with storage_errors(path):
                staged[path] = _stage(path, data)
        for path in files:
            with storage_errors(path):
                os.replace(staged[path], path)
            del staged[path]
    finally:
        for name in staged.values():
            with contextlib.suppress(OSError):
                os.unlink(name)


def _stage(path: Path, data: bytes | memoryview | str) -> str:
    """The name of a file beside `path` that holds the data, safely on the disk."""
    # A file name that is not UTF-8 reaches us as lone surrogates; as \udcXX they stay valid JSON.
    raw = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; results are for others to read, as open() has it.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    return name


def json_text(value: Mapping[str, object]) -> str:
    """JSON for people and programs: indented, keys in the order given, no NaN."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write `json_text` atomically."""
    write_atomically(path, json_text(value))
