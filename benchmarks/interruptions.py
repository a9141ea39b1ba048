"""Every stage killed again and again, at random; nothing may be lost, and nothing be there twice.

    python -m benchmarks.interruptions                     100 kills of each stage, about an hour
    python -m benchmarks.interruptions --stages check,export --times 20

Each stage runs as a user runs it (`hetero train query … --resume`), on 300 of the embedded
pictures. Twice it is left alone. What both runs wrote alike, file by file and, in JSON, value by
value, is what has to be there; times differ, and are not asked for. Then it is killed at a moment
drawn from the CPU time it takes (and a quarter more, so that some runs end: on a busy machine none
would within the time by the clock), by SIGKILL to it alone, SIGKILL to it and its workers, or
Ctrl-C, and started again by the same command until it ends; what it wrote is compared, and it
begins anew in an empty folder. `hetero embed` into a folder has a benchmark of its own,
`benchmarks.bulk`.

So that a hundred starts do not take an hour to import PyTorch, each run is a fork of a process
that has imported it, made before anything has run. Raw counts go to
benchmarks/results/interruptions.json after each stage.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lab import RESULTS, machine, save

#: SIGKILL to the command alone, to its whole family, or Ctrl-C, which reaches all.
WAYS = ("main", "all", "ctrl-c")

#: Units of what differs from run to run.
NOISY = ("ms", "s", "MiB", "1/s")

#: Nothing here takes so long.
MOST_S = 1800

#: Pictures a class of the small collection, and classes.
PER_CLASS, CLASSES = 5, 60

_NET = "--backbone resnet:width=4 --batch 32 --keep-going --resume"
_FILES = "--format onnx --format tflite --precision fp32 --precision int8"


@dataclass(frozen=True)
class Stage:
    """What is killed.

    Attributes:
        command: With {data}, {gallery}, {other}, {query}, {exported} and {out} filled in.
        start: What the folder for results holds at first: a name of those, or "".
        modules: Imported before anything is forked.
    """

    command: str
    start: str = ""
    modules: tuple[str, ...] = ()


STAGES: Mapping[str, Stage] = {
    "train gallery": Stage(f"train gallery -d {{data}} --dim 16 --epochs 12 {_NET} -o {{out}}"),
    "train query": Stage(f"train query {{gallery}} --epochs 12 --views 2 {_NET} -o {{out}}"),
    "upgrade train": Stage(
        f"upgrade train --old {{gallery}} -d {{data}} --sweep --influences 1 --regressions 0,10 "
        f"--epochs 4 --views 2 {_NET} -o {{out}}"
    ),
    "pct train": Stage(f"pct train -d {{data}} --epochs 8 --views 2 {_NET} -o {{out}}"),
    "search": Stage(
        "search {gallery} --space elastic --max-macs 1M --epochs 1 --trials 24 --probes 1 "
        "--finalists 2 --tries 2 --try-epochs 1 --own-epochs 1 --views 1 --batch 32 --keep-going "
        "--resume -o {out}",
        modules=("optuna",),
    ),
    "lqf train": Stage(
        "lqf train {gallery} -d {data} --epochs 3 --batch 32 -o {out}/a.safetensors"
    ),
    "align": Stage("align {other} {gallery} -d {data} -o {out}/aligned"),
    "export": Stage(
        f"export {{out}} {_FILES} --resume", "query", ("onnxscript", "onnxruntime", "litert_torch")
    ),
    "embed": Stage("embed {query} -d {data} -o {out}/v.safetensors"),
    "index": Stage(
        "index build hnsw:{out} {vectors} --replace", modules=("faiss", "hetero.index.hnsw")
    ),
    "check": Stage(
        "check {exported} --gallery {gallery} -d {data} --format onnx --format tflite "
        "--length quick --resume -o {out}",
        modules=("matplotlib.pyplot", "jinja2"),
    ),
}


@dataclass
class Tally:
    """What the kills met.

    Attributes:
        kills: By whom they hit.
        ends: Runs that came to their end and were compared.
        resumed: Those among them that had been killed before.
        compared: Values and files that two runs left alone have in common.
        differing: Those that they do not: times, mostly.
        differences: What a compared folder had more, less or otherwise; empty if all is well.
        wrong_exits: Exit codes that are neither the undisturbed run's nor those of the kill.
        orphans: Processes that outlived a killed command by ten seconds.
        cpu_s: What an undisturbed run takes.
    """

    kills: Counter[str] = field(default_factory=Counter)
    ends: int = 0
    resumed: int = 0
    compared: int = 0
    differing: int = 0
    differences: list[str] = field(default_factory=list)
    wrong_exits: list[int] = field(default_factory=list)
    orphans: int = 0
    cpu_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "kills": dict(self.kills)}


def collection(folder: Path) -> Path:
    """A folder of class folders with some of the embedded pictures."""
    from PIL import Image

    from hetero import data
    from hetero.preprocess import Preprocess

    images = data.load("emoji")
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(images.labels):
        rows.setdefault(label, []).append(row)
    some = [(k, v[:PER_CLASS]) for k, v in sorted(rows.items()) if len(v) >= PER_CLASS][:CLASSES]
    for label, of in some:
        (folder / label).mkdir(parents=True)
        for n, pixels in enumerate(images.pixels(of, Preprocess(32))):
            Image.fromarray(pixels).save(folder / label / f"{n}.png")
    return folder


# -- what a run leaves behind ---------------------------------------------------------------------


def left_by(folder: Path) -> dict[str, str]:
    """Everything in a folder: path, and in JSON the key, to its content or the hash of that."""
    found: dict[str, str] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        # A lock, or what a killed write left without a name, is no result; nor is what libraries
        # printed.
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        if name.startswith("logs/") or path.name == "stderr.txt":
            continue
        found[name] = "there"
        if path.suffix == ".json":
            found |= {f"{name}{k}": v for k, v in flat(json.loads(path.read_text()))}
        elif path.suffix == ".safetensors":
            found |= {f"{name}/{k}": v for k, v in arrays(path)}
        else:
            found[f"{name} content"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def arrays(path: Path) -> Iterator[tuple[str, str]]:
    """Hashes of the arrays of a file, and its texts."""
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        yield from (file.metadata() or {}).items()
        for name in file.keys():  # noqa: SIM118  it is no mapping
            array = file.get_tensor(name)
            content = hashlib.sha256(array.tobytes()).hexdigest()
            yield name, f"{array.dtype} {array.shape} {content}"


def flat(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every value in nested JSON, by the keys that lead to it.

    Measurements of time and memory are left out: two may be equal by chance, and whether there is
    a p99 depends on how often a model ran in the time it had.
    """
    if isinstance(value, list):
        value = [x for x in value if not (isinstance(x, dict) and x.get("unit") in NOISY)]
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            timed = str(key).startswith("latency_ms") or str(key).endswith(("_s", "_ms"))
            if not (timed and isinstance(inner, list | float)):
                yield from flat(inner, f"{at}/{key}")
    else:
        yield at, json.dumps(value)


