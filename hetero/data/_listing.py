"""What a bulk job reads: ids in a fixed order, one after another, no file opened.

A billion names fit in no list, so a folder is walked anew each time it is asked; what is held in
memory is one folder's names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hetero import data
from hetero.data import Images, Skipped, Split
from hetero.data._pictures import odd_name, printable
from hetero.data._walk import existing
from hetero.errors import DataError

#: Sources whose pictures are all files below one folder.
_FOLDERS = ("folder", "unlabelled")


@dataclass(frozen=True)
class Listing:
    """A collection as a stream.

    Attributes:
        name: For people: "folder:photos".
        root: Where pictures are files: ``root / id`` is one. None where only the collection can
            read them, by row.
        rows: Gives (row of the collection, id) in order, as often as it is called, always the same.
        skipped: Files passed over, known after `rows` was gone through.
    """

    name: str
    root: Path | None
    rows: Callable[[], Iterator[tuple[int, str]]]
    skipped: list[Skipped] = field(default_factory=list)


def listing(spec: str, split: Split | None = None, seed: int = 0) -> Listing:
    """The pictures that a command line names, for one pass after another.

    Of a folder all files at any depth, in the order of their paths, whatever its classes; of
    anything else, or of one split, what the source lists.

    Args:
        spec: As for `hetero.data.load`.
        split: Only this one; the collection is then held in memory.
        seed: Of the split, where the source makes one.

    Raises:
        DataError: Nothing is there.
        ConfigError: No such source.
    """
    name, where = data.named(spec)
    if split is None and name in _FOLDERS:
        whole = f"{name}:{where}"
        root = existing(whole, where, "a folder of pictures")
        skipped: list[Skipped] = []
        return Listing(whole, root, lambda: _walked(root, skipped), skipped)
    return of_images(data.listed(spec, seed), split)


def of_images(images: Images, split: Split | None = None) -> Listing:
    """A collection that is in memory already, or one split of it.

    Raises:
        DataError: The split is empty.
    """
    rows = images.rows(split) if split else range(len(images))
    if not rows:
        raise DataError(f"{images.name}: the {split} split is empty")
    return Listing(
        images.name,
        images.root,
        lambda: ((row, images.ids[row]) for row in rows),
        list(images.skipped),
    )


def _walked(root: Path, skipped: list[Skipped]) -> Iterator[tuple[int, str]]:
    """Every file below a folder, by path; a link to a folder that is below it is not followed."""
    skipped.clear()
    home = os.path.realpath(root)
    entered = set[tuple[int, int]]()
    todo: list[Iterator[tuple[str, bool]]] = [_entries(root, "", skipped)]
    row = 0
    while todo:
        path, is_folder = next(todo[-1], ("", False))
        if not path:
            todo.pop()
        elif not is_folder:
            yield row, path
            row += 1
        elif reason := _elsewhere(root / path, home, entered):
            skipped.append(Skipped(printable(path), reason))
        else:
            todo.append(_entries(root, path, skipped))


def _elsewhere(folder: Path, home: str, entered: set[tuple[int, int]]) -> str:
    """Why a folder is not entered, or "" if it is, which is noted."""
    try:
        status = folder.stat()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    real = os.path.realpath(folder)
    inside = os.path.commonpath((home, real)) == home
    if (folder.is_symlink() and inside) or (status.st_dev, status.st_ino) in entered:
        return "a link to a folder that is read elsewhere"
    entered.add((status.st_dev, status.st_ino))
    return ""


def _entries(root: Path, inside: str, skipped: list[Skipped]) -> Iterator[tuple[str, bool]]:
    """Paths below `root` of what is in one of its folders, and whether each is a folder.

    A folder stands where its files' paths will: as if its name ended in "/".
    """
    prefix = f"{inside}/" if inside else ""
    found: list[tuple[str, bool]] = []
    try:
        with os.scandir(root / inside) as scan:
            for entry in scan:
                path = prefix + entry.name
                if reason := _unfit(entry):
                    skipped.append(Skipped(printable(path), reason))
                else:
                    found.append((path, entry.is_dir()))
    except OSError as error:
        if not inside:
            raise DataError(f"{root}: cannot be listed ({error.strerror})") from error
        skipped.append(Skipped(printable(inside), f"cannot be listed ({error.strerror})"))
        return iter(())
    found.sort(key=lambda item: f"{item[0]}/" if item[1] else item[0])
    return iter(found)


def _unfit(entry: os.DirEntry[str]) -> str:
    """Why an entry is passed over, or ""."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        if not (entry.is_dir() or entry.is_file()):
            return "a broken link" if entry.is_symlink() else "not a regular file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return odd_name(entry.name)
