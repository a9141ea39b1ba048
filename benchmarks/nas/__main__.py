"""Does architecture search keep its paper's promises on data of one's own?

    python -m benchmarks.nas emoji
    python -m benchmarks.nas omniglot --data benchmarks.data.omniglot:PATH

The gallery model is that of `benchmarks.tradeoff`. Asked is:

* what predicts the heterogeneous accuracy of an architecture trained on its own: 20 architectures
  drawn from the space, at 0.25 to 1 times the budget of an 80th of the gallery model's MACs,
  against multiply-accumulates, the rewards R1, R2, R3 with weights inherited from a supernet, and
  validation classes after a short training of its own (Kendall's tau; two supernets);
* whether the architecture that a search finds within the budget (its best candidates and as many
  drawn ones are trained briefly, the best of those as long as all others, and of these the best on
  validation classes is taken) beats the median of those drawn near it, and hand-designed networks
  of that cost, all with the same method, pictures and epochs;
* how far down the cost can go: a search over all costs, models at 7 to 200 times fewer MACs, with
  inherited weights and trained on from them; and at 80 times fewer a longer training, for the claim
  of at most 0.3 points below the gallery model itself.

Architectures are chosen by validation classes; every published score is of test classes. Finished
models, supernets and searches are kept and taken over. Raw results go to
benchmarks/results/nas-NAME.json.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

from benchmarks.lab import Job, corners, machine, parser, run, save
from benchmarks.nas.study import (
    BUDGET,
    CURVE,
    LEAST,
    METHOD,
    SEEDS,
    STUDIES,
    at_cost,
    by_hand,
    draw,
    elect,
    inherit,
    judged,
    query_job,
    searched,
    tuned,
)
from benchmarks.tradeoff import STUDIES as TRADEOFFS


def main() -> None:
    """Train, search, score, write."""
    arguments = parser(__doc__, STUDIES)
    arguments.add_argument("--workers", type=int, default=2)
    args = arguments.parse_args()
    study, other = STUDIES[args.name], TRADEOFFS[args.name]
    work = args.work / f"tradeoff-{args.name}"
    gallery = Job("gallery", "gallery", other.gallery, other.gallery_epochs)

    def train(jobs: list[Job], then: Any = corners) -> dict[str, dict[str, Any]]:
        return run(
            jobs, args.data, 32, [0], work, workers=args.workers, then=then, given=[gallery]
        )[0]

    top = run([gallery], args.data, 32, [0], work, workers=1, then=corners)[0]["gallery"]
    macs, dim = top["macs"][0], gallery.dim
    most = macs / BUDGET
    drawn = draw(study, most, dim, 32)
    hand = by_hand(most, dim, 32)
    alone = train(
        [
            *(query_job(study, f"drawn-{at:02d}", d["backbone"]) for at, d in enumerate(drawn)),
            *(query_job(study, f"hand-{name}", backbone) for name, backbone in hand.items()),
        ]
    )
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        inherited = [
            f.result()
            for f in [pool.submit(inherit, study, args.data, s, work, drawn) for s in SEEDS]
        ]
        print("supernets are trained and scored", flush=True)
        within = [
            pool.submit(
                searched,
                study,
                args.data,
                s,
                work,
                most,
                f"budget-{s}",
                study.scored,
                least=LEAST * most,
            )
            for s in SEEDS
        ]
        whole = pool.submit(
            searched, study, args.data, 0, work, macs / min(CURVE), "all", study.curve_scored
        ).result()
        found = [f.result() for f in within]
        print("searches are done", flush=True)
    brief = train(
        [
            query_job(study, f"brief-{at:02d}", d["backbone"], study.try_epochs)
            for at, d in enumerate(drawn)
        ],
        judged,
    )
    elected = elect(
        study, {str(s): f["contenders"] for s, f in zip(SEEDS, found, strict=True)}, train
    )
    best = {
        s: next(
            c for c in f["contenders"] if c["backbone"] == elected[str(s)]["job"]["job"]["backbone"]
        )
        for s, f in zip(SEEDS, found, strict=True)
    }
    result = {
        "command": f"python -m benchmarks.nas {args.name}",
        "machine": machine(),
        "study": asdict(study),
        "method": METHOD,
        "gallery": {"macs": macs, "scores": top["scores"]["gallery"]["own"]},
        "drawn": [{**d, "job": alone[f"nas-drawn-{at:02d}"]} for at, d in enumerate(drawn)],
        "hand": {n: alone[f"nas-hand-{n}"] for n in hand},
        "inherited": inherited,
        "brief": [brief[f"nas-brief-{at:02d}"] for at in range(len(drawn))],
        "found": [{**f, **elected[str(s)]} for s, f in zip(SEEDS, found, strict=True)],
        "whole": whole,
        "curve": {},
        "long": [],
    }
    # What the other questions are answered by stands before the last one is begun.
    save(args.results / f"nas-{args.name}.json", result)
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        # One architecture may be the best at several costs.
        distinct = {
            at_cost(whole["front"], macs / less)["backbone"]: less
            for less in reversed(CURVE)
            if any(c["cost"] <= macs / less for c in whole["front"])
        }
        points = {
            str(less): pool.submit(
                tuned,
                study,
                args.data,
                0,
                work,
                at_cost(whole["front"], macs / less),
                f"{less}x",
                study.tuned_epochs,
                study.views,
            )
            for less in sorted(distinct.values(), reverse=True)
        }
        long = [
            pool.submit(
                tuned,
                study,
                args.data,
                s,
                work,
                best[s],
                f"long-{s}",
                study.long_epochs,
                study.long_views,
            )
            for s in SEEDS
        ]
        curve = {less: p.result() for less, p in points.items()}
        longer = [p.result() for p in long]
    save(args.results / f"nas-{args.name}.json", {**result, "curve": curve, "long": longer})


if __name__ == "__main__":
    main()
