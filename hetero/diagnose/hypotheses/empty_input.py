"""The model never sees the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array, Engine, standard
from hetero.preprocess import Preprocess

STAGE = "runtime"
FIX = "copy the picture into the runtime's input buffer before each call, as the type it asks for"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Zeros, black, the picture before, the first one for ever."""
    side = spec.size_px
    black = standard(np.zeros((1, side, side, 3), dtype=np.uint8), spec).transpose(0, 3, 1, 2)
    yield "the model is given zeros", _given(lambda x: np.zeros_like(x))
    yield "the model is given black pictures", _given(lambda x: np.repeat(black, len(x), axis=0))
    yield (
        "the model is given the first picture every time",
        _given(lambda x: np.repeat(x[:1], len(x), axis=0)),
    )


def _given(change: Callable[[Array], Array]) -> Callable[[Array, Engine], Array]:
    def network(tensor: Array, engine: Engine) -> Array:
        return engine.rows(np.ascontiguousarray(change(tensor)))

    return network
