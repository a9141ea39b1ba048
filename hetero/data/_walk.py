"""A walk over a tree of folders that no link can make endless."""

from __future__ import annotations

import os
from pathlib import Path

from hetero.data import Skipped
from hetero.data._pictures import odd_name, printable
from hetero.errors import DataError


def existing(name: str, where: str, expected: str) -> Path:
    """The folder that a source was pointed at.

    Args:
        name: Of the collection, for messages: "folder:photos".
        where: What was written.
        expected: What the folder should be.

    Raises:
        DataError: Nothing was written, or it is no folder.
    """
    if not where:
        raise DataError(f"{name} no path; write {name}PATH, {expected}")
    root = Path(where).expanduser()
    if not os.path.isdir(root):
        what = "is a file, not a folder" if os.path.exists(root) else "no such folder"
        raise DataError(f"{name}: {what}; expected {expected}")
    return root


def class_folders(name: str, where: str) -> tuple[Walk, list[Path]]:
    """A walk over a collection of class folders, and its folders at the top.

    Args:
        name: See `existing`.
        where: See `existing`.

    Raises:
        DataError: There is no such folder, or no folder in it.
    """
    walk = Walk(existing(name, where, "a folder with one sub-folder per class"))
    tops, loose = walk.look(walk.root)
    if not tops:
        raise DataError(
            f"{name}: {f'{len(loose)} files but no' if loose else 'empty, no'} class folders; "
            "put the pictures of each class in a sub-folder of their own: CLASS/PICTURE.jpg"
        )
    walk.pass_over(loose, "not in a class folder")
    return walk, tops


class Walk:
    """One pass over a tree: each folder is entered once, so that links cannot make it endless."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: list[Skipped] = []
        self._entered = {self._identity(root)}
        self._reserved: dict[tuple[int, int], Path] = {}

    def look(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Folders and files in a folder, each sorted; what is hidden or broken is passed over."""
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if folder == self.root:
                raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error
            self.pass_over([folder], f"cannot be listed ({error.strerror})")
            return [], []
        folders, files = [], []
        for entry in entries:
            path = folder / entry.name
            try:
                if entry.name.startswith("."):
                    self.pass_over([path], "hidden")
                elif entry.is_dir():
                    folders.append(path)
                elif entry.is_file():
                    files.append(path)
                else:
                    link = entry.is_symlink()
                    self.pass_over([path], "a broken link" if link else "not a regular file")
            except OSError as error:
                self.pass_over([path], f"cannot be read ({error.strerror})")
        return folders, files

    def pass_over(self, paths: list[Path], reason: str) -> None:
        """Put these on the list of what is not used."""
        self.skipped += [Skipped(printable(self._id(path)), reason) for path in paths]

    def reserve(self, folders: list[Path]) -> None:
        """Let class folders be entered as such only, and not through a link in another class."""
        for folder in sorted(folders, key=lambda path: (path.is_symlink(), path)):
            self._reserved.setdefault(self._identity(folder), folder)

    def classes(self, folders: list[Path]) -> dict[str, list[str]]:
        """Label -> ids of all files at any depth, for each of these class folders."""
        self.reserve(folders)
        found: dict[str, list[str]] = {}
        for top in folders:
            if reason := odd_name(top.name):
                self.pass_over([top], reason)
                continue
            found[top.name] = self._below(top)
        return {label: ids for label, ids in found.items() if ids}

    def files(self) -> list[str]:
        """Ids of all files at any depth."""
        folders, loose = self.look(self.root)
        ids = self._ids(loose)
        for folder in folders:
            ids += self._below(folder)
        return ids

    def _below(self, top: Path) -> list[str]:
        todo, ids = [top], list[str]()
        while todo:
            folder = todo.pop()
            try:
                identity = self._identity(folder)
            except OSError as error:
                self.pass_over([folder], f"cannot be read ({error.strerror})")
                continue
            if identity in self._entered or self._reserved.get(identity, folder) != folder:
                self.pass_over([folder], "a link to a folder that is read elsewhere")
                continue
            self._entered.add(identity)
            deeper, files = self.look(folder)
            todo += reversed(deeper)
            ids += self._ids(files)
        return ids

    def _ids(self, files: list[Path]) -> list[str]:
        """Of those files whose path can be an id."""
        ids = []
        for path in files:
            if reason := odd_name(self._id(path)):
                self.pass_over([path], reason)
            else:
                ids.append(self._id(path))
        return ids

    def _id(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @staticmethod
    def _identity(folder: Path) -> tuple[int, int]:
        status = folder.stat()
        return status.st_dev, status.st_ino
