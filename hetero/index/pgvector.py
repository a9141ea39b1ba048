"""pgvector: vectors in a table of PostgreSQL, beside whatever else a shop keeps there.

    pgvector:postgresql://user@host/shop#photos    table "photos"; without #, "hetero"
    pgvector:host=/run/postgresql dbname=shop      the same in libpq's other form

PG* variables, ~/.pgpass and service files count as for every client. A row is an id and a vector;
space and settings are the table's comment. Every change is one transaction. The graph of kind
"hnsw" is built by `save`, when the table is filled, and kept up to date from then on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from hetero import _schemas
from hetero.errors import BundleError, ConfigError, DataError, StorageError, require
from hetero.index._index import Found, Index, NoIndexError
from hetero.space import Space

SCHEMA = "pgvector/1"
TABLE = "hetero"

#: Kinds of index that are offered.
KINDS = ("hnsw", "exact")
#: What pgvector can build a graph of, and how wide it searches one.
GRAPH_DIM, MOST_EF = 2000, 1000


@dataclass(frozen=True)
class Engine:
    """Settings.

    Attributes:
        kind: hnsw, or exact for none.
        m: Neighbours that a row keeps.
        ef_construction: Rows looked at for them.
        ef: Rows looked at by a search; the effort.
    """

    kind: str = "hnsw"
    m: int = 16
    ef_construction: int = 64
    ef: int = 64

    def __post_init__(self) -> None:
        """Refuse what the server would."""
        if self.kind not in KINDS:
            raise ConfigError(f"engine pgvector: kind {self.kind!r}; there are {', '.join(KINDS)}")
        if not 2 <= self.m <= 100 or not 2 * self.m <= self.ef_construction <= 1000:
            raise ConfigError(
                f"engine pgvector: m in 2..100, ef_construction in 2·m..1000; got {self}"
            )
        if not 1 <= self.ef <= MOST_EF:
            raise ConfigError(f"engine pgvector: ef in 1..{MOST_EF}, got {self.ef}")

    def create(self, where: str, space: Space) -> Table:
        """See `hetero.index.Engine`."""
        if self.kind == "hnsw" and space.dim > GRAPH_DIM:
            raise ConfigError(
                f"engine pgvector: a graph of vectors of {space.dim} numbers is too much for "
                f"pgvector, whose limit is {GRAPH_DIM}; set kind=exact"
            )
        sql = require("psycopg.sql", "pgvector")
        connection, name = _connect(where, make=True)
        text = json.dumps(
            {
                "schema": SCHEMA,
                "space": {"name": space.name, "digest": space.digest, "dim": space.dim},
                "settings": asdict(self),
            }
        )
        table = sql.Identifier(name)
        try:
            with _told(name), connection.transaction():
                if _comment(connection, name) is not None:
                    raise ConfigError(f"pgvector: there is a table {name!r} already")
                connection.execute(
                    sql.SQL(
                        'CREATE TABLE {} (id text COLLATE "C" PRIMARY KEY, '
                        "embedding vector({}) NOT NULL)"
                    ).format(table, sql.Literal(space.dim))
                )
                connection.execute(
                    sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(text))
                )
        except BaseException:
            connection.close()
            raise
        return Table(self, space, connection, name)

    def load(self, where: str) -> Table:
        """See `hetero.index.Engine`."""
        connection, name = _connect(where)
        try:
            with _told(name):
                text = _comment(connection, name)
            if text is None:
                raise NoIndexError(f"pgvector: there is no table {name!r}")
            try:
                made = json.loads(text)
                where = f"pgvector: table {name!r}"
                _schemas.check(where, made["schema"], SCHEMA, again="build the index again")
                said = made["space"]
                space = Space(said["name"], said["digest"], said["dim"])
                engine = Engine(**made["settings"])
            except BundleError:
                raise
            except (KeyError, TypeError, ValueError, ConfigError) as error:
                raise BundleError(
                    f"pgvector: table {name!r} is not an index of ours: {str(error)[:200]}"
                ) from error
        except BaseException:
            connection.close()
            raise
        return Table(engine, space, connection, name)


class Table(Index):
    """See the module."""

    def __init__(self, settings: Engine, space: Space, connection: Any, name: str) -> None:
        """See `Index`; `connection` commits by itself."""
        exact = settings.kind == "exact"
        self.effort_name = "" if exact else "ef"  # type: ignore[misc]
        super().__init__(space, f"pgvector table {name}", 0 if exact else settings.ef)
        self._settings, self._connection, self._name = settings, connection, name
        self._sql = require("psycopg.sql", "pgvector")

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM {}")[0][0])

    def present(self, ids: Collection[str]) -> frozenset[str]:
        """See `Index`."""
        rows = self._rows("SELECT id FROM {} WHERE id = ANY(%s)", [list(ids)])
        return frozenset(row[0] for row in rows)

    def save(self) -> None:
        """Build the graph, if there is to be one and it is not there."""
        if self._settings.kind == "exact":
            return
        graph = self._sql.Identifier(self._graph())
        with _told(self._name), self._connection.transaction():
            self._connection.execute(
                self._text(
                    "CREATE INDEX IF NOT EXISTS {graph} ON {} USING hnsw "
                    "(embedding vector_ip_ops) WITH (m = {m}, ef_construction = {wide})",
                    graph=graph,
                    m=self._sql.Literal(self._settings.m),
                    wide=self._sql.Literal(self._settings.ef_construction),
                )
            )
            self._connection.execute(self._text("ANALYZE {}"))

    def close(self) -> None:
        """See `Index`."""
        self._connection.close()

    def _graph(self) -> str:
        # PostgreSQL cuts names off at 63 bytes, and would cut ours to the table's own.
        return f"{self._name.encode()[:50].decode(errors='ignore')}_hnsw"

    def _insert(self, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"]) -> None:
        errors = require("psycopg.errors", "pgvector")
        try:
            with self._connection.transaction():
                self._copy(self._sql.Identifier(self._name), ids, vectors)
        except errors.UniqueViolation as error:  # somebody else was quicker
            raise DataError(f"{self.where}: an id came to be in the index meanwhile") from error
        except errors.Error as error:
            raise _line(self._name, error) from error

    def _put(
        self, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"], there: frozenset[str]
    ) -> None:
        with _told(self._name), self._connection.transaction():
            self._connection.execute(
                self._text(
                    "CREATE TEMPORARY TABLE hetero_incoming (LIKE {} INCLUDING DEFAULTS) "
                    "ON COMMIT DROP"
                )
            )
            self._copy(self._sql.Identifier("hetero_incoming"), ids, vectors)
            self._connection.execute(
                self._text(
                    "INSERT INTO {} (id, embedding) SELECT id, embedding FROM hetero_incoming "
                    "ON CONFLICT (id) DO UPDATE SET embedding = EXCLUDED.embedding"
                )
            )

    def _remove(self, ids: Sequence[str]) -> None:
        with _told(self._name):
            self._connection.execute(self._text("DELETE FROM {} WHERE id = ANY(%s)"), [list(ids)])

    def _nearest(self, vectors: Float32[np.ndarray, "q d"], k: int) -> Found:
        lines: list[list[tuple[str, float]]] = []
        # <#> is the inner product with its sign turned, which of unit rows is the cosine.
        query = self._text(
            "SELECT id, -(embedding <#> %s) FROM {} ORDER BY embedding <#> %s LIMIT %s"
        )
        setting = "SELECT set_config(%s, %s, true)"
        with _told(self._name), self._connection.transaction():
            if self.effort_name and k <= MOST_EF:
                wide = min(MOST_EF, max(self.effort, k))
                self._connection.execute(setting, ["hnsw.ef_search", str(wide)])
                # Deleted rows are met in the graph too; go on until k are found.
                self._connection.execute(setting, ["hnsw.iterative_scan", "strict_order"])
            else:
                self._connection.execute(setting, ["enable_indexscan", "off"])
            for row in vectors:
                lines.append(
                    self._connection.execute(query, [row, row, k], prepare=True).fetchall()
                )
        return Found.of(lines)

    def _copy(self, table: Any, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"]) -> None:
        statement = self._sql.SQL("COPY {} (id, embedding) FROM STDIN WITH (FORMAT BINARY)")
        with self._connection.cursor().copy(statement.format(table)) as copy:
            copy.set_types(["text", "vector"])
            for name, row in zip(ids, vectors, strict=True):
                copy.write_row([name, row])

    def _text(self, text: str, **parts: Any) -> Any:
        return self._sql.SQL(text).format(self._sql.Identifier(self._name), **parts)

    def _rows(self, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with _told(self._name):
            found: list[tuple[Any, ...]] = self._connection.execute(
                self._text(text), list(values)
            ).fetchall()
        return found


def _connect(where: str, make: bool = False) -> tuple[Any, str]:
    """A connection that knows vectors, and the table's name."""
    address, _, name = where.partition("#")
    name = name or TABLE
    if "\0" in where or not 1 <= len(name.encode()) <= 63:
        raise ConfigError(f"pgvector: table {name!r}: a name of 1 to 63 bytes")
    psycopg = require("psycopg", "pgvector")
    adapt = require("pgvector.psycopg", "pgvector")
    try:
        connection = psycopg.connect(address, autocommit=True)
    except psycopg.Error as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"pgvector: no connection: {said}; is the server running, and is the address right?"
        ) from error
    try:
        with _told(name):
            known = "SELECT 1 FROM pg_extension WHERE extname = 'vector'"
            if make and not connection.execute(known).fetchone():
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            if not connection.execute(known).fetchone():
                raise NoIndexError(
                    "pgvector: the database has no extension vector, and so no index; "
                    "`hetero index build` makes one"
                )
            adapt.register_vector(connection)
    except BaseException:
        connection.close()
        raise
    return connection, name


def _comment(connection: Any, name: str) -> str | None:
    """What is said of a table; "" if nothing is, None if there is none."""
    found = connection.execute(
        "SELECT coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class "
        "WHERE relname = %s AND pg_table_is_visible(oid)",
        [name],
    ).fetchone()
    return None if found is None else str(found[0])


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Turns what PostgreSQL says of its trouble into one line."""
    errors = require("psycopg", "pgvector")
    try:
        yield
    except errors.Error as error:
        raise _line(name, error) from error


def _line(name: str, error: BaseException) -> StorageError:
    return StorageError(f"pgvector table {name}: {' '.join(str(error).split())[:300]}")
