"""Methods at equal budget: ours against every method of AIR-Distiller's list.

    python -m benchmarks.rivals emoji
    python -m benchmarks.rivals omniglot --data benchmarks.data.omniglot:PATH

The gallery model of `benchmarks.tradeoff` and its query model at a 20th of the cost; every method
with the same pictures, views, batch, rate and number of steps. Neighbours of csd and d3still are
sought in the batch by that list, in a bank of all training pictures by us; both forms are here. UGD
is left out: it needs the gallery model's feature maps.

Methods a point apart are told apart by more than one run. All are trained with one seed; those
within `CLOSE` of the best, by Recall@1 or mAP, with two more (weights, order and views of the query
model; the gallery model stays). The best of them are also scored after `hetero align --map whiten`,
seconds of closed form on the training pictures: with it ours is the recipe that we would take, and
beside it stands what the same step does for the others. Raw scores go to
benchmarks/results/rivals-NAME.json.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.lab import Job, again, corners, heterogeneous, machine, parser, run, save, whitened
from benchmarks.tradeoff import STUDIES

#: What we would take, and what else we have.
OURS = "csd+d3still"
OTHERS = ("csd+regression", "csd", "d3still")
#: AIR-Distiller's list, by our names; its FitNet is regression.
RIVALS = (
    "regression",
    "benchmarks.rivals.cc",
    "benchmarks.rivals.d3still_batch",
    "benchmarks.rivals.csd_batch",
    "raml",
    "benchmarks.rivals.rop",
    "vanilla_kd",
    "rkd",
    "pkt",
)
#: Those that are also whitened: ours and the best of the others on either data set.
WHITENED = ("ours", "rival-csd+regression", "rival-csd_batch")
#: Points from the best within which one run tells nothing.
CLOSE = 0.015
SEEDS = (1, 2)


def jobs(name: str) -> list[Job]:
    """The gallery model, ours first of the rest."""
    study = STUDIES[name]

    def job(name: str, method: str) -> Job:
        return Job(
            name,
            "query",
            study.queries[20][0],
            study.rival_epochs,
            gallery="gallery",
            method=method,
            views=study.rival_views,
            lr=study.lr,
        )

    return [
        Job("gallery", "gallery", study.gallery, study.gallery_epochs),
        job("ours", OURS),
        *(job(f"rival-{m.rpartition('.')[2]}", m) for m in (*OTHERS, *RIVALS)),
    ]


def close(found: dict[str, dict[str, Any]]) -> set[str]:
    """Names of the jobs that are within `CLOSE` of the best by either score."""
    scores = {name: heterogeneous(record) for name, record in found.items()}
    out = set()
    for key in ("recall_at_1", "map"):
        best = max(s[key] for s in scores.values())
        out |= {n for n, s in scores.items() if s[key] >= best - CLOSE}
    return out


def main() -> None:
    """Train, score, train the close ones again, whiten them, write."""
    arguments = parser(__doc__, STUDIES)
    arguments.add_argument("--workers", type=int, default=2)
    args = arguments.parse_args()
    work = args.work / f"tradeoff-{args.name}"
    gallery, *rest = jobs(args.name)

    def train(some: list[Job], seed: int, folder: Path) -> dict[str, dict[str, Any]]:
        return run(
            some,
            args.data,
            32,
            [seed],
            folder,
            workers=args.workers,
            then=corners,
            given=[gallery],
        )[seed]

    top = run([gallery], args.data, 32, [0], work, workers=1, then=corners)[0]["gallery"]
    found = {"0": train(rest, 0, work)}
    near = close(found["0"])
    for seed in SEEDS:
        found[str(seed)] = train([j for j in rest if j.name in near], seed, again(work, seed))
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        folders = {"0": work / "seed-0"} | {
            str(seed): again(work, seed) / f"seed-{seed}" for seed in SEEDS
        }
        turned = {
            (at, name): pool.submit(
                whitened, folders[at] / name, folders[at] / "gallery", args.data
            )
            for at in found
            for name in WHITENED
        }
        for (at, name), scores in turned.items():
            found[at][name]["whitened"] = scores.result()
    save(
        args.results / f"rivals-{args.name}.json",
        {
            "command": f"python -m benchmarks.rivals {args.name}",
            "ours": OURS,
            "machine": machine(),
            "gallery": top,
            "seeds": found,
        },
    )


if __name__ == "__main__":
    main()
