"""What sources of picture files share: which files are usable, and who asks whom."""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from hetero.data import Images, Skipped, Split, _noted, open_set_split
from hetero.errors import DataError
from hetero.preprocess import decode

#: Of what is noted between runs; a `decode` that refuses more than before needs a new number.
_SCHEMA = "hetero.usable/1"

#: Whether sources list files without opening them.
_unopened = contextvars.ContextVar("unopened", default=False)

#: Size in bytes and time of change in ns: what tells a changed file.
_Facts = tuple[int, int]


class Entry(NamedTuple):
    """A picture file as a source lists it, before anybody has looked inside.

    Attributes:
        id: Its path relative to the source's folder, forward slashes.
        label: Its class.
        split: Where the source says so, else None.
        role: "query", "gallery" or "both" where the source says so, else "".
        group: "" for a group of its own.
    """

    id: str
    label: str
    split: Split | None = None
    role: str = ""
    group: str = ""


def collection(
    name: str,
    place: Path,
    root: Path,
    entries: Sequence[Entry],
    skipped: Sequence[Skipped],
    seed: int,
    labelled: bool = True,
) -> Images:
    """The usable ones of these files as a collection, read from disk when asked for.

    Args:
        name: For people and messages, for example "folder:photos".
        place: The folder or table that was named; verdicts on its files are kept under it.
        root: What the ids are relative to.
        entries: In any order.
        skipped: What the source itself passed over.
        seed: Of the split, where the entries have none.
        labelled: Whether the labels are classes; see `Images`.

    Raises:
        DataError: No file is usable, or all are of one class, or no class has two of them.
    """
    refused = unusable(place, root, [entry.id for entry in entries])
    passed_over = (*skipped, *(Skipped(printable(i), reason) for i, reason in refused.items()))
    good = [entry for entry in entries if entry.id not in refused]
    made = assembled(name, good, passed_over, seed, lambda i: decode(root / i), labelled)
    return replace(made, root=root)


def assembled(
    name: str,
    usable: Sequence[Entry],
    skipped: Sequence[Skipped],
    seed: int,
    read: Callable[[str], UInt8[np.ndarray, "h w 3"]],
    labelled: bool = True,
) -> Images:
    """These pictures as a collection.

    Args:
        name: As for `collection`.
        usable: In any order; each can be decoded.
        skipped: What was passed over.
        seed: As for `collection`.
        read: Id -> the decoded picture.
        labelled: As for `collection`.

    Raises:
        DataError: As for `collection`.
    """
    good, passed_over = sorted(usable, key=lambda entry: entry.id), tuple(skipped)
    labels = [entry.label for entry in good]
    why = f"; {len(passed_over)} files were skipped" if passed_over else ""
    if not good:
        first = f", first {passed_over[0].path}: {passed_over[0].reason}" if passed_over else ""
        raise DataError(f"{name}: no usable picture{why}{first}")
    if labelled and len(set(labels)) == 1:
        raise DataError(
            f"{name}: all usable pictures ({len(good)}) are of one class, {labels[0]!r}{why}; "
            "search needs several classes"
        )
    if labelled and len(set(labels)) == len(labels):
        raise DataError(
            f"{name}: each of the {len(labels)} classes has one picture{why}; "
            "a query needs another picture of its class to find"
        )
    given = {entry.label: entry.split for entry in good if entry.split is not None}
    splits = with_validation(given, seed) if given else open_set_split(labels, seed)
    ids = tuple(entry.id for entry in good)
    grouped = any(entry.group for entry in good)
    roles = [
        entry.role or ("both" if grouped or splits[entry.label] == "train" else turn)
        for entry, turn in zip(good, alternate(ids, labels), strict=True)
    ]
    return Images(
        name=name,
        ids=ids,
        labels=tuple(labels),
        groups=tuple(entry.group or entry.id for entry in good),
        splits=tuple(splits[label] for label in labels),
        roles=tuple(roles),
        read=lambda row: read(ids[row]),
        skipped=passed_over,
        labelled=labelled,
    )


