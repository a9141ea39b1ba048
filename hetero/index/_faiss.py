"""What the engines that are faiss share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from hetero.errors import BundleError, require
from hetero.index._folder import FolderIndex, Stored
from hetero.index._index import Found


def library() -> Any:
    """The module faiss.

    Raises:
        MissingExtraError: It is not installed.
    """
    return require("faiss", "index")


def read_rows(stored: Stored, kinds: tuple[str, ...]) -> Any:
    """The faiss index of a folder.

    Args:
        stored: From `hetero.index._folder.read`.
        kinds: Names of the faiss classes it may be.

    Raises:
        BundleError: It is none of them, or not of these rows.
    """
    faiss = library()
    try:
        made = faiss.read_index(str(stored.rows))
    except RuntimeError as error:
        raise BundleError(f"{stored.rows}: faiss cannot read it: {str(error)[:200]}") from error
    if type(made).__name__ not in kinds or made.d != stored.space.dim:
        raise BundleError(
            f"{stored.rows}: a {type(made).__name__} of dim {made.d}, expected "
            f"{' or '.join(kinds)} of dim {stored.space.dim}"
        )
    return made


class FaissIndex(FolderIndex):
    """A folder whose engine's file is faiss's."""

    suffix = "faiss"
    _index: Any

    def _write(self, path: Path) -> None:
        library().write_index(self._index, str(path))

    def _asked(self, vectors: Float32[np.ndarray, "q d"], k: int, parameters: Any = None) -> Found:
        # Where somebody imported faiss.contrib.torch_utils (pytorch-metric-learning does), `search`
        # is another function in the whole process, which knows no parameters.
        search = getattr(self._index, "search_numpy", self._index.search)
        scores, rows = search(np.ascontiguousarray(vectors), k, params=parameters)
        return self._found(rows, scores)

    def _drop(self, rows: Int64[np.ndarray, " n"]) -> None:
        self._index.remove_ids(library().IDSelectorBatch(rows))
