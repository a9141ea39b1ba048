"""File formats for shards of vectors: one module each, found by its name.

A sink is a module of this folder; the command line names it by its file name, and a dotted path
names a user's own. It offers:

    EXTRA                      the extra of this package that brings its library
    SUFFIX                     ".parquet": how its files end
    encode(ids, rows, texts)   the bytes of a file
    decode(path)               (ids, rows, texts) of a file

A table has two columns: ``id``, text, and ``vector``, a list of fixed length of float32, float16 or
int8. The texts, all of whose keys begin with "hetero.", stand in its schema's metadata. Equal
content gives equal bytes.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from hetero import _plugins
from hetero.errors import BundleError, require


def module(name: str) -> ModuleType:
    """The module of a sink.

    Raises:
        ConfigError: There is none of this name; the message lists those there are.
    """
    return _plugins.load(__name__, name)


def to_table(ids: tuple[str, ...], rows: np.ndarray[Any, Any], texts: dict[str, str]) -> Any:
    """An Arrow table of both columns, with these texts.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    arrow = require("pyarrow", "parquet")
    flat = arrow.array(np.ascontiguousarray(rows).reshape(-1))
    columns = {
        "id": arrow.array(list(ids), arrow.string()),
        "vector": arrow.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
    }
    return arrow.table(columns).replace_schema_metadata(texts)


def from_table(
    table: Any, texts: dict[bytes, bytes] | None, name: str
) -> tuple[tuple[str, ...], np.ndarray[Any, Any], dict[str, str]]:
    """What `to_table` was given.

    Raises:
        BundleError: It is another table.
    """
    arrow = require("pyarrow", "parquet")
    said = {k.decode(): v.decode() for k, v in (texts or {}).items()}
    kind = table.schema.field("vector").type if "vector" in table.column_names else None
    if kind is None or not arrow.types.is_fixed_size_list(kind) or "id" not in table.column_names:
        raise BundleError(f"{name}: not a shard of vectors; `hetero embed` writes them")
    column = table.column("vector").combine_chunks()
    rows = np.asarray(column.flatten()).reshape(len(column), kind.list_size)
    return tuple(table.column("id").to_pylist()), rows, said
