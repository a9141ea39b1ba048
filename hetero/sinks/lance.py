"""Lance files, for those whose collection is a Lance dataset already.

Each shard is one file of the Lance format, to be read by ``lance.file.LanceFileReader``;
docs/bulk.md says how to make one dataset of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hetero import sinks
from hetero.errors import BundleError, require

EXTRA = "lance"
SUFFIX = ".lance"


def encode(ids: tuple[str, ...], rows: np.ndarray[Any, Any], texts: dict[str, str]) -> bytes:
    """The bytes of a file.

    Raises:
        MissingExtraError: pylance is not installed.
    """
    files = require("lance.file", EXTRA)
    table = sinks.to_table(ids, rows, texts)
    # Its writer knows paths only.
    with tempfile.TemporaryDirectory(prefix="hetero-lance-") as folder:
        path = Path(folder) / f"shard{SUFFIX}"
        with files.LanceFileWriter(str(path), table.schema) as writer:
            writer.write_batch(table)
        return path.read_bytes()


def decode(path: Path) -> tuple[tuple[str, ...], np.ndarray[Any, Any], dict[str, str]]:
    """Ids, rows and texts of a file.

    Raises:
        BundleError: It cannot be read, or is another table.
        MissingExtraError: pylance is not installed.
    """
    files = require("lance.file", EXTRA)
    try:
        reader = files.LanceFileReader(str(path))
        table, texts = reader.read_all().to_table(), reader.metadata().schema.metadata
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    return sinks.from_table(table, texts, str(path))
