"""Engines: who runs a bulk job's shards, and where; one module each, found by its name.

An engine is a module of this folder; the command line names it by its file name, and a dotted path
names a user's own. It offers:

    run(work, shards, workers, address)   the outcome of every shard, in any order

Engines know nothing of pictures. What they are handed is picklable, opened once in each process and
then called with shard after shard; it writes its results itself, whole or not at all, and the same
bytes for the same shard, so that an engine may run a shard twice. A worker that dies costs the
shard it was at, which is run again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, runtime_checkable

from hetero import _plugins
from hetero.sharded import Shard


@dataclass(frozen=True)
class Outcome:
    """What became of a shard.

    Attributes:
        shard: Its number.
        rows: Vectors written.
        skipped: Pictures that have none.
        failed: Why the job cannot go on, in a line, or "".
        exit_code: Of that failure; see `hetero.errors`.
    """

    shard: int
    rows: int = 0
    skipped: int = 0
    failed: str = ""
    exit_code: int = 0


@runtime_checkable
class Work(Protocol):
    """A bulk job as a worker gets it; picklable."""

    def open(self) -> AbstractContextManager[Callable[[Shard], Outcome]]:
        """Loads the model; what it gives does one shard a call and raises nothing of ours."""
        ...


def module(name: str) -> ModuleType:
    """The module of an engine.

    Raises:
        ConfigError: There is none of this name; the message lists those there are.
    """
    return _plugins.load(__name__, name)
