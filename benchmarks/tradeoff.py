"""Query cost against accuracy in the gallery's index, and against every method we know of.

    python -m benchmarks.tradeoff emoji
    python -m benchmarks.tradeoff omniglot --data benchmarks.data.omniglot:PATH
    python -m benchmarks.tradeoff emoji --again 1 2

One gallery model; query models of at most a 4th, a 20th and an 80th of its multiply-accumulates,
each trained for at most 15 CPU minutes. Beside them the honest rows: the same architecture trained
alone, and the distilled query model searched against itself. At a 20th, every method of
AIR-Distiller's list with the same pictures, views, batch and number of steps; UGD is left out, it
needs the gallery model's feature maps. On emoji also what else could be done, one change at a time:
longer, more views, stronger views, larger banks, a lower rate, wider late layers. Raw scores go to
benchmarks/results/tradeoff-NAME.json.

Methods a point apart are told apart by more than one run: `--again` trains those that share the
gallery's space with other seeds of the query model (weights, order, views), the gallery model the
same, and adds them to the file.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.lab import RESULTS, WORK, Job, chance, corners, machine, run, save

#: AIR-Distiller's list, by our names; its FitNet is regression.
RIVALS = (
    "vanilla_kd",
    "rkd",
    "pkt",
    "regression",
    "benchmarks.rivals.cc",
    "csd",
    "raml",
    "benchmarks.rivals.rop",
    "d3still",
)


@dataclass(frozen=True)
class Study:
    """One data set's models.

    Attributes:
        gallery: Backbone of the gallery model.
        gallery_epochs: Its length.
        queries: Times fewer multiply-accumulates -> backbone and epochs.
        views: Stored views.
        rival_epochs: Length of the comparison of methods.
        rival_views: Stored views there.
        push: Whether to try `PUSHES`.
        lr: Of the query models.
    """

    gallery: str
    gallery_epochs: int
    queries: dict[int, tuple[str, int]]
    views: int
    rival_epochs: int
    rival_views: int
    push: bool
    lr: float = 2e-2


STUDIES = {
    "emoji": Study(
        "resnet:width=32",
        24,
        {
            4: ("resnet:width=15", 30),
            20: ("mobilenet:width=1.2", 90),
            80: ("mobilenet:width=0.5", 150),
        },
        16,
        10,
        8,
        True,
    ),
    "omniglot": Study(
        "resnet:width=24",
        8,
        {
            4: ("mobilenet:width=1,stride=1", 15),
            20: ("mobilenet:width=0.8", 50),
            80: ("mobilenet:width=0.4", 80),
        },
        12,
        5,
        4,
        False,
    ),
}


#: Those of them that are no controls.
SHARING = tuple(r for r in RIVALS if r not in ("vanilla_kd", "rkd", "pkt"))


#: What else could be done at a 20th: name -> what changes in the short run.
PUSHES: dict[str, dict[str, Any]] = {
    "twice the epochs": {"epochs": 2.0},
    "twice the views": {"views": 2.0},
    "views half as strong again": {"strength": 1.5},
    "bank of four views each": {"settings": {"csd.bank_views": 4}},
    "learning rate 0.003": {"lr": 3e-3},
    "late layers twice as wide": {"backbone": ",last=384"},
}


def jobs(study: Study, method: str) -> list[Job]:
    """All models of a study."""
    gallery = Job("gallery", "gallery", study.gallery, study.gallery_epochs)
    out = [gallery]
    # A classifier has the gallery model's epochs, and half of the query models' rate.
    for less, (backbone, epochs) in study.queries.items():
        out.append(
            replace(
                gallery,
                name=f"alone-{less}x",
                backbone=backbone,
                epochs=min(epochs, study.gallery_epochs),
                lr=study.lr / 2,
            )
        )
        out.append(
            Job(
                f"query-{less}x",
                "query",
                backbone,
                epochs,
                gallery="gallery",
                method=method,
                views=study.views,
                lr=study.lr,
            )
        )
    short = Job(
        "",
        "query",
        study.queries[20][0],
        study.rival_epochs,
        gallery="gallery",
        views=study.rival_views,
        lr=study.lr,
    )
    out += [replace(short, name=f"rival-{r.rpartition('.')[2]}", method=r) for r in RIVALS]
    ours = replace(short, name="ours", method=method)
    out.append(ours)
    for name, change in PUSHES.items() if study.push else ():
        new = dict(change)
        for key in ("epochs", "views"):
            if key in new:
                new[key] = round(getattr(ours, key) * new[key])
        if "backbone" in new:
            new["backbone"] = ours.backbone + new["backbone"]
        out.append(replace(ours, name=f"push-{name.replace(' ', '-')}", **new))
    return out


def again(args: argparse.Namespace, work: Path) -> None:
    """Train the methods that share the gallery's space with other seeds; add them to the file."""
    path = args.results / f"tradeoff-{args.name}.json"
    known = json.loads(path.read_text())
    first = work / f"seed-{known['seed']}"
    for seed in args.again:
        folder = work / f"again-{seed}" / f"seed-{seed}"
        if not (folder / "gallery").exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copytree(first / "gallery", folder / "gallery")
            shutil.copy(first / "gallery.json", folder / "gallery.json")
        names = {"ours", *(f"rival-{r.rpartition('.')[2]}" for r in SHARING)}
        both = jobs(STUDIES[args.name], known["method"])
        found = run(
            [j for j in both if j.name in names],
            args.data,
            32,
            [seed],
            work / f"again-{seed}",
            workers=args.workers,
            then=corners,
            given=both[:1],
        )
        known.setdefault("again", {})[str(seed)] = found[seed]
        save(path, known)


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(STUDIES))
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--method", default="csd+regression")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", type=int, nargs="*", default=[], help="other seeds")
    args = parser.parse_args()
    work = args.work / f"tradeoff-{args.name}"
    if args.again:
        again(args, work)
        return
    found = run(
        jobs(STUDIES[args.name], args.method),
        args.data,
        32,
        [args.seed],
        work,
        workers=args.workers,
        then=corners,
    )
    command = f"python -m benchmarks.tradeoff {args.name}"
    save(
        args.results / f"tradeoff-{args.name}.json",
        {
            "command": command,
            "seed": args.seed,
            "method": args.method,
            "machine": machine(),
            "chance": chance(args.data),
            "jobs": found[args.seed],
        },
    )
    for name, record in found[args.seed].items():
        for scores in record["scores"].values():
            both = scores.get("heterogeneous", scores["own"])
            print(
                f"{name}: R@1 {100 * both['recall_at_1']:.1f}, mAP {100 * both['map']:.1f} "
                f"({record['cpu_s']:.0f} CPU s)"
            )


if __name__ == "__main__":
    main()
