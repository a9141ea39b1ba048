"""Where pictures come from: a list of what is there, its split, and a way to read it.

A source is a module of this folder with ``source(where, seed) -> Images``; the command line names
it as ``NAME`` or ``NAME:WHERE``: ``emoji``, ``folder:photos/``, ``manifest:list.csv``,
``shards:train-{000..009}.tar``.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from hetero import _plugins
from hetero._files import canonical_json
from hetero.errors import DataError
from hetero.preprocess import Preprocess

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Images:
    """A collection: ids, labels, split and protocol, with pixels read when asked for.

    Attributes:
        name: For people: "emoji", "folder:photos".
        ids: Unique.
        labels: Class of each picture.
        groups: Pictures of one group never answer each other's queries (a design family, a
            camera). Where a collection has no groups, each picture's id is its group.
        splits: "train", "val" or "test"; a class is in one split only, unless `closed`.
        roles: "query", "gallery" or "both", for evaluation.
        read: Row number -> decoded RGB uint8 (h, w, 3), any size.
        skipped: Files passed over.
        labelled: Whether `labels` are classes; if not, each picture is a label of its own, and
            evaluation asks whether a query finds the very same picture in the gallery.
        closed: Whether the classes are the same in every split and pictures are split instead, for
            classifiers; pictures of one class and group are in one split. Search is not measured
            on such a collection: its test classes were trained on.
        root: Where pictures are files of their own: ``root / id`` is the file. None elsewhere.
    """

    name: str
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    roles: tuple[str, ...]
    read: Callable[[int], UInt8[np.ndarray, "h w 3"]]
    skipped: tuple[Skipped, ...] = field(default=())
    labelled: bool = True
    closed: bool = False
    root: Path | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        for name in ("labels", "groups", "splits", "roles"):
            if len(getattr(self, name)) != n:
                raise DataError(f"{self.name}: {len(getattr(self, name))} {name} for {n} ids")
        if n == 0:
            why = f"; {len(self.skipped)} files were skipped" if self.skipped else ""
            raise DataError(f"{self.name}: no usable picture{why}")
        double = [i for i, count in Counter(self.ids).items() if count > 1]
        if double:
            raise DataError(f"{self.name}: id {double[0]!r} occurs more than once")
        for name, allowed in (
            ("splits", SPLITS),
            ("roles", ("query", "gallery", "both")),
        ):
            odd = set(getattr(self, name)) - set(allowed)
            if odd:
                raise DataError(
                    f"{self.name}: unknown {name[:-1]} {min(odd)!r}; there are {', '.join(allowed)}"
                )
        if self.closed:
            self._check_closed()
            return
        where: dict[str, str] = {}
        for label, split in zip(self.labels, self.splits, strict=True):
            if where.setdefault(label, split) != split:
                raise DataError(
                    f"{self.name}: class {label!r} is in both {where[label]} and {split}; "
                    "open-set evaluation needs classes that training never saw"
                )

    def _check_closed(self) -> None:
        new = {x for x, s in zip(self.labels, self.splits, strict=True) if s != "train"}
        if unseen := sorted(new - set(self.classes("train"))):
            raise DataError(
                f"{self.name}: class {unseen[0]!r} has no training picture; a classifier is tested "
                "on pictures of the classes that it was trained on"
            )
        place: dict[tuple[str, str], str] = {}
        for label, group, split in zip(self.labels, self.groups, self.splits, strict=True):
            if (first := place.setdefault((label, group), split)) != split:
                raise DataError(
                    f"{self.name}: pictures of group {group!r} of class {label!r} are in both "
                    f"{first} and {split}; what belongs together has to be in one split"
                )

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, split: Split) -> tuple[int, ...]:
        """Row numbers of one split."""
        return tuple(row for row, s in enumerate(self.splits) if s == split)

    def classes(self, split: Split) -> tuple[str, ...]:
        """Sorted labels of one split."""
        return tuple(sorted({self.labels[row] for row in self.rows(split)}))

    def __repr__(self) -> str:
        """One line; nothing of each picture is in it."""
        splits = ", ".join(f"{n:,} {s}" for s in SPLITS if (n := self.splits.count(s)))
        return f"Images({self.name}: {splits}; {len(set(self.labels)):,} classes)"

    @property
    def digest(self) -> str:
        """SHA-256 of ids, labels, groups, splits and roles: the split's checksum."""
        table = [
            list(r)
            for r in zip(self.ids, self.labels, self.groups, self.splits, self.roles, strict=True)
        ]
        return hashlib.sha256(canonical_json(table).encode()).hexdigest()

    def pixels(
        self,
        rows: Sequence[int],
        preprocess: Preprocess,
        on_row: Callable[[], None] | None = None,
        workers: int = 2,
    ) -> UInt8[np.ndarray, "n s s 3"]:
        """The pictures of these rows at the model's input size, decoded by a few threads.

        Args:
            rows: Row numbers, in the order wanted.
            preprocess: Says the size and how to get there.
            on_row: Called by a decoding thread after each picture, for a progress bar.
            workers: Decoding threads.

        Raises:
            DataError: A picture can no longer be read.
        """
        out = np.empty((len(rows), preprocess.size_px, preprocess.size_px, 3), dtype=np.uint8)

        def one(item: tuple[int, int]) -> None:
            at, row = item
            rgb = self.read(row)
            if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
                raise DataError(
                    f"{self.name}: {self.ids[row]!r} was read as {rgb.dtype} {rgb.shape}; "
                    "expected uint8 (height, width, 3)"
                )
            out[at] = preprocess.pixels(rgb)
            if on_row is not None:
                on_row()

        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(one, enumerate(rows)):
                pass
        return out


