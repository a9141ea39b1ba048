"""Sharded: a folder of vectors too many for one file, and the ledger that accounts for each.

    vectors/
      job.json               whose vectors, of what, made by which file, kept how
      shards/000000.parquet  ids and vectors of the first so many pictures
      ledger/000000.json     what went into it and what came out, by hash

A shard and its line in the ledger are written whole, the line last: a shard counts as done if its
line is there and its file has the hash that the line says. So whatever is killed, at whichever
byte, leaves shards that are done and shards that are to be done, and a shard done twice is the same
file twice.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hetero import sinks
from hetero._files import json_text, make_folder, sha256, write_json, write_together
from hetero._ledger import SCHEMA, Entry, Job, Left, Shard, ids_digest, read
from hetero.errors import BundleError, ConfigError
from hetero.space import Embeddings
from hetero.storage import unpack

__all__ = ["JOB", "SCHEMA", "Account", "Entry", "Job", "Left", "Shard", "Sharded", "ids_digest"]

JOB = "job.json"


@dataclass(frozen=True)
class Sharded:
    """A folder of shards, to be read one shard at a time.

    Attributes:
        root: The folder.
        job: What it holds.
    """

    root: Path
    job: Job

    @classmethod
    def open(cls, root: Path) -> Sharded:
        """The vectors in a folder.

        Raises:
            BundleError: There are none, or the folder is from a newer version.
        """
        if not (root / JOB).exists():
            raise BundleError(f"{root}: no folder of vectors, it has no {JOB}; see `hetero embed`")
        return cls(root, read(root / JOB, Job))

    @classmethod
    def begin(cls, root: Path, job: Job) -> Sharded:
        """A folder for these vectors, new or with some of them in it already.

        Raises:
            ConfigError: It was begun as another job, or holds something else.
            BundleError: Its job cannot be read.
        """
        if (root / JOB).exists():
            made = cls.open(root)
            made.job.must_be(job, root)
            return made
        if root.exists() and (not root.is_dir() or any(_visible(root))):
            raise ConfigError(f"{root}: not empty and no folder of vectors; give another --output")
        write_json(root / JOB, job.model_dump(mode="json", by_alias=True))
        return cls(root, job)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While this lasts no other run writes here; what killed ones left half written is removed.

        Raises:
            ConfigError: Another run does.
        """
        import fcntl

        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{self.root}: another run is writing there; wait for it, or end it"
                ) from None
            except OSError:  # a file system without locks
                pass
            for folder in ("shards", "ledger"):
                for torn in make_folder(self.root / folder).glob(".*"):
                    torn.unlink(missing_ok=True)
            yield

    @cached_property
    def sink(self) -> Any:
        """What reads and writes the files."""
        return sinks.module(self.job.sink)

    def path(self, number: int) -> Path:
        """Where a shard's file is."""
        return self.root / "shards" / f"{number:06}{self.sink.SUFFIX}"

    def line(self, number: int) -> Path:
        """Where its line of the ledger is."""
        return self.root / "ledger" / f"{number:06}.json"

    def entry(self, number: int) -> Entry:
        """A shard's line, after it was found to be of this job and its file to be as it says.

        Raises:
            BundleError: The shard is not there, torn, altered, or of another job.
        """
        found = read(self.line(number), Entry)
        if (found.shard, found.job) != (number, self.job.digest):
            raise BundleError(f"{self.line(number)}: of another shard or job")
        path = self.path(number)
        try:
            got = sha256(path)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
        if got != found.output_sha256:
            raise BundleError(f"{path}: torn or altered: its hash is not the ledger's")
        return found

    def write(self, shard: Shard, rows: np.ndarray[Any, Any], entry: Mapping[str, Any]) -> Entry:
        """The line of a shard that was just written, both whole.

        Args:
            shard: Which, with the ids of all its pictures.
            rows: Packed vectors of those that were not skipped, in order.
            entry: "inputs_sha256" and "skipped" of the line; the rest is known here.
        """
        job = self.job
        left = {item.at for item in entry["skipped"]}
        ids = tuple(i for at, i in enumerate(shard.ids) if at not in left)
        texts = {
            "hetero.schema": SCHEMA,
            "hetero.space_name": job.space_name,
            "hetero.space_digest": job.space_digest,
            "hetero.dim": str(job.dim),
            "hetero.made_by": job.made_by,
            "hetero.storage": job.storage,
            "hetero.model_sha256": job.model_sha256,
            "hetero.shard": str(shard.number),
        }
        raw = self.sink.encode(ids, rows, texts)
        line = Entry(
            shard=shard.number,
            job=job.digest,
            space_digest=job.space_digest,
            bundle_sha256=job.bundle_sha256,
            model_sha256=job.model_sha256,
            rows=len(ids),
            output=self.path(shard.number).name,
            output_sha256=hashlib.sha256(raw).hexdigest(),
            **entry,
        )
        text = json_text(line.model_dump(mode="json", by_alias=True))
        # The one that vouches for the other comes last.
        write_together({self.path(shard.number): raw, self.line(shard.number): text})
        return line

    def read(self, number: int) -> Embeddings:
        """The vectors of one shard, as unit rows.

        Raises:
            BundleError: See `entry`; or the file is of another space.
        """
        return self._rows(self.entry(number))

    def _rows(self, entry: Entry) -> Embeddings:
        job, path = self.job, self.path(entry.shard)
        ids, rows, texts = self.sink.decode(path)
        said = (texts.get("hetero.space_digest"), texts.get("hetero.dim"), rows.dtype.name)
        if said != (job.space_digest, str(job.dim), job.storage) or len(ids) != entry.rows:
            raise BundleError(f"{path}: not the vectors that {self.root / JOB} promises")
        return unpack(job.space, ids, rows, job.made_by)

    def __iter__(self) -> Iterator[Embeddings]:
        """The vectors shard by shard, so that a collection of any size needs the memory of one.

        Raises:
            BundleError: A shard is missing or altered; `hetero embed` again makes it.
        """
        return (self.read(number) for number in range(self.job.shards))

    def load(self) -> Embeddings:
        """All vectors at once.

        Raises:
            BundleError: A shard is missing or altered; or no picture could be embedded.
        """
        parts = list(self)
        rows = np.concatenate([p.vectors for p in parts])
        return Embeddings(
            self.job.space, tuple(i for p in parts for i in p.ids), rows, self.job.made_by
        )

    def verify(self) -> Account:
        """The account of every picture listed: each has one vector or one reason why not.

        The ids of vectors and of skipped pictures, in the order of the shards, are hashed and have
        to give the hash of the ids that were listed at the beginning: one lost, added, doubled or
        moved would change it. One pass; the memory of one shard.

        Raises:
            BundleError: A shard is missing, torn or altered, or the account does not come out.
        """
        skipped = 0

        def ids() -> Iterator[str]:
            nonlocal skipped
            for number in range(self.job.shards):
                entry = self.entry(number)
                kept, left = iter(self._rows(entry).ids), {x.at: x.id for x in entry.skipped}
                skipped += len(left)
                for at in range(entry.rows + len(left)):
                    yield left[at] if at in left else next(kept, "")

        count, found = ids_digest(ids())
        if (count, found) != (self.job.rows, self.job.ids_sha256):
            raise BundleError(
                f"{self.root}: {count} pictures accounted for, {self.job.rows} were listed, and "
                "their ids do not agree; delete the ledger and embed again"
            )
        return Account(self.job.shards, count - skipped, skipped)


@dataclass(frozen=True)
class Account:
    """What a verified folder holds.

    Attributes:
        shards: Files.
        rows: Pictures with exactly one vector.
        skipped: Pictures without, whose reasons stand in the ledger.
    """

    shards: int
    rows: int
    skipped: int


def _visible(root: Path) -> Iterator[Path]:
    """What is in a folder besides what a write that was killed left there."""
    return (p for p in root.iterdir() if not p.name.startswith(".job.json."))
