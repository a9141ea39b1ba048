"""Space and Embeddings: whose coordinate system, and unit rows in it.

Three rules live here and nowhere else: vectors of different spaces refuse to be compared,
normalising happens in one place, and a zero or non-finite row is named and refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from hetero.errors import ConfigError, DataError, SpaceMismatchError

#: Of files of embeddings.
SCHEMA = "embeddings/1"

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Space:
    """The coordinate system that one gallery model defines.

    Attributes:
        name: The gallery model in a user's words; carries no identity.
        digest: SHA-256 (64 hexadecimal digits) over the gallery model's weights and
            preprocessing. Two spaces are one if and only if digest and dim agree.
        dim: Length of an embedding, at least 1.
    """

    name: str
    digest: str
    dim: int

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a space needs a name; got an empty one")
        if not _DIGEST.fullmatch(self.digest):
            raise ConfigError(
                f"space {self.name!r}: digest must be 64 hexadecimal digits, got {self.digest!r}"
            )
        if self.dim < 1:
            raise ConfigError(f"space {self.name!r}: dim must be at least 1, got {self.dim}")

    @property
    def id(self) -> str:
        """Short identity for people and for files: ``name@first-12-digits``."""
        return f"{self.name}@{self.digest[:12]}"

    def same_as(self, other: Space) -> bool:
        """Whether vectors of the two spaces may be compared; names do not count."""
        return (self.digest, self.dim) == (other.digest, other.dim)

    def must_match(self, other: Space, what: str) -> None:
        """Nothing, if `other` is this space.

        Raises:
            SpaceMismatchError: It is another one; the message starts with `what`.
        """
        if not self.same_as(other):
            raise SpaceMismatchError(
                f"{what}: vectors of space {other.id} (dim {other.dim}) cannot be compared with "
                f"vectors of space {self.id} (dim {self.dim}); use a model trained into {self.id}"
            )


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Ids and unit rows in a space, and who made them.

    Attributes:
        space: The coordinate system of the rows.
        ids: One unique id per row; rows are matched by id, never by position.
        vectors: float32, shape (n, dim), every row of length 1. Read-only.
        made_by: Who made them, for messages and reports: ``"int8 tflite on local"``.
    """

    space: Space
    ids: tuple[str, ...]
    vectors: Float[np.ndarray, "n d"]
    made_by: str

    def __post_init__(self) -> None:
        shape = self.vectors.shape
        if shape != (len(self.ids), self.space.dim):
            raise SpaceMismatchError(
                f"{self.made_by} gave an array of shape {shape}, but {len(self.ids)} ids in space "
                f"{self.space.id} need ({len(self.ids)}, {self.space.dim}); "
                "was the model trained into another space?"
            )
        if len(set(self.ids)) != len(self.ids):
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DataError(f"{self.made_by}: id {twice!r} occurs more than once")
        # Norms in float64: a float32 sum over many dimensions is off by more than the tolerance.
        norms = np.linalg.norm(self.vectors.astype(np.float64), axis=1)
        bad = np.flatnonzero(~(np.abs(norms - 1.0) < 1e-3))
        if bad.size:
            row = int(bad[0])
            raise DataError(
                f"{self.made_by}: {bad.size} of {len(self.ids)} rows are not unit vectors, first "
                f"row {row} (id {self.ids[row]!r}, length {norms[row]:.6g}); "
                "build Embeddings with Embeddings.normalised(...)"
            )
        self.vectors.setflags(write=False)

    def __repr__(self) -> str:
        """One line; the rows are not in it."""
        n, d = self.vectors.shape
        return f"Embeddings({n:,} x {d} in {self.space.id}, made by {self.made_by})"

    @classmethod
    def normalised(
        cls, space: Space, ids: Sequence[str], raw: Float[np.ndarray, "n d"], made_by: str
    ) -> Embeddings:
        """Embeddings of the rows of `raw` scaled to length 1; `raw` is not changed.

        Args:
            space: The coordinate system the rows are in.
            ids: One unique id per row.
            raw: Any float dtype, shape (n, dim), any row lengths but zero.
            made_by: Who made them.

        Raises:
            DataError: A row is zero or not finite; the message names the row and its id.
            SpaceMismatchError: The rows do not have the space's dimension.
        """
        rows = np.asarray(raw, dtype=np.float64)
        if rows.ndim != 2 or rows.shape != (len(ids), space.dim):
            raise SpaceMismatchError(
                f"{made_by} gave an array of shape {rows.shape}, but {len(ids)} ids in space "
                f"{space.id} need ({len(ids)}, {space.dim}); "
                "was the model trained into another space?"
            )
        norms = np.linalg.norm(rows, axis=1)
        bad = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-12))
        if bad.size:
            row = int(bad[0])
            kind = "not finite" if not np.isfinite(norms[row]) else "zero"
            raise DataError(
                f"{made_by}: {bad.size} of {len(ids)} embeddings are unusable, first row {row} "
                f"(id {ids[row]!r}) is {kind}; look at that image and at the model's output"
            )
        return cls(space, tuple(ids), (rows / norms[:, None]).astype(np.float32), made_by)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, ids: Sequence[str]) -> Embeddings:
        """The rows of these ids in this order, copied.

        Raises:
            DataError: An id is not there.
        """
        where = {i: row for row, i in enumerate(self.ids)}
        missing = [i for i in ids if i not in where]
        if missing:
            raise DataError(
                f"{self.made_by}: {len(missing)} of {len(ids)} ids have no embedding, "
                f"first {missing[0]!r}"
            )
        rows = [where[i] for i in ids]
        return Embeddings(self.space, tuple(ids), self.vectors[rows].copy(), self.made_by)

    def pretend_in(self, space: Space) -> Embeddings:
        """The same rows declared to be in `space`, for a negative control and nothing else.

        This is the only way around the rule that spaces do not mix; `made_by` records it.

        Raises:
            SpaceMismatchError: The dimensions differ.
        """
        return replace(self, space=space, made_by=f"{self.made_by} (pretending {space.id})")

    def shortened(self, space: Space) -> Embeddings:
        """The first `space.dim` numbers of each row, normalised, as rows of `space`.

        Only a bundle can say that they are: `hetero.bundle.Bundle.nested`.

        Raises:
            SpaceMismatchError: `space` is not shorter.
            DataError: A row has nothing but zeros there.
        """
        if space.dim >= self.space.dim:
            raise SpaceMismatchError(
                f"{self.made_by}: rows of {self.space.dim} numbers have no first {space.dim} that "
                "are fewer"
            )
        return Embeddings.normalised(space, self.ids, self.vectors[:, : space.dim], self.made_by)

    def save(self, path: Path) -> None:
        """Write vectors, ids and space to a safetensors file, atomically."""
        from safetensors.numpy import save

        from hetero._files import write_atomically

        joined = "\n".join(self.ids).encode()
        if len(joined.split(b"\n")) != max(1, len(self.ids)):
            raise DataError(f"{self.made_by}: an id contains a line break")
        meta = {
            "hetero.schema": SCHEMA,
            "hetero.space_name": self.space.name,
            "hetero.space_digest": self.space.digest,
            "hetero.dim": str(self.space.dim),
            "hetero.made_by": self.made_by,
        }
        tensors = {"vectors": self.vectors, "ids": np.frombuffer(joined, dtype=np.uint8)}
        write_atomically(path, save(tensors, metadata=meta))

    @classmethod
    def load(cls, path: Path) -> Embeddings:
        """The embeddings written by `save`, or all that are in a folder of shards.

        Raises:
            BundleError: The file is missing, torn, or not one of ours.
        """
        from hetero._tensors import read_tensors

        if path.is_dir():
            from hetero.sharded import Sharded

            return Sharded.open(path).load()

        def build(
            tensors: Mapping[str, np.ndarray[Any, Any]], texts: Mapping[str, str]
        ) -> Embeddings:
            space = Space(
                texts["hetero.space_name"], texts["hetero.space_digest"], int(texts["hetero.dim"])
            )
            vectors, joined = tensors["vectors"], tensors["ids"].tobytes().decode()
            ids = tuple(joined.split("\n")) if len(vectors) else ()
            return cls(space, ids, vectors, texts["hetero.made_by"])

        return read_tensors(path, SCHEMA, "embeddings", "hetero embed", build)
