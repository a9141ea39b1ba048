"""CIFAR-10 from JPEG files in one .zip: ``benchmarks.data.cifar10:PATH``.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. A closed set: the same
ten classes in every split. The official test pictures are tested on; about one in ten of the
training pictures is held back for validation. The file has {train,test}/CLASS/NNNN.jpg.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from hetero.data import Images, Split
from hetero.errors import DataError
from hetero.preprocess import decode


def source(where: str, seed: int = 0) -> Images:
    """The collection.

    Args:
        where: The .zip file.
        seed: Of the choice of validation pictures.

    Raises:
        DataError: No such file, or not this data set.
    """
    try:
        with zipfile.ZipFile(Path(where).expanduser()) as file:
            names = sorted(n for n in file.namelist() if n.endswith(".jpg"))
            # 36 MB in all; an open archive cannot be read by several threads at its best.
            raw = [file.read(name) for name in names]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cifar10:{where}: cannot be read ({error})") from error
    parts = [name.split("/") for name in names]
    odd = [n for n, p in zip(names, parts, strict=True) if len(p) != 3 or p[0] not in _PARTS]
    if odd or not names:
        raise DataError(
            f"cifar10:{where}: {odd[0] if odd else 'nothing'} in it; expected "
            "train/CLASS/NNNN.jpg and test/CLASS/NNNN.jpg"
        )

    def split(name: str, part: str) -> Split:
        if part == "test":
            return "test"
        held = hashlib.sha256(f"{seed}:{name}".encode()).digest()[0] % 10 == 0
        return "val" if held else "train"

    return Images(
        name="cifar10",
        ids=tuple(names),
        labels=tuple(label for _, label, _ in parts),
        groups=tuple(names),
        splits=tuple(split(name, part[0]) for name, part in zip(names, parts, strict=True)),
        roles=("both",) * len(names),
        read=lambda row: decode(raw[row]),
        closed=True,
    )


_PARTS = ("train", "test")
