"""How the numbers of a vector are kept: whole, or smaller at some cost to search.

    float32  as they came
    float16  rounded to half precision (IEEE 754): 11 significant bits
    int8     symmetric, a scale of its own for each row: round(127 x / max |x|), the "absmax"
             rounding of Dettmers et al., "LLM.int8()", NeurIPS 2022

Rows are unit vectors and only directions are compared, so int8 keeps no scale: reading makes unit
rows again. Nothing is calibrated, so that a row's bytes depend on that row alone and shards can be
written in any order by anybody.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from hetero.space import Embeddings, Space

Storage = Literal["float32", "float16", "int8"]

#: Largest int8 that has an opposite.
_MOST = 127


def pack(vectors: Float32[np.ndarray, "n d"], storage: Storage) -> np.ndarray[Any, Any]:
    """Unit rows in the number type of this storage, shape (n, dim)."""
    if storage == "float32":
        return vectors
    if storage == "float16":
        return vectors.astype(np.float16)
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    whole: np.ndarray[Any, Any] = np.rint(vectors * (_MOST / largest)).astype(np.int8)
    return whole


def unpack(
    space: Space, ids: tuple[str, ...], packed: np.ndarray[Any, Any], made_by: str
) -> Embeddings:
    """Unit rows again: those of float32 bit for bit, the others normalised.

    Raises:
        DataError: A row is zero or not finite, or an id is there twice.
        SpaceMismatchError: The rows do not have the space's dimension.
    """
    if packed.dtype == np.float32:
        return Embeddings(space, ids, packed, made_by)
    return Embeddings.normalised(space, ids, packed.astype(np.float32), made_by)


def stored(vectors: Embeddings, storage: Storage) -> Embeddings:
    """What is left of these vectors after they were kept so and read again."""
    rows = pack(np.asarray(vectors.vectors), storage)
    return unpack(vectors.space, vectors.ids, rows, f"{vectors.made_by}, kept as {storage}")
