"""Omniglot from one .npz: ``benchmarks.data.omniglot:PATH``.

Lake et al., "Human-level concept learning through probabilistic program induction", Science 2015.
The official split: 964 characters of the background set to train on (one in ten of them watches),
659 of the evaluation set to test on. Of each test character 5 drawings are queries and 15 are in
the gallery. The file has x (n, 35, 35) uint8
with white paper, y, class_name of each y, split and drawer.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from hetero.data import Images
from hetero.errors import DataError


def source(where: str, seed: int = 0) -> Images:
    """The collection.

    Args:
        where: The .npz file.
        seed: Of the choice of validation classes.

    Raises:
        DataError: No such file, or not this data set.
    """
    try:
        with np.load(Path(where).expanduser(), allow_pickle=False) as file:
            x, y, classes, parts, drawers = (
                file[k] for k in ("x", "y", "class_name", "split", "drawer")
            )
            names = classes[y]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"omniglot:{where}: cannot be read ({error})") from error

    def place(name: str) -> int:
        return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:8], 16)

    ids = tuple(f"{name}/{drawer}" for name, drawer in zip(names, drawers, strict=True))
    return Images(
        name="omniglot",
        ids=ids,
        labels=tuple(str(name) for name in names),
        groups=ids,
        splits=tuple(
            "test" if part == "test" else "val" if place(name) % 10 == 0 else "train"
            for name, part in zip(names, parts, strict=True)
        ),
        # Drawers are numbered 01 to 20.
        roles=tuple("query" if int(drawer) % 4 == 0 else "gallery" for drawer in drawers),
        read=lambda row: np.repeat(x[row][:, :, None], 3, axis=2),
    )