@contextlib.contextmanager
def unopened() -> Iterator[None]:
    """While this lasts, every file that is listed is taken for a picture."""
    token = _unopened.set(True)
    try:
        yield
    finally:
        _unopened.reset(token)


def odd_name(name: str) -> str:
    """Why a name cannot be an id or a label, or "" if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
        return "the name has a line break or another control character"
    return ""


def printable(name: str) -> str:
    """The name with what a terminal or a JSON file could not hold written as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def alternate(ids: Sequence[str], labels: Sequence[str]) -> list[str]:
    """A role for each picture, "gallery" or "query": turns within its class, by the ids' hashes.

    A class of one picture is in the gallery, as a distractor; any other class has both.
    """
    members: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    roles = [""] * len(ids)
    for rows in members.values():
        rows.sort(key=lambda row: hashlib.sha256(ids[row].encode()).digest())
        for turn, row in enumerate(rows):
            roles[row] = "query" if turn % 2 else "gallery"
    return roles


def with_validation(splits: Mapping[str, Split], seed: int) -> dict[str, Split]:
    """Class -> split, with about one in seven training classes made "val" if there is none.

    Args:
        splits: Class -> split as given.
        seed: Of the choice, by hash of the class name.
    """
    train = [label for label, split in splits.items() if split == "train"]
    if "val" in splits.values():
        return dict(splits)
    place = {name: hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in train}
    order = sorted(train, key=place.__getitem__)
    some = [name for name in order if int.from_bytes(place[name], "big") % 7 == 0] or order[:1]
    # Two classes at least are left to learn from.
    held = set(some[: max(0, len(train) - 2)])
    return {name: "val" if name in held else split for name, split in splits.items()}


def unusable(place: Path, root: Path, ids: Sequence[str]) -> dict[str, str]:
    """Id -> reason, for the files that `decode` refuses.

    Every file is decoded once, by a few threads. Those that passed are noted in the user's cache
    folder with their size and time of change; a later run opens only what is not noted there. What
    was checked before an interruption is noted too.

    Args:
        place: The folder or table that was named.
        root: What the ids are relative to.
        ids: Relative paths; all UTF-8.
    """
    if _unopened.get():
        return {}
    store = _noted.store("usable", place)
    known = _recall(store)
    passed: dict[str, _Facts] = {}
    todo: list[tuple[str, _Facts]] = []
    refused: dict[str, str] = {}
    for i in ids:
        try:
            status = (root / i).stat()
        except OSError as error:
            refused[i] = f"cannot be read ({error.strerror})"
            continue
        facts = (status.st_size, status.st_mtime_ns)
        if not stat.S_ISREG(status.st_mode):
            refused[i] = "not a regular file"
        elif known.get(i) == facts:
            passed[i] = facts
        else:
            todo.append((i, facts))

    def judge(file: tuple[str, _Facts]) -> str:
        path = root / file[0]
        try:
            decode(path)
        except DataError as error:
            return str(error).removeprefix(f"{path}: ")
        return ""

    try:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for (i, facts), reason in zip(todo, pool.map(judge, todo), strict=True):
                if reason:
                    refused[i] = reason
                else:
                    passed[i] = facts
    finally:
        if passed != known:
            _note(store, passed)
    return refused


def _recall(store: Path) -> dict[str, _Facts]:
    """What passed in an earlier run; nothing after one with another Pillow or without a record."""

    def build(kept: Mapping[str, Any]) -> dict[str, _Facts]:
        return {i: (int(size), int(time)) for i, (size, time) in kept["usable"].items()}

    return _noted.recall(store, _SCHEMA, build) or {}


def _note(store: Path, usable: Mapping[str, _Facts]) -> None:
    found = {"usable": dict(usable)}
    _noted.note(store, _SCHEMA, found, "the pictures will be checked again next time")
