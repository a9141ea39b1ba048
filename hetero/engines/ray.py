"""Ray Data: a pool of actors on the machines of a Ray cluster, or on this one.

Every machine has to see the same files under the same paths (pictures, bundle and output folder)
and to have this package. Ray starts an actor anew whose process or machine died, and gives it the
shard again that it was at.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from typing import Any

from hetero.engines import Outcome, Work
from hetero.errors import DeviceError, require
from hetero.sharded import Shard

EXTRA = "ray"

#: Shards for each worker that are in Ray's memory at a time: a few ids each, and no pictures.
_WINDOW = 64


def run(work: Work, shards: Iterable[Shard], workers: int, address: str = "") -> Iterator[Outcome]:
    """The outcome of every shard, as they are done.

    Args:
        work: What is done.
        shards: Taken some at a time, so there may be any number.
        workers: Actors, each on a CPU of its own.
        address: Of a cluster, as `ray.init` takes it: "auto", "HOST:PORT", "ray://HOST:PORT"; ""
            for the one that this program is connected to, or one of its own on this machine.

    Raises:
        MissingExtraError: Ray is not installed.
        DeviceError: The cluster cannot be reached, or failed.
    """
    # Before Ray is imported: nothing is sent anywhere, and what it logs goes to its own files.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray, data = require("ray", EXTRA), require("ray.data", EXTRA)
    workers = max(1, workers)
    rest, ours = iter(shards), not ray.is_initialized()
    try:
        if ours:
            _connect(ray, workers, address)
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        while window := list(islice(rest, _WINDOW * workers)):
            rows = [{"shard": shard.to_json()} for shard in window]
            done = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_args=(work,),
                compute=data.ActorPoolStrategy(size=workers),
                batch_size=1,
                num_cpus=1,
            )
            for row in done.iter_rows():
                yield Outcome(
                    shard=int(row["shard"]),
                    rows=int(row["rows"]),
                    skipped=int(row["skipped"]),
                    failed=str(row["failed"]),
                    exit_code=int(row["exit_code"]),
                )
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:300]
        raise DeviceError("ray engine", f"{line}; what was finished is saved") from error
    finally:
        if ours and ray.is_initialized():
            ray.shutdown()


def _connect(ray: Any, workers: int, address: str) -> None:
    """Join the cluster at an address, or start one on this machine with a CPU for each worker."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        ray.init(address=address, **quiet)
    else:
        # "local": whatever RAY_ADDRESS says. Only ids and counts pass through its memory.
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=256 << 20,
            **quiet,
        )


class _Actor:
    """A worker: opens the work once, does a shard a call."""

    def __init__(self, work: Work) -> None:
        self._held = ExitStack()  # lasts as long as the actor
        self._do = self._held.enter_context(work.open())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        done = [asdict(self._do(Shard.from_json(str(text)))) for text in batch["shard"]]
        return {name: [one[name] for one in done] for name in done[0]}
