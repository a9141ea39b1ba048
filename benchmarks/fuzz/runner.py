"""Runs cases in worker processes and counts what comes of them."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hetero.errors import HeteroError

#: Address space of a worker beyond what its libraries take.
MEMORY_BYTES = 2 << 30

#: Cases handed to a worker at once.
CHUNK = 200

#: Saved inputs per kind of fault.
KEPT = 5

FINE = ("loaded", "refused")


def _watch(home: Path, outside: list[str]) -> None:
    """Note every file that is opened for writing, made, moved or removed outside of `home`."""
    inside = str(home.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            name, _, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
            names = [name]
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.symlink", "os.link"):
            names = [a for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
        else:
            return
        for item in names:
            if isinstance(item, int):
                continue
            path = os.path.realpath(os.fsdecode(item))
            if not path.startswith(inside) and path != os.devnull:
                outside.append(f"{event} {path}")

    sys.addaudithook(hook)


def _worker(home: Path, seed: int, pipe: Connection, at: Any) -> None:
    """Runs the cases of the ranges that come through the pipe; sends one outcome each."""
    sys.dont_write_bytecode = True  # before libraries are imported below
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.chdir(home)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # native runtimes' own complaints
    from benchmarks.fuzz import targets

    everything = targets.targets(home)
    order = [t for t in everything for _ in range(t.share)]
    for target in everything:  # libraries are imported here, not in a case
        try:
            target.make(random.Random("warm"))[1]()
        except HeteroError:
            pass
        except Exception:
            traceback.print_exc()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    outside: list[str] = []
    _watch(home, outside)
    before = set(home.parent.iterdir())
    pipe.send(("ready", "", "", b""))
    while (some := pipe.recv()) is not None:
        for number in range(*some):
            target = order[number % len(order)]
            raw, load = target.make(random.Random(f"{seed}-{number}"))
            at.value = number
            outcome, detail = "loaded", ""
            try:
                load()
            except HeteroError as error:
                outcome = "refused" if targets.one_line(str(error)) else "unclear message"
                detail = str(error)
            except MemoryError:
                outcome, detail = "memory", traceback.format_exc()
            except BaseException as error:  # everything that is not ours is what is looked for
                outcome = f"traceback: {type(error).__name__}"
                detail = traceback.format_exc()
            strange = set(home.parent.iterdir()) - before
            if outside or strange:
                outcome, detail = "wrote outside", str([*outside, *strange])
                outside.clear()
                before |= strange
            fine = outcome in FINE
            pipe.send((outcome, target.name, "" if fine else detail[-3000:], b"" if fine else raw))
    pipe.close()


def run(count: int, seed: int, folder: Path, timeout_s: float = 30.0) -> dict[str, Any]:
    """Counts by outcome and target; inputs of faults are saved in `folder`."""
    context = multiprocessing.get_context("spawn")
    outcomes: dict[str, Counter[str]] = {}
    faults: list[dict[str, Any]] = []
    begun, number, starts = time.monotonic(), 0, 0
    # In memory where there is such a folder: a case is a file written and read once.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hetero-fuzz-", dir=memory) as top:
        while number < count:
            starts += 1
            if starts > 1000:
                raise SystemExit(f"more than 1000 workers were lost, last at case {number}")
            home = Path(top) / f"worker-{starts}" / "home"
            home.mkdir(parents=True)
            near, far = context.Pipe()
            at = context.Value("q", -1, lock=False)
            worker = context.Process(target=_worker, args=(home, seed, far, at), daemon=True)
            worker.start()
            far.close()
            lost = ""
            try:
                if not near.poll(600):
                    raise SystemExit("a worker did not start within 600 s")
                near.recv()
                end = number
                while number < count and not lost:
                    if number == end:
                        end = min(number + CHUNK, count)
                        near.send((number, end))
                    if not near.poll(timeout_s):
                        lost = "hang"
                        break
                    outcome, name, detail, raw = near.recv()
                    outcomes.setdefault(name, Counter())[outcome] += 1
                    if outcome not in FINE:
                        _save(faults, folder, number, outcome, name, detail, raw)
                    number += 1
                if not lost:
                    near.send(None)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                worker.join(10)
                lost = f"crash: exit {worker.exitcode}"
                if at.value < 0:
                    raise SystemExit(f"a worker ended before its first case: {lost}") from None
            if lost:
                worker.kill()
                worker.join()
                name, raw = _input(Path(top) / f"again-{starts}", seed, number)
                outcomes.setdefault(name, Counter())[lost] += 1
                _save(faults, folder, number, lost, name, "", raw)
                number += 1
            else:
                worker.join(60)
            near.close()
    total: Counter[str] = sum(outcomes.values(), Counter())
    return {
        "count": count,
        "seed": seed,
        "seconds": round(time.monotonic() - begun, 1),
        "workers_started": starts,
        "memory_limit_bytes": MEMORY_BYTES,
        "timeout_s": timeout_s,
        "outcomes": dict(sorted(total.items())),
        "by_target": {k: dict(sorted(v.items())) for k, v in sorted(outcomes.items())},
        "faults": sum(n for k, n in total.items() if k not in FINE),
        "saved": faults,
    }


def _input(home: Path, seed: int, number: int) -> tuple[str, bytes]:
    """Target and input of a case, made again."""
    from benchmarks.fuzz import targets

    home.mkdir(parents=True)
    order = [t for t in targets.targets(home) for _ in range(t.share)]
    target = order[number % len(order)]
    return target.name, target.make(random.Random(f"{seed}-{number}"))[0]


def _save(
    faults: list[dict[str, Any]],
    folder: Path,
    number: int,
    outcome: str,
    name: str,
    detail: str,
    raw: bytes,
) -> None:
    same = sum((f["outcome"], f["target"]) == (outcome, name) for f in faults)
    if same >= KEPT:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"case-{number}.bin"
    path.write_bytes(raw)
    faults.append(
        {"case": number, "outcome": outcome, "target": name, "input": path.name, "detail": detail}
    )
