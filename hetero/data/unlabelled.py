"""A folder of pictures without classes, at any depth: ``unlabelled:PATH``.

Enough to train a query model with a label-free method: the gallery model's vectors are the targets.
Nine in ten pictures are for training, by hash of their paths, the others watch it; there is no test
split, because without labels nothing says what a right answer is.
"""

from __future__ import annotations

import hashlib

from hetero.data import Images
from hetero.data._pictures import Entry, collection
from hetero.data._walk import Walk, existing
from hetero.errors import DataError


def source(where: str, seed: int = 0) -> Images:
    """All usable pictures below a folder, each a label of its own.

    Args:
        where: The folder.
        seed: Of the split.

    Raises:
        DataError: There is no such folder, or fewer than four usable pictures in it.
    """
    name = f"unlabelled:{where}"
    root = existing(name, where, "a folder of pictures")
    walk = Walk(root)
    ids = walk.files()
    order = sorted(ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).hexdigest())
    watched = set(order[: max(2, len(ids) // 10)])
    entries = [Entry(i, i, "val" if i in watched else "train", "both") for i in ids]
    if len(entries) < 4:
        raise DataError(f"{name}: {len(entries)} files; training needs at least four pictures")
    return collection(name, root, root, entries, walk.skipped, seed, labelled=False)
