"""Milvus, from a file on a laptop (milvus-lite) to a cluster: the same client and the same calls.

    milvus:runs/gallery.db            a file, which ends in .db; collection "hetero"
    milvus:http://10.0.0.7:19530#photos    a server, collection "photos"

The environment variable MILVUS_TOKEN, where it is set, is given to a server. A row's key is the
head of its id's SHA-256, so no filter ever holds a user's text; the id is a field beside it.

Milvus has no transactions. A change that is stopped halfway may be there in part, rows whole: do it
again, with `replace`. Two writers who add one id at one time are not told apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from hetero import _schemas
from hetero._files import make_folder
from hetero.errors import BundleError, ConfigError, StorageError, require
from hetero.index._index import ID_BYTES, Found, Index, NoIndexError
from hetero.space import Space

SCHEMA = "milvus/1"
COLLECTION = "hetero"

#: Kinds of index that are offered, and what their effort is called.
KINDS = {"FLAT": "", "HNSW": "ef", "IVF_FLAT": "nprobe"}
#: Rows in one message, whose limit is 64 MiB on most servers; and results of one search.
ROWS, MOST = 2000, 16_384
#: Where our text is kept: milvus-lite has no description, an old server no properties.
PROPERTY = "hetero.index"

#: Open milvus-lite files of this process, which share one engine each.
_OPEN: Counter[str] = Counter()


@dataclass(frozen=True)
class Engine:
    """Settings.

    Attributes:
        kind: FLAT (exact), HNSW or IVF_FLAT.
        m: Of HNSW: neighbours that a row keeps.
        ef_construction: Of HNSW: rows looked at for them.
        cells: Of IVF_FLAT: how many.
        effort: Rows (HNSW) or cells (IVF_FLAT) looked at by a search.
    """

    kind: str = "HNSW"
    m: int = 16
    ef_construction: int = 128
    cells: int = 1024
    effort: int = 64

    def __post_init__(self) -> None:
        """Refuse what the server would."""
        if self.kind not in KINDS:
            raise ConfigError(f"engine milvus: kind {self.kind!r}; there are {', '.join(KINDS)}")
        if self.m < 2 or min(self.ef_construction, self.cells, self.effort) < 1:
            raise ConfigError(f"engine milvus: m at least 2, the others at least 1; got {self}")

    def create(self, where: str, space: Space) -> Collected:
        """See `hetero.index.Engine`."""
        types = require("pymilvus", "milvus").DataType
        client, name, file = _connect(where)
        try:
            with _told(where):
                if client.has_collection(name):
                    raise ConfigError(f"{_shown(where)}: there is an index {name!r} already")
                text = json.dumps(
                    {
                        "schema": SCHEMA,
                        "space": {"name": space.name, "digest": space.digest, "dim": space.dim},
                        "settings": asdict(self),
                    }
                )
                schema = client.create_schema(auto_id=False, description=text)
                schema.add_field("key", types.VARCHAR, is_primary=True, max_length=32)
                schema.add_field("id", types.VARCHAR, max_length=ID_BYTES)
                schema.add_field("vector", types.FLOAT_VECTOR, dim=space.dim)
                # With its index in one call, so that none is left without.
                client.create_collection(
                    name,
                    schema=schema,
                    index_params=self._index(client),
                    properties={PROPERTY: text},
                    consistency_level="Strong",
                )
                client.load_collection(name)
        except BaseException:
            _leave(client, file)
            raise
        return Collected(self, space, where, client, name, file)

    def load(self, where: str) -> Collected:
        """See `hetero.index.Engine`."""
        client, name, file = _connect(where, must_exist=True)
        try:
            with _told(where):
                if not client.has_collection(name):
                    raise NoIndexError(f"{_shown(where)}: there is no index {name!r}")
                about = client.describe_collection(name)
                text = dict(about.get("properties") or {}).get(PROPERTY) or about.get("description")
                client.load_collection(name)
            space, engine = _parsed(where, name, str(text))
        except BaseException:
            _leave(client, file)
            raise
        return Collected(engine, space, where, client, name, file)

    def _index(self, client: Any) -> Any:
        parameters = {
            "FLAT": {},
            "HNSW": {"M": self.m, "efConstruction": self.ef_construction},
            "IVF_FLAT": {"nlist": self.cells},
        }[self.kind]
        made = client.prepare_index_params()
        made.add_index("vector", index_type=self.kind, metric_type="COSINE", params=parameters)
        return made


class Collected(Index):
    """See the module."""

    def __init__(
        self, settings: Engine, space: Space, where: str, client: Any, name: str, file: str
    ) -> None:
        """See `Index`.

        `client` is connected, `name` the collection's, `file` that of milvus-lite or "".
        """
        self.effort_name = KINDS[settings.kind]  # type: ignore[misc]
        effort = settings.effort if self.effort_name else 0
        super().__init__(space, f"milvus collection {name}", effort)
        self._client, self._name, self._file, self._place = client, name, file, where

    def __len__(self) -> int:
        with _told(self._place):
            rows = self._client.query(self._name, filter="", output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def present(self, ids: Collection[str]) -> frozenset[str]:
        """See `Index`."""
        by_key = {_key(i): i for i in ids}
        found: set[str] = set()
        keys = sorted(by_key)
        with _told(self._place):
            for at in range(0, len(keys), ROWS):
                some = self._client.query(
                    self._name, filter=_among(keys[at : at + ROWS]), output_fields=["key"]
                )
                found.update(by_key[row["key"]] for row in some)
        return frozenset(found)

    def save(self) -> None:
        """Hand what the server holds in memory to its disk; changes last without it."""
        with _told(self._place):
            self._client.flush(self._name)

    def close(self) -> None:
        """See `Index`."""
        if self._client is not None:
            _leave(self._client, self._file)
            self._client = None

    def _insert(self, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"]) -> None:
        self._send(self._client.insert, ids, vectors)

    def _put(
        self, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"], there: frozenset[str]
    ) -> None:
        self._send(self._client.upsert, ids, vectors)

    def _send(self, call: Any, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"]) -> None:
        with _told(self._place):
            for at in range(0, len(ids), ROWS):
                rows = [
                    {"key": _key(i), "id": i, "vector": v}
                    for i, v in zip(ids[at : at + ROWS], vectors[at : at + ROWS], strict=True)
                ]
                call(self._name, rows)

    def _remove(self, ids: Sequence[str]) -> None:
        keys = [_key(i) for i in ids]
        with _told(self._place):
            for at in range(0, len(keys), ROWS):
                self._client.delete(self._name, filter=_among(keys[at : at + ROWS]))

    def _nearest(self, vectors: Float32[np.ndarray, "q d"], k: int) -> Found:
        if k > MOST:
            raise ConfigError(f"{self.where}: Milvus finds at most {MOST:,} rows a query, not {k}")
        asked = {}
        if self.effort_name:
            # A graph has to be searched at least as wide as what is wanted of it.
            wide = max(self.effort, k) if self.effort_name == "ef" else self.effort
            asked = {self.effort_name: wide}
        lines: list[list[tuple[str, float]]] = []
        step = max(1, min(1000, 1_000_000 // k))
        with _told(self._place):
            for at in range(0, len(vectors), step):
                found = self._client.search(
                    self._name,
                    data=[row for row in vectors[at : at + step]],
                    anns_field="vector",
                    limit=k,
                    output_fields=["id"],
                    search_params={"metric_type": "COSINE", "params": asked},
                )
                lines += [[(str(x["entity"]["id"]), x["distance"]) for x in hits] for hits in found]
        return Found.of(lines)


def _key(name: str) -> str:
    """128 bits of an id: of a billion ids two are one with a chance below 1 in 10^20."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _among(keys: Sequence[str]) -> str:
    """A filter; keys are hexadecimal digits, so that nothing in it can be anything but a key."""
    return "key in [" + ",".join(f'"{key}"' for key in keys) + "]"


