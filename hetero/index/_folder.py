"""Indexes that are a folder: one engine's file, the ids in its order, and what vouches for both.

    index.json                 engine, settings, space, and size and SHA-256 of the two others
    rows-0123456789abcdef.faiss     (.usearch) the engine's own format, for whoever reads that
    ids-0123456789abcdef.json  a list: the id of each row, null where a row was deleted

The two are named by their content and written first; index.json takes its place last. So whoever
is killed on the way leaves the old state, and a file that is torn or changed is told from a whole
one before an engine sees it.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Int64

from hetero import _schemas
from hetero._files import make_folder, sha256, storage_errors, write_atomically, write_json
from hetero.errors import BundleError, ConfigError, StorageError
from hetero.index._index import Found, Index, NoIndexError
from hetero.space import Space

SCHEMA = "index/1"
MANIFEST = "index.json"

_NAME = re.compile(r"(rows|ids)-[0-9a-f]{16}\.[a-z]+")


@dataclass(frozen=True)
class Stored:
    """What a folder holds.

    Attributes:
        space: Of the rows.
        settings: Of the engine.
        names: The id of each of the engine's rows; None where it was deleted.
        rows: The engine's file, whole.
    """

    space: Space
    settings: Mapping[str, Any]
    names: list[str | None]
    rows: Path


class FolderIndex(Index):
    """An index in memory, or mapped into it, that `save` writes to a folder.

    The engine counts rows from 0; the id of row i is ``names[i]``.
    """

    engine: ClassVar[str]
    suffix: ClassVar[str]

    def __init__(
        self,
        settings: Mapping[str, Any],
        space: Space,
        where: str,
        names: list[str | None],
        effort: int = 0,
    ) -> None:
        """See the class."""
        super().__init__(space, f"{self.engine} index {where or 'in memory'}", effort)
        self._root = Path(where) if where else None
        self._settings, self._names = settings, names
        self._live = sum(name is not None for name in names)
        self._where: dict[str, int] | None = None  # made when somebody asks for an id

    def __len__(self) -> int:
        return self._live

    def present(self, ids: Collection[str]) -> frozenset[str]:
        """See `Index`."""
        rows = self._rows()
        return frozenset(i for i in ids if i in rows)

    def save(self) -> None:
        """See `Index`.

        Raises:
            ConfigError: It is in memory only, or writing is not permitted.
            StorageError: The disk is full or failed.
        """
        root = self._root
        if root is None:
            raise ConfigError(f"{self.where}: it was made without a folder to be saved in")
        self._compact()
        make_folder(root)
        rows, ids = self._save_rows(root), self._save_ids(root)
        manifest = {
            "hetero.schema": SCHEMA,
            "engine": self.engine,
            "settings": dict(self._settings),
            "space": {
                "name": self.space.name,
                "digest": self.space.digest,
                "dim": self.space.dim,
            },
            "rows": len(self),
            "files": {"rows": rows, "ids": ids},
        }
        write_json(root / MANIFEST, manifest)
        for old in root.iterdir():
            if _NAME.fullmatch(old.name) and old.name not in (rows["name"], ids["name"]):
                with contextlib.suppress(OSError):
                    old.unlink()

    def _save_rows(self, root: Path) -> dict[str, Any]:
        staged = root / f".rows.{os.getpid()}"
        try:
            with storage_errors(root):
                try:
                    self._write(staged)
                except RuntimeError as error:  # so faiss and USearch say what the system refused
                    raise StorageError(f"{self.where}: not written: {_line(error)}") from error
                with staged.open("rb+") as file:
                    os.fsync(file.fileno())
                made = _entry("rows", self.suffix, sha256(staged), staged.stat().st_size)
                os.replace(staged, root / made["name"])
        finally:
            with contextlib.suppress(OSError):
                staged.unlink()
        return made

    def _save_ids(self, root: Path) -> dict[str, Any]:
        text = json.dumps(self._names).encode()
        made = _entry("ids", "json", hashlib.sha256(text).hexdigest(), len(text))
        write_atomically(root / made["name"], text)
        return made

    def close(self) -> None:
        """See `Index`; the memory goes with the object."""

    def _insert(self, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"]) -> None:
        first = len(self._names)
        self._append(vectors, np.arange(first, first + len(ids)))
        self._names.extend(ids)
        self._live += len(ids)
        if self._where is not None:
            self._where.update(zip(ids, range(first, first + len(ids)), strict=True))

    def _put(
        self, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"], there: frozenset[str]
    ) -> None:
        if there:
            self._remove(list(there))
        self._insert(ids, vectors)

    def _remove(self, ids: Sequence[str]) -> None:
        where = self._rows()
        rows = np.asarray([where.pop(i) for i in ids], dtype=np.int64)
        for row in rows:
            self._names[row] = None
        self._live -= len(rows)
        self._erase(rows)

    def _nearest(self, vectors: Float32[np.ndarray, "q d"], k: int) -> Found:
        k = min(k, len(self))
        return self._look(vectors, k) if k else Found.of([()] * len(vectors))

    def _rows(self) -> dict[str, int]:
        if self._where is None:
            self._where = {n: row for row, n in enumerate(self._names) if n is not None}
        return self._where

    def _renumber(self) -> None:
        """Forget deleted rows, which the engine has closed up."""
        self._names = [name for name in self._names if name is not None]
        self._where = None

    def _found(self, rows: Int64[np.ndarray, "q k"], scores: Float32[np.ndarray, "q k"]) -> Found:
        """The result with ids; -1 stands where the engine found nothing, after what it found."""
        ids = tuple(
            tuple(str(self._names[row]) for row in line if row >= 0) for line in rows.tolist()
        )
        return Found(ids, np.where(rows >= 0, scores, np.float32(-np.inf)))

    # -- what an engine does ----------------------------------------------------------------------

    @abc.abstractmethod
    def _append(self, vectors: Float32[np.ndarray, "n d"], rows: Int64[np.ndarray, " n"]) -> None:
        """Store vectors under these row numbers, which follow those given before."""

    @abc.abstractmethod
    def _erase(self, rows: Int64[np.ndarray, " n"]) -> None:
        """Find these rows no more."""

    @abc.abstractmethod
    def _look(self, vectors: Float32[np.ndarray, "q d"], k: int) -> Found:
        """Search for 1 to `len(self)` rows."""

    @abc.abstractmethod
    def _write(self, path: Path) -> None:
        """Write the engine's file."""

    def _compact(self) -> None:
        """Before a save: the chance to drop what deleted rows left behind."""


