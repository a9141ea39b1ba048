"""Pictures in tar files, by WebDataset's convention: ``shards:PATH``.

PATH is a .tar file, a folder of them, or a pattern such as ``shards/train-{000..009}.tar``. Members
of one name up to the first dot are one sample: ``KEY.jpg`` (or another kind of picture), and its
class in ``KEY.cls`` or as ``label`` in ``KEY.json``, where ``split`` (train, val, test), ``role``
(query, gallery, both) and ``group`` may stand too, as in a table; see `hetero.data.manifest`. A
key's id is the key itself, so that packing pictures into other shards changes nothing. Where no
sample at all has a label, the pictures are unlabelled; see `hetero.data.unlabelled`.

Nothing is unpacked. Each shard is gone through once; where its pictures lie, what is known of them
and whether they can be decoded is noted in the user's cache folder, and pictures are read from
their places after that, in any order. Pickled members are never opened.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import UInt8

from hetero.data import Images, Skipped, Split
from hetero.data._pictures import Entry, assembled, printable
from hetero.data._tar import Sample, Shard, indexed
from hetero.errors import DataError
from hetero.preprocess import decode

#: What a pattern stands for at most.
_MOST = 100_000


def source(where: str, seed: int = 0) -> Images:
    """The pictures of some shards.

    Args:
        where: A .tar file, a folder of them, or a pattern with {first..last} or {one,other}.
        seed: Of the split, where the shards have none.

    Raises:
        DataError: A shard is missing, cut off or compressed, a sample's description is wrong, or
            there is nothing to train on; the message names the shard.
    """
    name = f"shards:{where}"
    shards = [indexed(name, path) for path in _files(name, where)]
    place: dict[str, tuple[Shard, Sample]] = {}
    refused: list[Skipped] = [skip for shard in shards for skip in shard.skipped]
    for shard in shards:
        for sample in shard.samples:
            if sample.refused:
                refused.append(Skipped(printable(sample.key), sample.refused))
                continue
            first, _ = place.setdefault(sample.key, (shard, sample))
            if first is not shard:
                raise DataError(
                    f"{name}: {sample.key!r} is in {first.path.name} and in {shard.path.name}; "
                    "keys have to be unique over all shards"
                )
    labelled = not place or any(sample.label for _, sample in place.values())
    if labelled:
        without = [key for key, (_, sample) in place.items() if not sample.label]
        refused += [Skipped(key, "no label: no .cls, no label in its .json") for key in without]
        for key in without:
            del place[key]
        _one_split_each(name, place)
        entries = [_entry(sample) for _, sample in place.values()]
    else:
        entries = _watched(name, sorted(place), seed)

    def read(i: str) -> UInt8[np.ndarray, "h w 3"]:
        shard, sample = place[i]
        return decode(shard.bytes_of(sample))

    return assembled(name, entries, refused, seed, read, labelled)


def _entry(sample: Sample) -> Entry:
    split = cast("Split | None", sample.split or None)
    return Entry(sample.key, sample.label, split, sample.role, sample.group)


def _watched(name: str, keys: Sequence[str], seed: int) -> list[Entry]:
    """Unlabelled pictures: nine in ten to train on, the others to watch it."""
    if len(keys) < 4:
        raise DataError(f"{name}: {len(keys)} pictures; training needs at least four")
    order = sorted(keys, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).hexdigest())
    watched = set(order[: max(2, len(keys) // 10)])
    return [Entry(i, i, "val" if i in watched else "train", "both") for i in keys]


def _one_split_each(name: str, place: dict[str, tuple[Shard, Sample]]) -> None:
    """Nothing, if either no sample has a split or all have, and a class is in one of them."""
    first: dict[str, tuple[str, str]] = {}
    some = any(sample.split for _, sample in place.values())
    for key, (_, sample) in place.items():
        if some and not sample.split:
            raise DataError(f"{name}: {key!r} has no split, and others have; give it to all")
        split, other = first.setdefault(sample.label, (sample.split, key))
        if split != sample.split:
            raise DataError(
                f"{name}: class {sample.label!r} is in {sample.split} ({key!r}) and in {split} "
                f"({other!r}); the open-set protocol tests on classes that training never saw"
            )


def _files(name: str, where: str) -> list[Path]:
    """The tar files that were named, each there."""
    if not where:
        raise DataError(f"{name} no path; write {name}PATH, a .tar file or a folder of them")
    found = [Path(one).expanduser() for one in itertools.islice(expanded(where), _MOST + 1)]
    if len(found) > _MOST:
        raise DataError(f"{name}: the pattern stands for more than {_MOST} files")
    if not found:
        raise DataError(f"{name}: the pattern stands for no file")
    if len(found) == 1 and found[0].is_dir():
        inside = sorted(p for p in found[0].iterdir() if p.suffix.lower() == ".tar")
        if not inside:
            raise DataError(f"{name}: no .tar file in this folder")
        return inside
    for path in found:
        if not path.is_file():
            of = f", the first of {len(found)} that is missing" if len(found) > 1 else ""
            raise DataError(f"{name}: {path}: no such file{of}")
    return found


def expanded(pattern: str) -> Iterator[str]:
    """What a pattern stands for: {000..009} counts, with as many digits, and {a,b} lists."""
    at = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if at is None:
        yield pattern
        return
    first, last, listed = at.groups()
    values: Iterator[str]
    if listed is None:
        values = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    else:
        values = iter(listed.split(","))
    for value in values:
        for rest in expanded(pattern[at.end() :]):
            yield pattern[: at.start()] + value + rest
