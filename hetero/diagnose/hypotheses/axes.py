"""Numbers right, places wrong: axes exchanged, or the picture flipped on the way to the tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array
from hetero.preprocess import Preprocess

STAGE = "layout"
FIX = (
    "transpose, do not reshape: the tensor is channels x rows from the top x columns from the left"
)


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Reinterpreted, transposed, upside down, mirrored, turned."""
    del spec
    yield "NHWC numbers are read as NCHW without a transpose", _reread
    yield "rows and columns are exchanged", lambda x: _out(x.transpose(0, 3, 2, 1))
    yield "the picture is upside down", lambda x: _out(x[:, ::-1].transpose(0, 3, 1, 2))
    yield "the picture is mirrored", lambda x: _out(x[:, :, ::-1].transpose(0, 3, 1, 2))
    yield (
        "the picture is turned by 180 degrees",
        lambda x: _out(x[:, ::-1, ::-1].transpose(0, 3, 1, 2)),
    )
    for turns, side in ((1, "left"), (3, "right")):
        yield f"the picture is turned a quarter to the {side}", _turned(turns)
    yield "NCHW numbers are read as NHWC without a transpose", _written


def _turned(turns: int) -> Callable[[Array], Array]:
    def layout(nhwc: Array) -> Array:
        return _out(np.rot90(nhwc, turns, axes=(1, 2)).transpose(0, 3, 1, 2))

    return layout


def _out(tensor: Array) -> Array:
    return np.ascontiguousarray(tensor)


def _reread(nhwc: Array) -> Array:
    n, h, w, c = nhwc.shape
    return np.ascontiguousarray(nhwc).reshape(n, c, h, w)


def _written(nhwc: Array) -> Array:
    """The app hands over planes, the file takes them for interleaved pixels."""
    n, h, w, c = nhwc.shape
    planes = np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2))
    return np.ascontiguousarray(planes.reshape(n, h, w, c).transpose(0, 3, 1, 2))