def _entry(role: str, suffix: str, digest: str, size: int) -> dict[str, Any]:
    return {"name": f"{role}-{digest[:16]}.{suffix}", "bytes": size, "sha256": digest}


def is_there(root: Path) -> bool:
    """Whether a folder holds an index."""
    return (root / MANIFEST).exists()


def must_be_free(where: str) -> None:
    """Nothing, if an index may be made there.

    Raises:
        ConfigError: There is one.
    """
    if where and is_there(Path(where)):
        raise ConfigError(f"{where}: there is an index already; add to it, or name another folder")


def read(where: str, engine: str) -> Stored:
    """What a folder holds, every byte of it checked.

    Args:
        where: The folder.
        engine: Name of the engine it has to be of.

    Raises:
        NoIndexError: There is none.
        BundleError: It is of another engine, or a file is missing or torn.
    """
    root = Path(where)
    for last in (False, True):
        try:
            return _read(root, engine)
        except FileNotFoundError as error:
            if not is_there(root):
                raise NoIndexError(
                    f"{root}: no index here, {MANIFEST} is missing; `hetero index build` makes one"
                ) from error
            # Between our two looks somebody may have saved; the files named now are others.
            if last:
                raise BundleError(
                    f"{root}: torn, {Path(error.filename).name} is missing; build the index again"
                ) from error
        except OSError as error:
            raise BundleError(f"{root}: cannot be read: {error.strerror}") from error
    raise AssertionError("two looks were taken")


def _read(root: Path, engine: str) -> Stored:
    text = (root / MANIFEST).read_bytes()
    try:
        made = json.loads(text)
        _schemas.check(root, made["hetero.schema"], SCHEMA, again="build the index again")
        if made["engine"] != engine:
            raise BundleError(f"{root}: a {made['engine']} index; name it {made['engine']}:{root}")
        space = Space(made["space"]["name"], made["space"]["digest"], made["space"]["dim"])
        files = {role: _whole(root, made["files"][role]) for role in ("rows", "ids")}
        names: list[str | None] = json.loads(files["ids"].read_bytes())
        if sum(name is not None for name in names) != made["rows"]:
            raise BundleError(f"{root}: {made['rows']} rows, but another number of ids")
        return Stored(space, dict(made["settings"]), names, files["rows"])
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise BundleError(f"{root / MANIFEST}: torn or not ours: {_line(error)}") from error


def _whole(root: Path, entry: Mapping[str, Any]) -> Path:
    """The path of a file that is what the manifest says it is."""
    if not _NAME.fullmatch(entry["name"]):
        raise BundleError(f"{root / MANIFEST}: torn or not ours: file {entry['name']!r}")
    path = root / str(entry["name"])
    size = path.stat().st_size
    if size != entry["bytes"] or sha256(path) != entry["sha256"]:
        raise BundleError(
            f"{path}: torn or altered: {size} bytes, not those {entry['bytes']} that were saved; "
            "build the index again"
        )
    return path


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
