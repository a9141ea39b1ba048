"""CIFAR-10 from JPEG files in one .zip: ``benchmarks.data.cifar10:PATH``.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The file has
{train,test}/CLASS/NNNN.jpg; ids are these names, so that an id says the official part. Ours are all
of one split: a class can be in one only.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from hetero.data import Images
from hetero.errors import DataError
from hetero.preprocess import decode

_PARTS = ("train", "test")


def source(where: str, seed: int = 0) -> Images:
    """The collection.

    Args:
        where: The .zip file.
        seed: Without effect; there is no split to draw.

    Raises:
        DataError: No such file, or not this data set.
    """
    del seed
    try:
        with zipfile.ZipFile(Path(where).expanduser()) as file:
            names = sorted(n for n in file.namelist() if n.endswith(".jpg"))
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
    return Images(
        name="cifar10",
        ids=tuple(names),
        labels=tuple(label for _, label, _ in parts),
        groups=tuple(names),
        splits=("train",) * len(names),
        roles=("both",) * len(names),
        read=lambda row: decode(raw[row]),
    )
