"""Which sum of losses is best at the rate of `benchmarks.tradeoff`, by validation classes.

    python -m benchmarks.blends emoji
    python -m benchmarks.blends omniglot --data benchmarks.data.omniglot:PATH

`benchmarks.tuning` chose each method's settings at a third of the rate and on a short run. Here a
few sums are compared as the trade-off study compares methods: its gallery model, its query model
at a 20th of the cost, its views and epochs. Scored on validation classes, so that the choice does
not see the classes of the published tables. Goes to benchmarks/results/blends-NAME.json.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lab import Job, machine, parser, run, save
from benchmarks.tradeoff import STUDIES
from benchmarks.tuning import validation

#: Method and settings.
CANDIDATES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("csd+regression", {}),
    ("csd+regression", {"csd.weight": 1.0}),
    ("d3still", {}),
    ("d3still", {"weight": 3.0}),
    ("csd+d3still", {"csd.weight": 1.0}),
    ("csd+d3still", {}),
    ("d3still+regression", {}),
    ("d3still+regression", {"regression.weight": 30.0}),
)


def by_validation(found: dict[str, Any], data: str, folder: Path) -> dict[str, Any]:
    """A job's Recall@1 and mAP on validation classes, in the gallery's index."""
    job = found["job"]
    return {"scores": validation(folder / job["name"], folder / job["gallery"], data)}


def main() -> None:
    """Train, score, write."""
    arguments = parser(__doc__, STUDIES)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--workers", type=int, default=2)
    args = arguments.parse_args()
    study = STUDIES[args.name]
    short = Job(
        "",
        "query",
        study.queries[20][0],
        study.rival_epochs,
        gallery="gallery",
        views=study.rival_views,
        lr=study.lr,
    )
    jobs = [
        replace(short, name=f"blend-{at}", method=method, settings=settings)
        for at, (method, settings) in enumerate(CANDIDATES)
    ]
    gallery = Job("gallery", "gallery", study.gallery, study.gallery_epochs)
    found = run(
        jobs,
        args.data,
        32,
        [args.seed],
        args.work / f"tradeoff-{args.name}",
        workers=args.workers,
        then=by_validation,
        given=[gallery],
    )[args.seed]
    save(
        args.results / f"blends-{args.name}.json",
        {
            "command": f"python -m benchmarks.blends {args.name}",
            "seed": args.seed,
            "machine": machine(),
            "jobs": found,
        },
    )
    for record in found.values():
        scores = record["scores"]
        print(
            f"{record['job']['method']} {record['job']['settings']}: "
            f"R@1 {100 * scores['recall_at_1']:.1f}, mAP {100 * scores['map']:.1f}"
        )


if __name__ == "__main__":
    main()
