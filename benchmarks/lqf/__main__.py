"""Linearised fine-tuning against fine-tuning and a linear probe, at few and many samples a class.

    python -m benchmarks.lqf cifar10 --data benchmarks.data.cifar10:PATH

A small leaky ResNet is trained on five of the ten classes and adapted to the five others with 5 to
500 samples a class, three seeds. Each way has its settings chosen by the same validation pictures,
which are none of the samples; fine-tuning may begin with a new head or with the probe's. Scores are
of the official test pictures. Then, of the linearised model: two seeds of the change, the graph
against the Jacobian-vector product and finite differences, and K-FAC against Adam.

About 60 CPU minutes of one core; --quick, some two, shows only that it works end to end, and writes
lqf-NAME-quick.json. What is finished is kept, and taken over when it is started again. Raw results
go to benchmarks/results/lqf-NAME.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lab import machine, parser, save


def main() -> None:
    """Train, score, write."""
    arguments = parser(__doc__, ["cifar10"])
    arguments.add_argument("--quick", action="store_true")
    args = arguments.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "30000"}
    import torch

    from benchmarks.lqf import study as lqf

    torch.set_num_threads(1)
    size = lqf.QUICK if args.quick else lqf.FULL
    work = args.work / f"lqf-{args.name}"
    study = lqf.Study(size, args.data, work)
    same = json.loads(json.dumps(lqf.identity(size, args.data)))

    def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` gives, from the disk if the same was made before."""
        path: Path = work / f"{size.name}-{name}.json"
        if path.exists() and (found := json.loads(path.read_text()))["identity"] == same:
            value: dict[str, Any] = found["value"]
            return value
        begun = time.process_time()
        value = make()
        spent = round(time.process_time() - begun, 1)
        value["cpu_s"] = spent
        save(path, {"identity": same, "value": value})
        print(f"{name}: {spent} CPU s", flush=True)
        return value

    pretrained = []
    for seed in size.seeds:

        def pretrain(seed: int = seed) -> dict[str, Any]:
            made = study.bundle(seed)
            history = json.loads((made.root / "training" / "history.json").read_text())
            return {"seed": seed, "weights": made.digest, "loss": history["epochs"][-1]["loss"]}

        pretrained.append(kept(f"pretrained-{seed}", pretrain))
    validation, test = study.validation(), study.test()
    cells = [
        kept(f"cell-{count}-{s}", lambda c=count, s=s: lqf.cell(study, c, s, validation, test))  # type: ignore[misc]
        for count in size.samples
        for s in size.seeds
    ]
    exact = kept("exactness", lambda: lqf.exactness(study, test))
    two = kept("two-seeds", lambda: lqf.two_seeds(study, test))
    races = [
        kept(f"race-{name}-{lr:g}", lambda n=name, r=lr: lqf.race(study, n, r))  # type: ignore[misc]
        for name, rates in lqf.RATES.items()
        for lr in rates
    ]
    # The lowest that anybody saw stands for the optimum.
    optimum = min(*two["objective"], *(min(r["objective"]) for r in races))
    for run in races:
        run["steps"] = lqf.steps_to(run, optimum)
    suffix = "-quick" if args.quick else ""
    save(
        args.results / f"lqf-{args.name}{suffix}.json",
        {
            "command": " ".join(["python -m benchmarks.lqf", args.name, *_asked(args.quick)]),
            "name": args.name,
            "size": {k: v for k, v in same.items() if k != "data"} | {"name": size.name},
            "classes": {"known": study.known, "new": study.new},
            "validation": lqf.VALIDATION,
            "pretrained": pretrained,
            "cells": cells,
            "exactness": exact,
            "two_seeds": two,
            "optimum": optimum,
            "left": lqf.LEFT,
            "races": races,
            "cpu_s": sum(x["cpu_s"] for x in (*pretrained, *cells, exact, two, *races)),
            "machine": machine(),
        },
    )
    print(f"{args.results}/lqf-{args.name}{suffix}.json", file=sys.stderr)


def _asked(quick: bool) -> list[str]:
    """The rest of the command, without this machine's path."""
    return ["--data benchmarks.data.cifar10:PATH", *(["--quick"] if quick else [])]


if __name__ == "__main__":
    main()
