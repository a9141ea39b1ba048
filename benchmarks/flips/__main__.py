"""Do new classifiers break less if they are held to the old one, and at what error?

    python -m benchmarks.flips cifar10 --data benchmarks.data.cifar10:PATH
    python -m benchmarks.flips cifar10 --data benchmarks.data.cifar10:PATH --quick

The old model sees half of the training pictures, the new ones all of them. Every method is tried at
several strengths with all seeds; the strength with the least relative NFR at no more than a point
of error more than plain training is chosen on validation pictures. The plain models of all seeds
are the ensembles, and ELODI's students are held to those; so are the students whose ensemble has
the old model of their seed among its members, which may cost no error at all. Every published
figure is of test pictures.

Budget: the full form takes about 180 CPU minutes: 66 models of 100,000 pictures each (80 epochs of
1,250), two to three minutes a model on a busy core. Few pictures and many epochs, because
the claims are about models that fit their pictures; the table says how far these do, and --pictures
and --epochs change it. --quick shows in two minutes that it runs from end to end and proves
nothing. --large takes all training pictures and a wider network, for a night or a GPU. Stopped, the
same command goes on where it was.

Raw results go to benchmarks/results/flips-NAME.json (flips-NAME-quick.json in the quick form).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.flips.study import (
    JUDGED,
    MOST_ERROR,
    SIZES,
    SWEEP,
    USUAL_ERROR,
    Job,
    best,
    done,
    fewer,
    first,
    held,
    last,
    members,
    name_of,
    rest,
    score,
    sweep,
)
from benchmarks.lab import machine, parser, save
from hetero import data as sources


def main() -> None:
    """Train, choose, train, score, write."""
    arguments = parser(__doc__, ["cifar10"])
    arguments.set_defaults(data=None)
    form = arguments.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true")
    form.add_argument("--large", action="store_true")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--pictures", type=int, help="training pictures of a new model")
    arguments.add_argument("--epochs", type=int)
    args = arguments.parse_args()
    if not args.data:
        arguments.error("name the pictures: --data benchmarks.data.cifar10:PATH")
    size = SIZES["quick" if args.quick else "large" if args.large else "full"]
    given = {k: v for k in ("pictures", "epochs") if (v := getattr(args, k))}
    size = replace(size, **given)
    work: Path = args.work / f"flips-{args.name}-{size.name}"
    images = fewer(sources.load(args.data), size.pictures, 1.0, size.test, JUDGED)
    records: dict[str, dict[str, Any]] = {}
    # Children read these as they start.
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "30000"}

    def at(job: Job) -> tuple[Path, ...]:
        return (work / job.folder,)

    def against_old(job: Job, split: str) -> dict[str, Any]:
        return score(at(Job("old", job.seed)), at(job), images, split)

    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:

        def train(jobs: Sequence[Job]) -> None:
            pending = {pool.submit(done, j, args.data, size, work): j for j in jobs}
            for task in as_completed(pending):
                job = pending[task]
                records[job.folder] = task.result()
                print(f"{job.folder}: {records[job.folder]['cpu_s']} CPU s", flush=True)

        for seed in size.seeds:
            (work / f"seed-{seed}").mkdir(parents=True, exist_ok=True)
        train(first(size))
        # One job a seed that stores the old logits before the others share them.
        tried = sweep(size)
        each = len(tried) // len(size.seeds)
        train(tried[::each])
        train([job for at, job in enumerate(tried) if at % each])
        plain = [against_old(Job("none", s), "val") for s in size.seeds]
        validated, tested = (
            {
                method: {
                    w: [against_old(held(method, s, w, size), split) for s in size.seeds]
                    for w in weights
                }
                for method, weights in SWEEP.items()
            }
            for split in ("val", "test")
        )
        kept = {
            method: best(scores, plain, MOST_ERROR.get(method, USUAL_ERROR))
            for method, scores in validated.items()
        }
        train(rest(size, kept))
        train(last(size))
    names = {m: name_of(m, w) for m, w in kept.items()}
    beside = ("none", "kl-temperature-1", "logit-focus-20")
    names |= {n: n for n in beside}
    seeds = []
    for n, s in enumerate(size.seeds):
        scores = {method: tested[method][weight][n] for method, weight in kept.items()}
        scores |= {name: against_old(Job(name, s), "test") for name in beside}
        for name in ("elodi", "elodi-and-old"):
            scores[name] = score(at(Job("elodi-old", s)), at(Job(name, s)), images, "test")
        fitted = {label: records[Job(name, s).folder]["fitted"] for label, name in names.items()}
        seeds.append({"seed": s, "scores": scores, "fitted": fitted})
    old, new = (tuple(work / x for x in members(name, size)) for name in ("old", "none"))
    suffix = "" if size.name == "full" else f"-{size.name}"
    option = "" if size.name == "full" else f" --{size.name}"
    option += "".join(f" --{k} {v}" for k, v in given.items())
    save(
        args.results / f"flips-{args.name}{suffix}.json",
        {
            "command": f"python -m benchmarks.flips {args.name}{option}",
            "machine": machine(),
            "size": asdict(size),
            "cpu_s": round(sum(r["cpu_s"] for r in records.values())),
            "models": len(records),
            "macs": next(iter(records.values()))["macs"],
            "chosen": kept,
            "sweep": {
                method: {
                    f"{w:g}": {"val": scores, "test": tested[method][w]}
                    for w, scores in by_weight.items()
                }
                for method, by_weight in validated.items()
            },
            "sweep_plain": plain,
            "seeds": seeds,
            "ensemble": score(old, new, images, "test"),
        },
    )


if __name__ == "__main__":
    main()
