"""Processes on this machine: each decodes, embeds and writes shards of its own.

No picture crosses from one process to another, so N cores do N times the work of one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from hetero.engines import Outcome, Work
from hetero.errors import ConfigError, DeviceError
from hetero.sharded import Shard

#: Dead workers in a row, with no shard done between them, after which it is no accident.
_DEATHS = 5

#: In a worker, what does a shard, and what it holds open.
_do: Callable[[Shard], Outcome]
_held = contextlib.ExitStack()


def run(work: Work, shards: Iterable[Shard], workers: int, address: str = "") -> Iterator[Outcome]:
    """The outcome of every shard, as they are done.

    Args:
        work: What is done.
        shards: Taken a few at a time, so there may be any number.
        workers: Processes; 0 for none besides this one.
        address: Has to be "".

    Raises:
        ConfigError: There is an address.
        DeviceError: Workers die again and again.
    """
    if address:
        raise ConfigError(f"--address {address!r}: the local engine has none; use --engine ray")
    if not workers:
        with work.open() as do:
            yield from map(do, shards)
        return
    rest, again, deaths = iter(shards), list[Shard](), 0
    while deaths < _DEATHS:
        pending: dict[Future[Outcome], Shard] = {}
        with _pool(work, workers) as pool, contextlib.suppress(BrokenProcessPool):
            while True:
                # As many again wait, so that no worker does.
                while len(pending) < 2 * workers:
                    shard = again.pop() if again else next(rest, None)
                    if shard is None:
                        break
                    try:
                        pending[pool.submit(_one, shard)] = shard
                    except BrokenProcessPool:
                        again.append(shard)
                        raise
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    del pending[future]
                    deaths = 0
                    yield outcome
        again += pending.values()
        deaths += 1
    numbers = ", ".join(str(s) for s in sorted(s.number for s in again))
    raise DeviceError(
        "local engine",
        f"workers died {deaths} times at the shards {numbers}; is memory short? "
        "Take fewer --workers; what was finished is saved",
    )


@contextlib.contextmanager
def _pool(work: Work, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, which end at once when the block is left or this process dies."""
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _begin, (work, reader))
    try:
        yield pool
    finally:
        writer.close()
        pool.shutdown(wait=True, cancel_futures=True)
        reader.close()


def _begin(work: Work, host: Connection) -> None:
    """Make this process ready for shards; `host` never says anything, but it may fall silent."""
    global _do
    # Ctrl-C reaches every process of a terminal; who decides is the one that started this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(host,), daemon=True).start()
    _do = _held.enter_context(work.open())


def _leave_with(host: Connection) -> None:
    """End this process when the other end of the pipe is closed, as the system does for the dead.

    Whatever is half written then has no name yet.
    """
    with contextlib.suppress(EOFError, OSError):
        host.recv_bytes()
    os._exit(1)


def _one(shard: Shard) -> Outcome:
    return _do(shard)