def differences(
    ours: Mapping[str, str], first: Mapping[str, str], second: Mapping[str, str]
) -> list[str]:
    """What a run has more, less or otherwise than two that were left alone have in common."""
    out = [
        f"{key}: {ours.get(key, 'missing')}"
        for key, value in first.items()
        if second.get(key) == value and ours.get(key) != value
    ]
    known = first.keys() | second.keys()
    return out + [f"{key}: too much" for key in ours if ours[key] == "there" and key not in known]


# -- runs, and their ends -------------------------------------------------------------------------


def fork(words: list[str], log: Path) -> int:
    """Start `hetero` with these words in a child of this process, a session of its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        sys.argv = ["hetero", *words]
        from hetero.cli import main

        main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except KeyboardInterrupt:  # before or after the command line catches it
        code = 130
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, after_cpu_s: float | None = None) -> int | None:
    """The exit code, negative for a signal; None where the run goes on after that much work."""
    begun = time.monotonic()
    while True:
        done, status = os.waitpid(pid, 0 if after_cpu_s is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if after_cpu_s is not None and used_s(pid) >= after_cpu_s:
            return None
        if time.monotonic() > begun + MOST_S:
            raise SystemExit(f"a run does not end within {MOST_S} s")
        time.sleep(0.005 + (after_cpu_s or 0) / 100)  # looking costs time itself


def used_s(pid: int) -> float:
    """CPU seconds so far of a run and of what it started."""
    import psutil

    total = 0.0
    try:
        run = psutil.Process(pid)
        for one in (run, *run.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    except psutil.Error:  # one of them has ended meanwhile
        pass
    return total


def kill(pid: int, way: str, tally: Tally, whole: int | None, log: Path) -> int | None:
    """End a run and what it started.

    Returns:
        The exit code, if the run came to its own end, `whole`, before it was hit; else None.
    """
    import psutil

    try:
        family = psutil.Process(pid).children(recursive=True)
        if way == "main":
            os.kill(pid, signal.SIGKILL)
        else:
            os.killpg(pid, signal.SIGKILL if way == "all" else signal.SIGINT)
            # A worker of a local device has a session of its own, as on a real one.
            for one in family if way == "all" else ():
                one.kill()
    except (psutil.Error, ProcessLookupError):
        return ended(pid)
    if (code := ended(pid)) == whole:
        return code
    tally.kills[way] += 1
    if code not in (-signal.SIGKILL, 130):
        wrong(tally, code, way, log)
    tally.orphans += len(psutil.wait_procs(family, timeout=10)[1])
    return None


def wrong(tally: Tally, code: int | None, way: str, log: Path) -> None:
    """Count an exit code that should not be, and say what the run said."""
    tally.wrong_exits.append(code if code is not None else 0)
    print(f"exit code {code} after {way}: {log.read_text(errors='replace')[-2000:]}", flush=True)


def interrupt(stage: Stage, places: Mapping[str, str], work: Path, times: int, seed: int) -> Tally:
    """So many kills of a stage, and what they did to its results."""
    rng, tally = random.Random(seed), Tally()
    out, log = work / "out", work / "log.txt"
    words = [*stage.command.format(**places, out=out).split(), "--quiet"]

    def afresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        if stage.start:
            shutil.copytree(places[stage.start], out)
        else:
            out.mkdir()

    alone, codes = [], []
    for _ in range(2):
        afresh()
        before = _of_children_s()
        codes.append(ended(fork(words, log)))
        tally.cpu_s = _of_children_s() - before
        alone.append(left_by(out))
    if codes[0] != codes[1] or codes[0] not in (0, 1, 3):
        raise SystemExit(f"{' '.join(words)}: exit codes {codes}; see {log}")
    common = {k for k, v in alone[0].items() if alone[1].get(k) == v}
    tally.compared, tally.differing = (
        len(common),
        len(alone[0].keys() | alone[1].keys()) - len(common),
    )
    afresh()
    killed = False
    while sum(tally.kills.values()) < times or killed:
        pid = fork(words, log)
        enough = sum(tally.kills.values()) >= times
        code = ended(pid, None if enough else rng.uniform(0, 1.25 * tally.cpu_s))
        if code is None:
            time.sleep(rng.uniform(0, 0.01))  # the system counts in steps as long as this
            code = kill(pid, rng.choice(WAYS), tally, codes[0], log)
        if code is None:
            killed = True
            continue
        if code != codes[0]:
            wrong(tally, code, "none", log)
        tally.ends += 1
        tally.resumed += killed
        tally.differences += differences(left_by(out), *alone)
        killed = False
        afresh()
    return tally


def _of_children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def made(work: Path) -> dict[str, str]:
    """The small collection, two bundles, one with exported files, and vectors."""
    places = {name: str(work / name) for name in ("data", "gallery", "other", "query", "exported")}
    places["vectors"] = str(work / "vectors.safetensors")
    collection(work / "data")
    net = "--backbone resnet:width=4 --batch 32 --epochs 2 --keep-going -q"
    lines = (
        f"train gallery -d {places['data']} --dim 16 {net} -o {places['gallery']}",
        f"train gallery -d {places['data']} --dim 16 --seed 1 {net} -o {places['other']}",
        f"train query {places['gallery']} --views 1 {net} -o {places['query']}",
        f"embed {places['gallery']} -d {places['data']} -o {places['vectors']} -q",
        f"export {places['exported']} {_FILES} -q",
    )
    for line in lines:
        if "export " in line:
            shutil.copytree(places["query"], places["exported"])
        if (code := ended(fork(line.split(), work / "log.txt"))) != 0:
            raise SystemExit(f"hetero {line}: exit code {code}; see {work / 'log.txt'}")
    return places


def main() -> int:
    """Kill, compare, write; exit code 1 if anything was lost or there twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "interruptions.json")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1", "MPLBACKEND": "agg"}
    chosen = args.stages.split(",")
    if unknown := set(chosen) - STAGES.keys():
        raise SystemExit(f"--stages: {min(unknown)!r}; there are {', '.join(STAGES)}")
    base = {"command": "python -m benchmarks.interruptions", "times": args.times, "seed": args.seed}
    found: dict[str, Any] = {**base, "machine": machine(), "stages": {}}
    # A fork of a process with threads is a process that may wait for one of them for ever.
    for name in ("torch", "scipy.stats", "sklearn", "onnx", *_modules(chosen)):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="hetero-interruptions-") as folder:
        work = Path(folder)
        places = made(work)
        for name in chosen:
            tally = interrupt(STAGES[name], places, work, args.times, args.seed)
            # Of other stages, what is there by now: several of these may run side by side.
            if args.output.exists():
                kept = json.loads(args.output.read_text())
                if {k: kept[k] for k in base} == base:
                    found["stages"] = kept["stages"]
            found["stages"][name] = tally.to_json()
            save(args.output, found)
            print(f"{name}: {tally.to_json()}", flush=True)
    bad = [
        n
        for n, s in found["stages"].items()
        if s["differences"] or s["wrong_exits"] or s["orphans"]
    ]
    print(f"{len(found['stages'])} stages; not as they should be: {', '.join(bad) or 'none'}")
    return int(bool(bad))


def _modules(names: list[str]) -> list[str]:
    return [module for name in names for module in STAGES[name].modules]


def section(raw: Mapping[str, Any]) -> str:
    """The part of docs/results.md."""
    stages = raw["stages"]
    lines = [
        "## Every stage, killed at random",
        "",
        f"`{raw['command']}`: SIGKILL or Ctrl-C at a moment drawn from the CPU time a stage takes, "
        "and the same command again. What two undisturbed runs write alike has to be there in the "
        "end: files by their bytes, arrays one by one, JSON value by value.",
        "",
        "| stage | kills | runs compared after a kill | files and values compared | differences | "
        "other exit codes | processes left over |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, s in stages.items():
        lines.append(
            f"| {name} | {sum(s['kills'].values())} | {s['resumed']} | {s['compared']:,} | "
            f"{len(s['differences'])} | {len(s['wrong_exits'])} | {s['orphans']} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