def load(spec: str, seed: int = 0) -> Images:
    """The collection that a command line names.

    Args:
        spec: ``NAME`` or ``NAME:WHERE``, a source of this folder or a dotted path to one's own; a
            bare path of a folder means ``folder:``, of a .csv or .parquet file ``manifest:``, of a
            .tar file or a folder that has nothing else ``shards:``.
        seed: Of the split, where the source makes one.

    Raises:
        DataError: Nothing usable is there.
        ConfigError: No such source.
    """
    name, where = named(spec)
    images: Images = _plugins.load(__name__, name).source(where, seed)
    return images


def listed(spec: str, seed: int = 0) -> Images:
    """As `load`, but no file is opened: one that cannot be decoded is met when it is read.

    Args:
        spec: As for `load`.
        seed: As for `load`.

    Raises:
        DataError: Nothing is there.
        ConfigError: No such source.
    """
    from hetero.data import _pictures

    with _pictures.unopened():
        return load(spec, seed)


def named(spec: str) -> tuple[str, str]:
    """The source that a command line names, and where it is to look."""
    name, _, where = spec.partition(":")
    if name not in _plugins.names(__name__):
        if Path(spec).suffix.lower() in (".csv", ".parquet"):
            return "manifest", spec
        if Path(spec).suffix.lower() == ".tar" or _holds_shards(Path(spec)):
            return "shards", spec
        if os.path.exists(spec) or (not where and "/" in spec):
            return "folder", spec
    return name, where


def _holds_shards(folder: Path) -> bool:
    """Whether a folder has tar files in it and no other folder, which might be a class."""
    if not folder.is_dir():
        return False
    inside = list(folder.iterdir())
    return any(p.suffix.lower() == ".tar" for p in inside) and not any(p.is_dir() for p in inside)


def by_picture(images: Images, seed: int = 0) -> Images:
    """The same pictures as a closed set: each class about 70 % train, 10 % val and 20 % test.

    Split by hash of class and group, so that pictures of one group stay together and a picture
    keeps its split when others are added. A class whose groups all fell elsewhere gives one of them
    to train.

    Args:
        images: Any labelled collection; its own split is not looked at.
        seed: Of the split.

    Raises:
        DataError: There are no labels.
    """
    if not images.labelled:
        raise DataError(f"{images.name}: no labels; a classifier needs classes")

    def place(label: str, group: str) -> str:
        return hashlib.sha256(f"{seed}:{label}:{group}".encode()).hexdigest()

    keys = list(zip(images.labels, images.groups, strict=True))
    first: dict[str, str] = {}
    for label, group in keys:
        here = place(label, group)
        first[label] = min(here, first.get(label, here), key=_share)

    def split(label: str, group: str) -> Split:
        here = place(label, group)
        share = _share(here)
        if share < 70 or here == first[label]:
            return "train"
        return "val" if share < 80 else "test"

    return replace(
        images,
        splits=tuple(split(*key) for key in keys),
        roles=("both",) * len(images),
        closed=True,
    )


def _share(digest: str) -> int:
    """0 to 99, by hash."""
    return int(digest[:8], 16) % 100


def open_set_split(labels: Sequence[str], seed: int = 0) -> dict[str, Split]:
    """Class -> split, about 60 % train, 10 % val, 30 % test, by hash of the class name.

    A class keeps its split when others are added. With few classes the hash may leave a split
    empty; then classes are taken over in hash order until each has 2, train and test first, as far
    as there are classes.
    """
    classes = sorted(set(labels))

    def place(name: str) -> str:
        return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()

    order = sorted(classes, key=place)
    split: dict[str, Split] = {}
    for name in order:
        share = _share(place(name))
        split[name] = "train" if share < 60 else "val" if share < 70 else "test"
    wanted: tuple[tuple[Split, int], ...] = (("train", 2), ("test", 2), ("val", 2))
    for rank, (name_of, least) in enumerate(wanted):
        # First from what a split can spare, then from those that come later in `wanted`.
        for floors in (dict(wanted), dict(wanted[:rank])):
            for donor in order:
                counts = Counter(split.values())
                if counts[name_of] >= least:
                    break
                spare = counts[split[donor]] - floors.get(split[donor], 0)
                if split[donor] != name_of and spare > 0:
                    split[donor] = name_of
    return split
