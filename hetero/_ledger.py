"""The ledger of `hetero.sharded`: what a job is, and one line for each of its shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hetero import _schemas
from hetero._files import canonical_json
from hetero.errors import BundleError, ConfigError, DataError
from hetero.space import Space
from hetero.storage import Storage

SCHEMA = "hetero.sharded/1"

_HASH = Field(pattern=r"^[0-9a-f]{64}$")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


M = TypeVar("M", bound=_Frozen)


@dataclass(frozen=True)
class Shard:
    """Some of a collection's pictures, one after another.

    Attributes:
        number: 0 for the first.
        rows: Their row numbers in the collection.
        ids: Their ids.
    """

    number: int
    rows: tuple[int, ...]
    ids: tuple[str, ...]

    def to_json(self) -> str:
        """The shard as a text."""
        return json.dumps({"number": self.number, "rows": self.rows, "ids": self.ids})

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """The shard that `to_json` wrote."""
        raw = json.loads(text)
        return cls(raw["number"], tuple(raw["rows"]), tuple(raw["ids"]))


class Job(_Frozen):
    """What a folder holds; two runs with equal jobs write equal files.

    Attributes:
        space_name, space_digest, dim: Of every vector.
        bundle_sha256: Of the weights.
        preprocess_sha256: Of what makes pixels of a picture.
        model: "pytorch", or format and precision of a file: "onnx int8".
        model_sha256: Of that file; of the weights for PyTorch.
        made_by: Who embeds, with its version.
        data, split: As named on the command line; "" for all splits.
        seed: Of the split.
        rows: Pictures listed.
        ids_sha256: Of their ids, each followed by a line break, in order.
        shard_rows: Pictures of a shard; the last may have fewer.
        storage: See `hetero.storage`.
        sink: See `hetero.sinks`.
    """

    schema_: str = Field(default=SCHEMA, alias="schema")
    space_name: str
    space_digest: str = _HASH
    dim: int = Field(ge=1)
    bundle_sha256: str = _HASH
    preprocess_sha256: str = _HASH
    model: str
    model_sha256: str = _HASH
    made_by: str
    data: str
    split: str = ""
    seed: int = 0
    rows: int = Field(ge=1)
    ids_sha256: str = _HASH
    shard_rows: int = Field(ge=1)
    storage: Storage = "float32"
    sink: str = "parquet"

    @property
    def space(self) -> Space:
        """Where the vectors live."""
        return Space(self.space_name, self.space_digest, self.dim)

    @property
    def shards(self) -> int:
        """How many there are when all is done."""
        return -(-self.rows // self.shard_rows)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: every line of a ledger says whose it is."""
        text = canonical_json(self.model_dump(mode="json", by_alias=True))
        return hashlib.sha256(text.encode()).hexdigest()

    def must_be(self, other: Job, folder: Path) -> None:
        """Nothing, if `other` can be gone on with in a folder that holds this.

        Raises:
            ConfigError: It is another job; the message says in what.
        """
        for name, what in _WORDS.items():
            was, now = getattr(self, name), getattr(other, name)
            if was != now:
                short = (str(x)[:12] + "…" if name.endswith("256") else repr(x) for x in (was, now))
                raise ConfigError(
                    f"{folder}: begun with {what} {next(short)}, now it is {next(short)}; "
                    "go on with what it was begun with, or give another --output"
                )


#: What has to be the same to go on, in words.
_WORDS = {
    "space_digest": "space",
    "dim": "dimension",
    "bundle_sha256": "the weights",
    "preprocess_sha256": "preprocessing",
    "model": "model",
    "model_sha256": "model file",
    "made_by": "runtime",
    "storage": "--store",
    "sink": "--sink",
    "shard_rows": "--shard-rows",
    "split": "--split",
    "rows": "number of pictures",
    "ids_sha256": "pictures",
}


class Left(_Frozen):
    """A picture that has no vector.

    Attributes:
        at: Its place in the shard, from 0.
        id: Its id.
        reason: Why.
    """

    at: int = Field(ge=0)
    id: str
    reason: str


class Entry(_Frozen):
    """The ledger's line of one shard.

    Attributes:
        shard: Its number.
        job: Digest of the job.
        space_digest, bundle_sha256, model_sha256: As in the job.
        inputs_sha256: Of lines "id NUL SHA-256 of the picture's bytes", in order; of one that
            cannot be read, nothing stands after the NUL.
        rows: Vectors in the file.
        skipped: Pictures without one.
        output: The file's name.
        output_sha256: Of its bytes.
    """

    schema_: str = Field(default=SCHEMA, alias="schema")
    shard: int = Field(ge=0)
    job: str = _HASH
    space_digest: str = _HASH
    bundle_sha256: str = _HASH
    model_sha256: str = _HASH
    inputs_sha256: str = _HASH
    rows: int = Field(ge=0)
    skipped: tuple[Left, ...] = ()
    output: str
    output_sha256: str = _HASH


def ids_digest(ids: Iterable[str]) -> tuple[int, str]:
    """How many ids there are, and the SHA-256 that a job has of them; one pass.

    Raises:
        DataError: An id has a line break.
    """
    count, found = 0, hashlib.sha256()
    for i in ids:
        if "\n" in i:
            raise DataError(f"id {i!r} contains a line break")
        found.update(f"{i}\n".encode())
        count += 1
    return count, found.hexdigest()


def input_line(i: str, digest: str) -> bytes:
    """A picture's line of what `Entry.inputs_sha256` is of."""
    return f"{i}\0{digest}\n".encode()


def read(path: Path, kind: type[M]) -> M:
    """A file of ours.

    Raises:
        BundleError: It is missing, torn, altered, or from a newer version.
    """
    try:
        raw = json.loads(path.read_bytes())
        _schemas.check(
            path,
            raw.get("schema") if isinstance(raw, dict) else None,
            SCHEMA,
            again="embed into another folder",
        )
        return kind.model_validate(raw)
    except FileNotFoundError:
        raise BundleError(f"{path}: there is no such file; `hetero embed` writes it") from None
    except ValidationError as error:
        raise BundleError(f"{path}: {error.errors()[0]['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read ({str(error)[:200]})") from error
