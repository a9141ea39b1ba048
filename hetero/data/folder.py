"""A folder of pictures with one sub-folder per class: ``folder:PATH``.

Folders below a class folder belong to that class. If the only folders in PATH are ``train``,
``val`` (or ``validation``) and ``test``, each with class folders, they are the split, and without
``val`` about one in seven classes of ``train`` takes its place; otherwise classes are split by hash
of their names. Within a class of val and test, pictures take turns as query and gallery, by hash of
their paths.
"""

from __future__ import annotations

from pathlib import Path

from hetero.data import Images, Split
from hetero.data._pictures import Entry, collection
from hetero.data._walk import Walk, class_folders
from hetero.errors import DataError

#: Name of a folder to the split it holds.
SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "validation": "val",
    "test": "test",
}


def source(where: str, seed: int = 0) -> Images:
    """The pictures below a folder.

    Every file is opened once, to find the unusable ones before training does; see `skipped`.

    Args:
        where: The folder.
        seed: Of the split, where the folder has none.

    Raises:
        DataError: There is no such folder, or it does not hold what the protocol needs.
    """
    name = f"folder:{where}"
    walk, tops = class_folders(name, where)
    root = walk.root
    if all(top.name.lower() in SPLIT_FOLDERS for top in tops):
        return _with_its_split(name, walk, tops, seed)
    entries = [Entry(i, label) for label, ids in walk.classes(tops).items() for i in ids]
    return collection(name, root, root, entries, walk.skipped, seed)


def _with_its_split(name: str, walk: Walk, tops: list[Path], seed: int) -> Images:
    missing = {"train", "test"} - {SPLIT_FOLDERS[top.name.lower()] for top in tops}
    if missing:
        raise DataError(
            f"{name}: there is {', '.join(f'{top.name}/' for top in tops)} but no {min(missing)}/; "
            f"add it, or name the one folder whose classes are to be split: {name}/{tops[0].name}"
        )
    entries: list[Entry] = []
    splits: dict[str, Split] = {}
    listed = [(top, *walk.look(top)) for top in tops]
    walk.reserve([folder for _, folders, _ in listed for folder in folders])
    for top, folders, loose in listed:
        split = SPLIT_FOLDERS[top.name.lower()]
        if not folders:
            raise DataError(f"{name}: {top.name}/ has no class folders; expected {top.name}/CLASS/")
        walk.pass_over(loose, "not in a class folder")
        found = walk.classes(folders)
        both = sorted(label for label in found if splits.setdefault(label, split) != split)
        if both:
            raise DataError(
                f"{name}: {len(both)} classes, first {both[0]!r}, are in both "
                f"{splits[both[0]]}/ and {top.name}/; the open-set protocol tests on classes that "
                f"training never saw: to have the classes split, name one folder, {name}/train; "
                f"for a classifier of these classes, classes:{walk.root}"
            )
        entries += [Entry(i, label, split) for label, ids in found.items() for i in ids]
    return collection(name, walk.root, walk.root, entries, walk.skipped, seed)
