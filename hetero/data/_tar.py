"""A tar file as a shard: where its pictures lie, and what is known of them, noted between runs."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, get_args

from hetero.data import Skipped, Split, _noted
from hetero.data._pictures import odd_name, printable
from hetero.errors import DataError
from hetero.preprocess import decode

#: Of what is noted between runs: a new number where more is refused, or samples are read otherwise.
_SCHEMA = "hetero.shard/1"
_PICTURES = frozenset(
    ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")
)
_PICKLED = frozenset(("pyd", "pkl", "pickle", "pth", "pt"))
_ROLES = ("", "query", "gallery", "both")
#: A label or a description that is larger is not one.
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Sample:
    """One picture of a shard.

    Attributes:
        key: Its name, up to the first dot.
        offset, size: Where it lies in the shard, in bytes.
        label: Its class, or "".
        split: As written, or "".
        role: As written, or "".
        group: As written, or "".
        refused: Why it cannot be used, or "".
    """

    key: str
    offset: int
    size: int
    label: str = ""
    split: str = ""
    role: str = ""
    group: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Shard:
    """What is in a tar file.

    Attributes:
        path: The file.
        facts: Its size in bytes and its time of change in ns, when it was gone through.
        samples: Its pictures.
        skipped: Members passed over.
    """

    path: Path
    facts: tuple[int, int]
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]

    def bytes_of(self, sample: Sample) -> bytes:
        """A picture's bytes, as they lie in the file.

        Raises:
            DataError: The file cannot be read, or is another one by now.
        """
        try:
            with self.path.open("rb") as file:
                if _facts(file) != self.facts:
                    raise DataError(f"{self.path}: changed while it was in use; start again")
                return _bytes(file, sample.offset, sample.size)
        except OSError as error:
            raise DataError(
                f"{self.path}: {sample.key}: cannot be read ({error.strerror})"
            ) from error


def indexed(name: str, path: Path) -> Shard:
    """The shard as it was noted in an earlier run, or gone through now, each picture decoded once.

    Args:
        name: Of the collection, for messages.
        path: A tar file.

    Raises:
        DataError: It cannot be read as one, or a sample's description is wrong.
    """
    store = _noted.store("shards", path)
    try:
        with path.open("rb") as file:
            facts = _facts(file)
            if known := _recalled(store, path, facts):
                return known
            with tarfile.open(fileobj=file, mode="r:") as archive:
                samples, skipped = _gone_through(f"{name}: {path.name}", archive, file)
    except tarfile.TarError as error:
        raise DataError(
            f"{name}: {path.name} is cut off, damaged or compressed ({error}); shards are plain "
            "tar files: fetch it again, or decompress it"
        ) from error
    except OSError as error:
        raise DataError(f"{name}: {path.name} cannot be read ({error.strerror})") from error
    shard = Shard(path, facts, tuple(samples), tuple(skipped))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        judged = pool.map(lambda sample: _judged(shard, sample), samples)
        shard = replace(shard, samples=tuple(judged))
    _note(store, shard)
    return shard


def _judged(shard: Shard, sample: Sample) -> Sample:
    """The sample, refused if its picture cannot be decoded."""
    raw = shard.bytes_of(sample)
    try:
        decode(raw)
    except DataError as error:
        return replace(sample, refused=str(error).removeprefix(f"{len(raw)} bytes: "))
    return sample


def _gone_through(
    at: str, archive: tarfile.TarFile, file: BinaryIO
) -> tuple[Sequence[Sample], Sequence[Skipped]]:
    """The samples of an archive, and what was passed over."""
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    skipped: list[Skipped] = []
    for member in archive:
        if member.isdir():
            continue
        if reason := _unfit(member):
            skipped.append(Skipped(printable(member.name), reason))
            continue
        key, extension = _parts(member.name)
        members.setdefault(key, {})[extension] = member
    samples = []
    for key, parts in members.items():
        pictures = [member for extension, member in parts.items() if extension in _PICTURES]
        skipped += [
            Skipped(printable(member.name), "the sample has a picture already")
            for member in pictures[1:]
        ]
        if pictures:
            told = _description(f"{at}: {key}", parts, file)
            samples.append(Sample(key, pictures[0].offset_data, pictures[0].size, **told))
    return samples, skipped


def _unfit(member: tarfile.TarInfo) -> str:
    """Why a member cannot be part of a sample, or ""."""
    base = member.name.rpartition("/")[2]
    if base.startswith("."):
        return "hidden"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    if reason := odd_name(member.name):
        return reason
    key, extension = _parts(member.name)
    if extension in _PICKLED:
        return "pickled, which is never opened"
    return "" if key and extension else "its name has no extension"


def _parts(name: str) -> tuple[str, str]:
    """Key and extension: what is before and behind the first dot of the last part of the path."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


def _description(at: str, parts: dict[str, tarfile.TarInfo], file: BinaryIO) -> dict[str, str]:
    """Label, split, role and group, as far as they are given."""
    texts = {}
    for extension in ("cls", "json"):
        if member := parts.get(extension):
            if member.size > _LARGEST:
                raise DataError(f"{at}.{extension}: {member.size} bytes; more than a description")
            try:
                texts[extension] = _bytes(file, member.offset_data, member.size).decode().strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{at}.{extension}: not UTF-8") from error
    found = {"label": texts.get("cls", "")}
    if "json" in texts:
        found |= _of_json(f"{at}.json", texts["json"])
    if reason := odd_name(found["label"]) or odd_name(found.get("group", "")):
        raise DataError(f"{at}: label or group: {reason}")
    if found.get("split") == "validation":
        found["split"] = "val"
    for field, allowed in (("split", ("", *get_args(Split))), ("role", _ROLES)):
        if found.get(field, "") not in allowed:
            raise DataError(
                f"{at}: {field} is {found[field]!r}; expected {', '.join(filter(None, allowed))}"
            )
    return found


def _of_json(at: str, text: str) -> dict[str, str]:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{at}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{at}: expected an object, got {type(value).__name__}")
    found = {}
    for field in ("label", "split", "role", "group"):
        given = value.get(field)
        if isinstance(given, bool) or not isinstance(given, str | int | None):
            raise DataError(f"{at}: {field} is {given!r:.80}; expected text or a whole number")
        if given is not None:
            found[field] = str(given)
    return found


def _bytes(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _facts(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _recalled(store: Path, path: Path, facts: tuple[int, int]) -> Shard | None:
    """What was noted of this very file; else nothing."""

    def build(kept: Mapping[str, Any]) -> Shard | None:
        if kept["facts"] != [*facts]:
            return None
        samples = tuple(Sample(*row) for row in kept["samples"])
        return Shard(path, facts, samples, tuple(Skipped(**row) for row in kept["skipped"]))

    return _noted.recall(store, _SCHEMA, build)


def _note(store: Path, shard: Shard) -> None:
    found = {
        "facts": [*shard.facts],
        "samples": [astuple(sample) for sample in shard.samples],
        "skipped": [asdict(skip) for skip in shard.skipped],
    }
    _noted.note(store, _SCHEMA, found, "the shard is gone through again next time")
