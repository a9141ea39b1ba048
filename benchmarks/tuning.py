"""A small study: settings of each method, by validation mAP in the gallery's index.

    pip install optuna
    python -m benchmarks.tuning

For each method Optuna tries a few settings (its first trial is the default), all trained for the
same few epochs against the same stored gallery vectors, scored on validation classes; test classes
are never looked at. Every trial goes to benchmarks/results/tuning.json. Read it as a rough guide:
one data set, one seed, short runs; differences below a point are noise.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.lab import RESULTS, WORK, Job, machine, save, train

GALLERY = Job("gallery", "gallery", "resnet:width=16", 14)

#: Method -> setting -> (low, high), searched on a logarithmic scale; or a list of choices.
SPACES: dict[str, dict[str, Any]] = {
    "regression": {},
    "csd": {
        "neighbours": [16, 64, 256],
        "gallery_temperature": (0.03, 0.3),
        "query_temperature": (0.03, 0.3),
    },
    "csd+regression": {
        "csd.neighbours": [16, 64, 256],
        "csd.weight": (0.3, 10.0),
        "csd.gallery_temperature": (0.03, 0.3),
        "csd.query_temperature": (0.03, 0.3),
    },
    "d3still": {"point": (3.0, 50.0), "weight": (0.1, 3.0), "neighbours": [10, 32]},
    "ssp": {"parts": [4, 8, 16], "sharpness": (3.0, 30.0)},
    "ssp+regression": {"ssp.parts": [4, 8, 16], "ssp.weight": (0.1, 3.0)},
    "raml": {"across": (0.3, 30.0), "within": (0.3, 30.0)},
    "aml": {
        "form": ["contrastive", "triplet"],
        "negative": (0.1, 0.9),
        "margin": (0.02, 0.5),
        "label": [False, True],
    },
    "bct": {"influence": (0.3, 10.0), "scale": (8.0, 32.0)},
    "bct+regression": {"bct.influence": (0.03, 1.0), "regression.weight": (3.0, 100.0)},
}


def suggest(trial: Any, space: dict[str, Any]) -> dict[str, Any]:
    """One point of a method's space."""
    return {
        key: trial.suggest_categorical(key, what)
        if isinstance(what, list)
        else trial.suggest_float(key, *what, log=True)
        for key, what in space.items()
    }


def validation(root: Path, gallery: Path, data: str) -> dict[str, float]:
    """Recall@1 and mAP of a query bundle in its gallery's index, on validation classes."""
    from benchmarks.lab import embed_split, pair

    job, theirs = embed_split(gallery, data, "val")
    return pair(job, embed_split(root, data, "val")[1], theirs)


def main() -> None:
    """Run the study, method by method; what is on disk is not run again."""
    import optuna

    from hetero import methods

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=6, help="for each method")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", default=list(SPACES))
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--output", type=Path, default=RESULTS / "tuning.json")
    args = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = args.work / "tuning" / f"seed-{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    train(GALLERY, args.data, 32, args.seed, folder, 1.0)
    kept = json.loads(args.output.read_text())["trials"] if args.output.exists() else []
    for method in args.methods:
        done = [t for t in kept if t["method"] == method]
        space = SPACES[method]
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=args.seed)
        )
        defaults = methods.settings_of(methods.make(method))
        study.enqueue_trial({k: defaults[k] for k in space})
        for number in range(args.trials if space else 1):
            trial = study.ask()
            settings = suggest(trial, space)
            if number < len(done):
                study.tell(trial, done[number]["map"])
                continue
            job = Job(
                f"{method}-{number}",
                "query",
                "mobilenet:width=0.5",
                args.epochs,
                gallery="gallery",
                method=method,
                settings=settings,
                views=4,
            )
            begun = time.process_time()
            train(job, args.data, 32, args.seed, folder, 1.0)
            found = validation(folder / job.name, folder / "gallery", args.data)
            study.tell(trial, found["map"])
            kept.append(
                {
                    "method": method,
                    "number": number,
                    "settings": settings,
                    **found,
                    "cpu_s": round(time.process_time() - begun, 1),
                }
            )
            save(
                args.output,
                {
                    "command": "python -m benchmarks.tuning",
                    "data": args.data,
                    "seed": args.seed,
                    "epochs": args.epochs,
                    "machine": machine(),
                    "trials": kept,
                },
            )
            print(f"{method} {settings}: val mAP {100 * found['map']:.1f}", flush=True)


if __name__ == "__main__":
    main()