def _connect(where: str, must_exist: bool = False) -> tuple[Any, str, str]:
    """Client, name of the collection, and milvus-lite's file, "" for a server."""
    address, _, name = where.partition("#")
    name = name or COLLECTION
    if not (name.isascii() and name.isidentifier()):
        raise ConfigError(f"milvus: collection {name!r}: letters, digits and _ make a name")
    client = require("pymilvus", "milvus").MilvusClient
    if "://" in address:
        with _told(where):
            return client(uri=address, token=os.environ.get("MILVUS_TOKEN", "")), name, ""
    if not address.endswith(".db"):
        raise ConfigError(
            f"milvus:{address}: a file that ends in .db, or http://SERVER:PORT, with #COLLECTION"
        )
    if must_exist and not Path(address).exists():
        raise NoIndexError(f"{address}: no index here; `hetero index build` makes one")
    require("milvus_lite", "milvus")
    make_folder(Path(address).parent)
    with _told(where):
        made = client(uri=address)
    file = os.path.abspath(address)
    _OPEN[file] += 1
    return made, name, file


def _leave(client: Any, file: str) -> None:
    """Close a connection, and the engine of a file when nobody of this process uses it."""
    with contextlib.suppress(Exception):
        client.close()
    if file:
        _OPEN[file] -= 1
        if _OPEN[file] <= 0:
            del _OPEN[file]
            manager = require("milvus_lite.server_manager", "milvus")
            manager.server_manager_instance.release_server(file)


def _parsed(where: str, name: str, text: str) -> tuple[Space, Engine]:
    try:
        made = json.loads(text)
        shown = f"{_shown(where)}: collection {name!r}"
        _schemas.check(shown, made["schema"], SCHEMA, again="build the index again")
        said = made["space"]
        return Space(said["name"], said["digest"], said["dim"]), Engine(**made["settings"])
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise BundleError(
            f"{_shown(where)}: collection {name!r} is not an index of ours: {str(error)[:200]}"
        ) from error


def _shown(where: str) -> str:
    """An address for messages: without a password that may stand in it."""
    head, sign, rest = where.partition("://")
    return f"{head}{sign}{rest.rpartition('@')[2]}" if sign else where


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Turns what Milvus says of its trouble into one line."""
    errors = require("pymilvus.exceptions", "milvus")
    try:
        yield
    except errors.MilvusException as error:
        said = " ".join(str(getattr(error, "message", error)).split())[:300]
        raise StorageError(f"milvus {_shown(where)}: {said}") from error
