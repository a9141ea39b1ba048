"""Query cost against accuracy in the gallery's index.

    python -m benchmarks.tradeoff emoji
    python -m benchmarks.tradeoff omniglot --data benchmarks.data.omniglot:PATH

One gallery model; query models of at most a 4th, a 20th and an 80th of its multiply-accumulates,
each trained for at most 15 CPU minutes. Beside them the honest rows: the same architecture trained
alone, and the distilled query model searched against itself. On emoji also what else could be done
at a 20th, one change at a time: longer, more views, stronger views, larger banks, a lower rate,
wider late layers. Raw scores go to benchmarks/results/tradeoff-NAME.json. Methods are compared by
`benchmarks.rivals`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.lab import Job, chance, corners, machine, parser, run, save


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


def main() -> None:
    """Train, score, write."""
    arguments = parser(__doc__, STUDIES)
    arguments.add_argument("--method", default="csd+regression")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--workers", type=int, default=2)
    args = arguments.parse_args()
    work = args.work / f"tradeoff-{args.name}"
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
