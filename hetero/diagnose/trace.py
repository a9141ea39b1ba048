"""Trace: what an app produced for the canary pictures, at the points where it could be caught.

A folder that an app engineer writes:

    names.txt      the pictures' file names, one a line, in the order of the rows (or ids.json)
    embedding.npy  (n, d): the vectors as the app sends them
    pixels.npy     optional, uint8 (n, size, size, 3): after crop and resize
    tensor.npy     optional, float32 (n, 3, size, size): what the model was given
    raw.npy        optional, (n, d): what the runtime gave
    decoded/       optional, NAME.png each: after decoding and turning
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from hetero.diagnose._pipeline import Array
from hetero.errors import DataError


@dataclass(frozen=True, eq=False)
class Trace:
    """What a device or app gave; only the embedding has to be there.

    Attributes:
        names: Of the pictures, one a row.
        embedding: What left the device; its rows need not be of length 1, nor of the right
            dimension: that is for the diagnosis to say.
        decoded: Picture name -> RGB after decoding and turning.
        pixels: After crop and resize.
        tensor: What the model was given.
        raw: What the runtime gave.
    """

    names: tuple[str, ...]
    embedding: Float32[np.ndarray, "n d"]
    decoded: Mapping[str, UInt8[np.ndarray, "h w 3"]] = field(default_factory=dict)
    pixels: UInt8[np.ndarray, "n s s 3"] | None = None
    tensor: Float32[np.ndarray, "n 3 s s"] | None = None
    raw: Float32[np.ndarray, "n d"] | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise DataError("trace: a picture is named twice in names.txt; give each one row")
        for name in ("embedding", "pixels", "tensor", "raw"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != len(self.names):
                raise DataError(
                    f"trace: {name} has {len(rows)} rows for {len(self.names)} names; "
                    "write one row a name, in the same order"
                )

    def ordered(self, names: tuple[str, ...]) -> Trace:
        """The rows of these pictures in this order.

        Raises:
            DataError: One is missing.
        """
        where = {name: row for row, name in enumerate(self.names)}
        missing = [n for n in names if n not in where]
        if missing:
            raise DataError(
                f"trace: {len(missing)} of {len(names)} canary pictures have no row, first "
                f"{missing[0]!r}; embed the files that `hetero diagnose --canaries` writes, all"
            )
        rows = [where[n] for n in names]

        def some(value: Array | None) -> Array | None:
            return None if value is None else value[rows]

        kept = {n: self.decoded[n] for n in names if n in self.decoded}
        return Trace(
            names,
            self.embedding[rows],
            kept,
            some(self.pixels),
            some(self.tensor),
            some(self.raw),
        )


def load(folder: Path) -> Trace:
    """The trace in a folder, see the head of this module.

    Raises:
        DataError: names or embedding.npy are missing, or something has a wrong shape or type.
    """
    return Trace(
        _names(folder),
        _array(folder / "embedding.npy", 2, np.float32, needed=True),  # type: ignore[arg-type]
        _decoded(folder / "decoded"),
        _array(folder / "pixels.npy", 4, np.uint8),
        _array(folder / "tensor.npy", 4, np.float32),
        _array(folder / "raw.npy", 2, np.float32),
    )


def _names(folder: Path) -> tuple[str, ...]:
    try:
        if (folder / "names.txt").exists():
            lines = (folder / "names.txt").read_text(encoding="utf-8").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
        found = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no names.txt; list the pictures' file names, one a line, in row order"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: its list of names cannot be read ({error})") from error
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise DataError(f"{folder / 'ids.json'}: expected a list of file names")
    return tuple(found)


def _array(path: Path, ndim: int, dtype: type, *, needed: bool = False) -> Array | None:
    if not path.exists() and not needed:
        return None
    try:
        found: Array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing; write the app's vectors there as a NumPy array (n, d)"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a NumPy array file ({error})") from error
    if found.ndim != ndim or found.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: expected numbers in {ndim} dimensions, got {found.dtype} {found.shape}"
        )
    if dtype is np.uint8 and found.dtype != np.uint8:
        raise DataError(f"{path}: expected uint8, got {found.dtype}; write pixels as 0..255 bytes")
    return found.astype(dtype)


def _decoded(folder: Path) -> dict[str, Array]:
    """Picture name -> pixels, from NAME.png (or from a PNG of the picture's own name)."""
    from PIL import Image

    out = {}
    for path in sorted(folder.glob("*.png")):
        name = path.name if path.name.count(".") == 1 else path.stem
        try:
            with Image.open(path) as opened:
                out[name] = np.asarray(opened.convert("RGB"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read as a picture ({error})") from error
    return out
