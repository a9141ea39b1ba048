"""What keeps the cheap query models of `benchmarks.nas` from the gallery model's accuracy?

    python -m benchmarks.nas emoji
    python -m benchmarks.nas.limits emoji

Every model of the study's curve, and those trained longest, are scored on the classes they were
trained on beside the test classes. The gallery model has seen the same training classes, so its own
score there is what a perfect copy of it would have. A gap that is as wide on classes the query
model was trained on is one of fitting: too few weights or too few steps. One that opens on new
classes only is one of generalising: too few pictures. Those trained longest are also scored after
`hetero align --map whiten`. Raw results go to benchmarks/results/nas-limits-NAME.json.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lab import embed_split, machine, pair, parser, save, whitened
from benchmarks.nas.study import SEEDS, STUDIES

SPLITS = ("train", "test")


def scored(root: Path | None, gallery: Path, data: str) -> dict[str, Any]:
    """Of a query bundle (or the gallery's own, None), by split: scores and agreement of vectors."""
    import torch

    from hetero.bundle import Bundle

    torch.set_num_threads(1)
    out: dict[str, Any] = {"macs": Bundle.load(root or gallery).manifest.model.macs}
    for split in SPLITS:
        task, theirs = embed_split(gallery, data, split)
        mine = theirs if root is None else embed_split(root, data, split)[1]
        cosines = np.einsum("nd,nd->n", mine.vectors, theirs.vectors)
        out[split] = {**pair(task, mine, theirs), "cosine_mean": float(cosines.mean())}
    return out


def main() -> None:
    """Score, write."""
    arguments = parser(__doc__, STUDIES)
    arguments.add_argument("--workers", type=int, default=2)
    args = arguments.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "30000"}
    work = args.work / f"tradeoff-{args.name}"
    gallery = work / "seed-0" / "gallery"
    study = json.loads((args.results / f"nas-{args.name}.json").read_text())
    names = [*(f"{less}x" for less in study["curve"]), *(f"long-{seed}" for seed in SEEDS)]
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        own = pool.submit(scored, None, gallery, args.data)
        jobs = {
            name: pool.submit(scored, work / "nas-tuned" / name / "tuned", gallery, args.data)
            for name in names
        }
        turned = {
            name: pool.submit(whitened, work / "nas-tuned" / name / "tuned", gallery, args.data)
            for name in names
            if name.startswith("long")
        }
        save(
            args.results / f"nas-limits-{args.name}.json",
            {
                "command": f"python -m benchmarks.nas.limits {args.name}",
                "machine": machine(),
                "gallery": own.result(),
                "models": {name: job.result() for name, job in jobs.items()},
                "whitened": {name: job.result() for name, job in turned.items()},
            },
        )


if __name__ == "__main__":
    main()
