"""A closed set of classes, for classifiers: ``classes:PATH``, one sub-folder per class.

Folders below a class folder belong to that class. If the only folders in PATH are ``train``,
``val`` (or ``validation``) and ``test``, each with the same class folders, they are the split, and
without ``val`` about one in ten pictures of ``train`` takes its place. Otherwise pictures are split
by hash of their paths, each class about 70 % train, 10 % val and 20 % test.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from hetero.data import Images, Skipped, Split, by_picture
from hetero.data._pictures import printable, unusable
from hetero.data._walk import class_folders
from hetero.data.folder import SPLIT_FOLDERS
from hetero.preprocess import decode


def source(where: str, seed: int = 0) -> Images:
    """The pictures below a folder, each class in every split.

    Args:
        where: The folder.
        seed: Of the split, or of the choice of validation pictures.

    Raises:
        DataError: There is no such folder, or it does not hold what a closed set needs.
    """
    name = f"classes:{where}"
    walk, tops = class_folders(name, where)
    root = walk.root
    entries: list[tuple[str, str, Split]] = []
    given = all(top.name.lower() in SPLIT_FOLDERS for top in tops)
    if given:
        listed = [(top, *walk.look(top)) for top in tops]
        walk.reserve([folder for _, folders, _ in listed for folder in folders])
        for top, folders, beside in listed:
            walk.pass_over(beside, "not in a class folder")
            split = SPLIT_FOLDERS[top.name.lower()]
            for label, found in walk.classes(folders).items():
                entries += [(i, label, split) for i in found]
    else:
        entries = [(i, label, "train") for label, f in walk.classes(tops).items() for i in f]
    refused = unusable(root, root, [i for i, _, _ in entries])
    good = sorted(e for e in entries if e[0] not in refused)
    if given:
        good = _with_validation(good, seed)
    ids = tuple(i for i, _, _ in good)
    made = Images(
        name=name,
        ids=ids,
        labels=tuple(label for _, label, _ in good),
        groups=ids,
        splits=tuple(split for _, _, split in good),
        roles=("both",) * len(good),
        read=lambda row: decode(Path(root) / ids[row]),
        root=Path(root),
        skipped=(*walk.skipped, *(Skipped(printable(i), why) for i, why in refused.items())),
        closed=True,
    )
    return made if given else by_picture(made, seed)


def _with_validation(
    entries: list[tuple[str, str, Split]], seed: int
) -> list[tuple[str, str, Split]]:
    """The entries with about one in ten training pictures made "val", if there are none.

    Each class keeps one to train on.
    """
    if any(split == "val" for _, _, split in entries):
        return entries
    kept: set[str] = set()
    out: list[tuple[str, str, Split]] = []
    for i, label, split in entries:
        held = hashlib.sha256(f"{seed}:{i}".encode()).digest()[0] % 10 == 0
        if split == "train" and held and label in kept:
            split = "val"
        elif split == "train":
            kept.add(label)
        out.append((i, label, split))
    return out
