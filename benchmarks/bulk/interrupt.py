"""Kills a bulk job again and again, at random, and looks whether anything is lost or there twice.

Half of the kills come after a random time since the start, so that loading, listing and verifying
are hit; the others a random moment after a random number of shards, so that writing is. Who is
killed, and how, is drawn too. Whenever a run comes to its end its folder is compared with that of a
run nobody disturbed, byte by byte, and the job begins anew in an empty folder.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: The main process, one of its workers, all of them at once; or Ctrl-C, which reaches all.
WAYS = ("main", "worker", "all", "ctrl-c")


@dataclass
class Tally:
    """What the kills met.

    Attributes:
        kills: By whom they hit.
        moments: By what was there already: "no job", "no shard", "some shards", "all shards".
        ends: Runs that came to their end and were compared.
        resumed: Those among them that had been killed before.
        differences: What a compared folder had more, less or otherwise; empty if all is well.
        wrong_exits: Exit codes that are neither 0 nor those of the kill.
        orphans: Processes that outlived a killed main process by ten seconds.
    """

    kills: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    ends: int = 0
    resumed: int = 0
    differences: list[str] = field(default_factory=list)
    wrong_exits: list[int] = field(default_factory=list)
    orphans: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "kills": dict(self.kills), "moments": dict(self.moments)}


def differences(ours: Path, reference: Path) -> list[str]:
    """What two folders of shards do not have in common, to the byte."""
    out = []
    for part in (".", "shards", "ledger"):
        a, b = ({p.name for p in (f / part).iterdir() if p.is_file()} for f in (ours, reference))
        # The lock, and what a killed write left without a name, are no results.
        a, b = ({n for n in names if not n.startswith(".")} for names in (a, b))
        out += [f"{part}/{name} is only in one" for name in sorted(a ^ b)]
        _, other, unreadable = filecmp.cmpfiles(ours / part, reference / part, a & b, shallow=False)
        out += [f"{part}/{name} differs" for name in (*other, *unreadable)]
    return out


def interrupt(
    command: list[str], folder: Path, reference: Path, times: int, seed: int, span_s: float
) -> Tally:
    """So many kills of a command that embeds into `folder`.

    Args:
        command: All words, without ``--output``.
        folder: Made and removed again and again.
        reference: The same job's folder, finished without a kill.
        times: Kills.
        seed: Of who, how and when.
        span_s: About what an undisturbed run takes.
    """
    rng, tally = random.Random(seed), Tally()
    shards = len(list((reference / "ledger").glob("*.json")))
    shutil.rmtree(folder, ignore_errors=True)
    killed = False
    while sum(tally.kills.values()) < times:
        run = _start(command, folder)
        alive = _until(run, folder, rng, shards, span_s)
        while alive and sum(tally.kills.values()) < times:
            way = _kill(run, rng, tally, folder, shards)
            killed = killed or bool(way)
            if way != "worker":
                break
            # The job goes on without that worker, and may be hit again.
            alive = _until(run, folder, rng, shards, span_s)
        code = run.wait()
        if code == 0:
            _compare(tally, folder, reference, killed)
            killed = False
        elif code not in (-signal.SIGKILL, 130):
            tally.wrong_exits.append(code)
    if folder.exists():
        run = _start(command, folder)
        if (code := run.wait()) == 0:
            _compare(tally, folder, reference, True)
        else:
            tally.wrong_exits.append(code)
    return tally


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command, "--output", str(folder), "--quiet"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _until(
    run: subprocess.Popen[bytes], folder: Path, rng: random.Random, shards: int, span_s: float
) -> bool:
    """Wait for the moment drawn; whether the run is still going on."""
    end = time.monotonic() + rng.uniform(0, span_s)
    count = rng.randrange(shards)
    if rng.random() < 0.5:
        end += 100 * span_s  # it is the shards that say when
    else:
        count = shards + 1
    while run.poll() is None and time.monotonic() < end and _done(folder) <= count:
        time.sleep(0.005)
    if count <= shards:
        time.sleep(rng.uniform(0, 0.1))
    return run.poll() is None


def _done(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return len([n for n in os.listdir(folder / "ledger") if not n.startswith(".")])
    return 0


def _kill(
    run: subprocess.Popen[bytes], rng: random.Random, tally: Tally, folder: Path, shards: int
) -> str:
    """Who was hit, or "" if nobody was there any more."""
    import psutil

    way = rng.choice(WAYS)
    done, begun = _done(folder), (folder / "job.json").exists()
    try:
        family = psutil.Process(run.pid).children(recursive=True)
        # Python's own helper of a spawned process is no worker.
        workers = [p for p in family if "spawn_main" in " ".join(p.cmdline())]
        if way == "worker" and not workers:
            way = "main"
        if way == "worker":
            rng.choice(workers).kill()
        elif way == "main":
            run.kill()
            tally.orphans += len(psutil.wait_procs(family, timeout=10)[1])
        else:
            os.killpg(run.pid, signal.SIGKILL if way == "all" else signal.SIGINT)
    except (psutil.Error, ProcessLookupError):
        return ""
    tally.kills[way] += 1
    if not begun:
        moment = "no job"
    elif not done:
        moment = "no shard"
    else:
        moment = "some shards" if done < shards else "all shards"
    tally.moments[moment] += 1
    return way


def _compare(tally: Tally, folder: Path, reference: Path, killed: bool) -> None:
    tally.ends += 1
    tally.resumed += killed
    tally.differences += differences(folder, reference)
    shutil.rmtree(folder)


def embed_command(bundle: Path, data: str, *words: str) -> list[str]:
    """``hetero embed`` by this interpreter."""
    return [sys.executable, "-m", "hetero.cli", "embed", str(bundle), "--data", data, *words]
