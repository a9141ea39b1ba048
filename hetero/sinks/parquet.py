"""Parquet files, which everything that holds vectors can import."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from hetero import sinks
from hetero.errors import BundleError, require

EXTRA = "parquet"
SUFFIX = ".parquet"


def encode(ids: tuple[str, ...], rows: np.ndarray[Any, Any], texts: dict[str, str]) -> bytes:
    """The bytes of a file.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    parquet = require("pyarrow.parquet", EXTRA)
    out = io.BytesIO()
    # Vectors are noise to a compressor; ids are not.
    parquet.write_table(
        sinks.to_table(ids, rows, texts), out, use_dictionary=False, compression={"id": "zstd"}
    )
    return out.getvalue()


def decode(path: Path) -> tuple[tuple[str, ...], np.ndarray[Any, Any], dict[str, str]]:
    """Ids, rows and texts of a file.

    Raises:
        BundleError: It cannot be read, or is another table.
        MissingExtraError: pyarrow is not installed.
    """
    arrow, parquet = require("pyarrow", EXTRA), require("pyarrow.parquet", EXTRA)
    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except (OSError, arrow.ArrowException) as error:
        raise BundleError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    return sinks.from_table(table, table.schema.metadata, str(path))
