"""The default collection: the same emoji drawn by different vendors, inside the package.

A class is one Unicode emoji, a picture is one vendor's drawing of it, a group is a design family.
A query never finds a drawing of its own family, so that finding the class means seeing past the
style: matching across designs, as re-identification matches across cameras.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from importlib.resources import files

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field

from hetero.data import Images, Split
from hetero.errors import DataError


class Sheet(BaseModel):
    """What is where on the sheet of tiles: ``assets/emoji.json``.

    Attributes:
        tile: Side of a tile, px.
        tiles_per_row: Tiles side by side; tile `i` is at row `i // tiles_per_row`.
        vendors: Names of the designs.
        domains: Design -> design family.
        class_: Index into `classes`, one per tile.
        vendor: Index into `vendors`, one per tile.
        classes: Code point, name, Unicode group and split of each class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile: int = Field(ge=8)
    tiles_per_row: int = Field(ge=1)
    vendors: tuple[str, ...]
    domains: dict[str, str]
    class_: tuple[int, ...] = Field(alias="class")
    vendor: tuple[int, ...]
    classes: tuple[tuple[str, str, str, Split], ...]


def class_split(code: str) -> Split:
    """The split of a class, from its code point alone, so that no rebuild can move a class.

    Args:
        code: Lower-case hexadecimal code points joined by "-", for example "1f600".
    """
    share = int(hashlib.md5(code.encode(), usedforsecurity=False).hexdigest(), 16) % 100
    return "train" if share < 60 else "val" if share < 70 else "test"


def source(where: str = "", seed: int = 0) -> Images:
    """The embedded collection.

    Args:
        where: Must be empty; there is nothing to choose.
        seed: Without effect; the split is fixed, so that results compare.

    Raises:
        DataError: `where` is not empty.
    """
    if where:
        raise DataError(
            f"emoji:{where}: the embedded collection takes no path; write `emoji`, "
            "or `folder:PATH` for your own pictures"
        )
    sheet = Sheet.model_validate(json.loads(_asset("emoji.json")))
    codes, names, _, splits = zip(*sheet.classes, strict=True)
    return Images(
        name="emoji",
        ids=tuple(
            f"emoji/{codes[c]}/{sheet.vendors[v]}"
            for c, v in zip(sheet.class_, sheet.vendor, strict=True)
        ),
        labels=tuple(names[c] for c in sheet.class_),
        groups=tuple(sheet.domains[sheet.vendors[v]] for v in sheet.vendor),
        splits=tuple(splits[c] for c in sheet.class_),
        roles=("both",) * len(sheet.class_),
        read=_reader(sheet),
    )


def _asset(name: str) -> bytes:
    return files("hetero.data").joinpath("assets", name).read_bytes()


def _reader(sheet: Sheet) -> Callable[[int], UInt8[np.ndarray, "h w 3"]]:
    """Row -> tile; the sheet is decoded at the first call, once, whichever thread comes first."""
    lock = threading.Lock()
    decoded: list[UInt8[np.ndarray, "h w 3"]] = []

    def read(row: int) -> UInt8[np.ndarray, "h w 3"]:
        from hetero.preprocess import decode

        if not 0 <= row < len(sheet.class_):
            raise IndexError(f"emoji: row {row} of {len(sheet.class_)}")
        with lock:
            if not decoded:
                decoded.append(decode(_asset("emoji.webp")))
        top, left = (sheet.tile * at for at in divmod(row, sheet.tiles_per_row))
        return decoded[0][top : top + sheet.tile, left : left + sheet.tile].copy()

    return read
