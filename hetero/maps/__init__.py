"""Maps between the spaces of two models that are already trained: one module, one map.

A map is a module of this folder (or a dotted path to one's own) with a frozen dataclass ``Map``:
its fields are the settings, ``net(query_dim, gallery_dim)`` gives the map with any numbers in it,
to load stored ones into, and ``fit(source, target, seed)`` gives it fitted to pairs of vectors. The
output of a map need not be of unit length; who uses it normalises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from hetero import _plugins
from hetero._settings import fill
from hetero.errors import DataError


@runtime_checkable
class Map(Protocol):
    """What a module of this folder offers under the name ``Map``."""

    def net(self, query_dim: int, gallery_dim: int) -> nn.Module:
        """The map from (n, query_dim) to (n, gallery_dim), before it is fitted."""
        ...

    def fit(
        self, source: Float32[np.ndarray, "n q"], target: Float32[np.ndarray, "n g"], seed: int
    ) -> nn.Module:
        """Such a map fitted so that source rows land on target rows; unit rows on both sides.

        Called with PyTorch's global generator at `seed`.
        """
        ...


def names() -> tuple[str, ...]:
    """The maps of this folder."""
    return _plugins.names(__name__)


def make(name: str, settings: Mapping[str, Any] | None = None) -> Map:
    """A map with these settings over its defaults.

    Args:
        name: A module of this folder or a dotted path.
        settings: Field name to value; text is converted to the field's type.

    Raises:
        ConfigError: Unknown map or setting, or a value of the wrong kind.
    """
    made: Map = fill(_plugins.load(__name__, name), "Map", name, settings or {})
    return made


def settings_of(chosen: Map) -> dict[str, Any]:
    """The settings of a map, for the record and for `make`."""
    return {f.name: getattr(chosen, f.name) for f in fields(chosen)}  # type: ignore[arg-type]


def fit(
    chosen: Map,
    source: Float32[np.ndarray, "n q"],
    target: Float32[np.ndarray, "n g"],
    seed: int = 0,
) -> nn.Module:
    """The map fitted to pairs, in evaluation mode; equal input and seed give equal numbers.

    Args:
        chosen: From `make`.
        source: Unit rows by the query model.
        target: Unit rows by the gallery model, of the same pictures in the same order.
        seed: For whatever the map draws.

    Raises:
        DataError: Fewer pairs than numbers in a query vector, or a row that is not finite.
    """
    for side, rows in (("query", source), ("gallery", target)):
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise DataError(
                f"map: {bad.size} of {len(rows)} {side} vectors are not finite, first row "
                f"{bad[0]}; look at that picture and at the {side} model"
            )
    if len(source) < source.shape[1]:
        raise DataError(
            f"map: {len(source)} pairs do not fix a map of vectors with {source.shape[1]} numbers; "
            "give at least as many pictures, or augmented views of them"
        )
    # Fresh layers draw from the global generator, which is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return chosen.fit(source, target, seed).eval()


@torch.no_grad()
def apply(net: nn.Module, rows: Float32[np.ndarray, "n q"]) -> Float32[np.ndarray, "n g"]:
    """The unit rows a fitted map gives."""
    out: Tensor = nn.functional.normalize(net(torch.from_numpy(np.ascontiguousarray(rows))), dim=1)
    return out.numpy()


@torch.no_grad()
def matrix(net: nn.Module) -> Float[Tensor, "g q"] | None:
    """The matrix (float64) of a map that is nothing else, so that it can be folded; None of others.

    Linear layers without offset, one or a chain of them, are a matrix.
    """
    parts = list(net) if isinstance(net, nn.Sequential) else [net]
    product: Tensor | None = None
    for part in parts:
        if not isinstance(part, nn.Linear) or part.bias is not None:
            return None
        weight = part.weight.double()
        product = weight if product is None else weight @ product
    return product
