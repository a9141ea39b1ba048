"""A map for vectors that are stored already: fitted once, written to a file, applied to an index.

Forward compatibility is the other way out of an upgrade: the new model is trained as one likes, and
the old index is led into its space. What the old vectors have lost cannot be mapped back; side
information that was stored with them when the index was made helps.

Paper: Ramanujan, Vasu, Farhadi, Tuzel and Pouransari, "Forward Compatible Training for Large-Scale
    Embedding Retrieval Systems", CVPR 2022, arXiv:2112.02805, the map of (old vector, side
    information) and the side information.
Differs: side information is the vector of any other model; both are put one behind the other and
    mapped by any of `hetero.maps`. The paper learns its side information by contrast (SimCLR).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from hetero import maps
from hetero._files import write_atomically
from hetero._tensors import read_tensors
from hetero.errors import ConfigError, DataError
from hetero.space import Embeddings, Space

SCHEMA = "hetero.map/1"


@dataclass(frozen=True, eq=False)
class StoredMap:
    """A fitted map and the spaces it joins.

    Attributes:
        name: A module of `hetero.maps` or a dotted path.
        settings: Its settings.
        source: Of the vectors it takes.
        target: Of the vectors it gives.
        net: The fitted map, in evaluation mode.
        side: Of the side information that follows a vector; None where there is none.
    """

    name: str
    settings: Mapping[str, Any]
    source: Space
    target: Space
    net: nn.Module
    side: Space | None = None

    def apply(self, vectors: Embeddings, side: Embeddings | None = None) -> Embeddings:
        """The vectors as rows of the target space.

        Args:
            vectors: In the source space.
            side: Of the same ids at least, where the map was fitted with side information.

        Raises:
            SpaceMismatchError: They are of other spaces.
            ConfigError: Side information is missing, or there is too much of it.
            DataError: An id has no side information.
        """
        self.source.must_match(vectors.space, f"vectors by {vectors.made_by}")
        if (side is None) != (self.side is None):
            raise ConfigError(
                f"map {self.name} into {self.target.id}: "
                + ("takes no side information" if side else f"needs that of {self.side}")
            )
        if side is not None and self.side is not None:
            self.side.must_match(side.space, f"side information by {side.made_by}")
        rows = joined(vectors, side)
        made_by = f"{vectors.made_by}, mapped by {self.name}"
        return Embeddings.normalised(self.target, vectors.ids, maps.apply(self.net, rows), made_by)

    def save(self, path: Path) -> None:
        """Write it to a safetensors file, atomically."""
        from safetensors.numpy import save

        meta = {
            "hetero.schema": SCHEMA,
            "hetero.map": self.name,
            "hetero.settings": json.dumps(dict(self.settings), sort_keys=True),
        }
        for role, space in (("source", self.source), ("side", self.side), ("target", self.target)):
            if space is not None:
                meta[f"hetero.{role}"] = json.dumps([space.name, space.digest, space.dim])
        arrays = {k: v.detach().cpu().numpy().copy() for k, v in self.net.state_dict().items()}
        write_atomically(path, save(arrays, metadata=meta))

    @classmethod
    def load(cls, path: Path) -> StoredMap:
        """The map written by `save`.

        Raises:
            BundleError: The file is missing, torn, or not one of ours.
        """

        def build(
            tensors: Mapping[str, np.ndarray[Any, Any]], texts: Mapping[str, str]
        ) -> StoredMap:
            settings = json.loads(texts["hetero.settings"])
            source, target = (
                Space(*json.loads(texts[f"hetero.{x}"])) for x in ("source", "target")
            )
            side = Space(*json.loads(texts["hetero.side"])) if "hetero.side" in texts else None
            length = source.dim + (side.dim if side else 0)
            net = maps.make(texts["hetero.map"], settings).net(length, target.dim)
            net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
            return cls(texts["hetero.map"], settings, source, target, net.eval(), side)

        return read_tensors(path, SCHEMA, "a map", "hetero upgrade map", build)


def joined(vectors: Embeddings, side: Embeddings | None) -> Float32[np.ndarray, "n d"]:
    """Unit rows: the vectors, or half of each from the vector and half from the side information.

    Raises:
        DataError: An id has no side information.
    """
    if side is None:
        return vectors.vectors.copy()  # theirs is read-only, which PyTorch does not know
    if missing := set(vectors.ids) - set(side.ids):
        raise DataError(f"{len(missing)} vectors have no side information, first {min(missing)!r}")
    both = np.concatenate([vectors.vectors, side.take(vectors.ids).vectors], axis=1)
    return np.ascontiguousarray(both / np.sqrt(2), dtype=np.float32)
