"""What the studies of architecture search share: settings, candidates, supernets, searches."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lab import Job

#: Costs of the curve: the best that was found at so many times fewer multiply-accumulates than the
#: gallery model, or more; the last one bounds the search.
CURVE = (200, 180, 160, 150, 135, 120, 100, 80, 60, 50, 40, 36, 30, 25, 20, 15, 10, 7)
#: The budget of the searches, in the same terms.
BUDGET = 80
#: Architectures drawn within the budget; as many of at least `NEAR` of it, and the rest below.
DRAWN, NEAR = 20, 0.8
#: Cheapest of them, as a share of the budget.
FAR = 0.25
SEEDS = (0, 1)
#: Share of the budget below which a search within it finds no pleasure in cheaper ones.
LEAST = 0.5
#: Contenders of a search that are trained briefly, to choose finalists from by validation classes;
#: and those, trained on their own, to choose the winner from in the same way.
TRIES, FINALISTS = 16, 4
#: Batches that re-calibration is tried with.
RECALIBRATED = (0, 1, 10, 40)
METHOD = "csd+regression"


@dataclass(frozen=True)
class Study:
    """One data set's lengths; the gallery model is that of `benchmarks.tradeoff`.

    Attributes:
        space: Of the search.
        supernet_epochs: Of a supernet.
        epochs: Of every architecture that is trained on its own.
        try_epochs: Of the short trainings that finalists are chosen by.
        long_epochs, long_views: Of the model at the budget that the claim is judged by.
        views: Stored views.
        lr: Peak learning rate.
        scored, curve_scored: Architectures that a search within the budget, and one over all costs,
            look at.
        tuned_epochs: Of the models of the curve, from inherited weights.
    """

    space: str
    supernet_epochs: int
    epochs: int
    try_epochs: int
    long_epochs: int
    long_views: int
    views: int
    lr: float = 2e-2
    scored: int = 80
    curve_scored: int = 160
    tuned_epochs: int = 10


STUDIES = {
    "emoji": Study(
        "elastic:strides=2/1,widths=0.25/0.35/0.5/0.65/0.8", 8, 10, 3, 120, 16, 8, tuned_epochs=6
    ),
    "omniglot": Study(
        "elastic:strides=2/1,widths=0.25/0.35/0.5/0.65/0.8", 4, 5, 1, 15, 4, 4, tuned_epochs=3
    ),
}


def query_job(study: Study, name: str, backbone: str, epochs: int = 0) -> Job:
    """An architecture trained on its own, as all of them are; or for other epochs."""
    return Job(
        f"nas-{name}",
        "query",
        backbone,
        epochs or study.epochs,
        "gallery",
        METHOD,
        views=study.views,
        lr=study.lr,
    )


def draw(study: Study, most: float, dim: int, size_px: int) -> list[dict[str, Any]]:
    """Architectures within the budget: half of them near it, half of them far below."""
    from hetero import nas

    space, rng = nas.load_space(study.space), np.random.default_rng(20)
    price = nas.priced(space, nas.load_cost("macs"), dim, size_px)
    near: dict[str, dict[str, Any]] = {}
    far: dict[str, dict[str, Any]] = {}
    while len(near) < DRAWN // 2 or len(far) < DRAWN // 2:
        architecture = space.draw(rng)
        backbone = space.backbone(architecture)
        macs = int(price(architecture))
        found = {"backbone": backbone, "architecture": architecture, "macs": macs}
        share = macs / most
        where = near if NEAR <= share <= 1 else far if FAR <= share < NEAR else None
        if where is not None and len(where) < DRAWN // 2:
            where[backbone] = found
    return [*near.values(), *far.values()]


def by_hand(most: float, dim: int, size_px: int) -> dict[str, str]:
    """Hand-designed networks of the multiplier that comes nearest to the budget."""
    from hetero import models

    def nearest(make: Callable[[float], str]) -> str:
        names = {make(round(w, 2)) for w in np.arange(0.2, 1.2, 0.01)}
        costs = {n: models.count(models.build(n, dim, size_px), size_px)[1] for n in names}
        return min(sorted(names), key=lambda n: abs(costs[n] - most))

    return {
        "mobilenet": nearest(lambda w: f"mobilenet:width={w:g}"),
        "shufflenet": nearest(lambda w: f"shufflenet:width={w:g},stem=2"),
    }


def watched(found: dict[str, Any], data: str, folder: Path) -> dict[str, Any]:
    """What `benchmarks.lab.corners` gives, and the scores on validation classes."""
    from benchmarks.lab import corners

    return {**corners(found, data, folder), **judged(found, data, folder)}


def judged(found: dict[str, Any], data: str, folder: Path) -> dict[str, Any]:
    """The scores on validation classes alone."""
    from benchmarks.tuning import validation

    job = found["job"]
    return {"validation": validation(folder / job["name"], folder / job["gallery"], data)}


def elect(
    study: Study,
    pools: Mapping[str, Sequence[Mapping[str, Any]]],
    train: Callable[[list[Job], Any], dict[str, dict[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """Of each search's contenders the winner ("job"), by validation classes.

    All of them are trained briefly ("tried"), the best of those as long as every other model of the
    study ("finalists").
    """

    def rank(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(records, key=lambda record: -float(record["validation"]["map"]))

    tries = {
        name: [
            query_job(study, f"try-{name}-{at:02d}", c["backbone"], study.try_epochs)
            for at, c in enumerate(pool)
        ]
        for name, pool in pools.items()
    }
    brief = train([job for jobs in tries.values() for job in jobs], judged)
    tried = {name: [brief[job.name] for job in jobs] for name, jobs in tries.items()}
    own = {
        name: [
            query_job(study, f"finalist-{name}-{at}", record["job"]["backbone"])
            for at, record in enumerate(rank(records)[:FINALISTS])
        ]
        for name, records in tried.items()
    }
    long = train([job for jobs in own.values() for job in jobs], watched)
    final = {name: [long[job.name] for job in jobs] for name, jobs in own.items()}
    return {
        name: {"tried": tried[name], "finalists": final[name], "job": rank(final[name])[0]}
        for name in pools
    }


def supernet(study: Study, data: str, seed: int, work: Path, method: str = METHOD) -> Any:
    """The supernet of a seed, trained or read."""
    import torch

    from hetero import data as sources
    from hetero.bundle import Bundle
    from hetero.fit import Settings
    from hetero.progress import Reporter
    from hetero.train import SupernetRecipe, train_supernet

    torch.set_num_threads(1)
    return train_supernet(
        Bundle.load(work / "seed-0" / "gallery"),
        sources.load(data),
        SupernetRecipe(study.space, "sandwich", method, None, study.views),
        Settings(epochs=study.supernet_epochs, batch=128, lr=study.lr, seed=seed, keep_going=True),
        work / f"nas-supernet-{seed}",
        vectors=work / "seed-0" / "vectors-gallery",
        resume=True,
        reporter=Reporter(quiet=True),
    )


def spent(note: Path, begun: float) -> float:
    """CPU seconds since `begun` of a step that is done once; when taken over, what it took then."""
    if not note.exists():
        note.write_text(f"{time.process_time() - begun:.1f}\n")
    return float(note.read_text())


def inherit(
    study: Study, data: str, seed: int, work: Path, drawn: list[dict[str, Any]]
) -> dict[str, Any]:
    """Rewards of the drawn architectures with a supernet's weights, and what re-calibration does.

    Kept in the work folder, so that it is done once.
    """
    path = work / f"nas-inherited-{seed}.json"
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["study"] == asdict(study):
            return kept
    from hetero.train.supernet import calibration

    begun = time.process_time()
    net = supernet(study, data, seed, work)
    took = spent(work / f"nas-supernet-{seed}" / "cpu_s.txt", begun)
    net.net.batches = calibration(net.pictures, net.gallery, net.settings, max(RECALIBRATED))
    rewards = [net.score(tuple(d["architecture"])) for d in drawn]
    # Statistics of no batch at all, and of more and more.
    batches = {
        str(n): [
            net.score(tuple(d["architecture"]), n).r2 for d in drawn[:: max(1, len(drawn) // 6)]
        ]
        for n in RECALIBRATED
    }
    out = {
        "study": asdict(study),
        "seed": seed,
        "cpu_s": took,
        "r1": [r.r1 for r in rewards],
        "r2": [r.r2 for r in rewards],
        "r3": [r.r3 for r in rewards],
        "recalibration_r2": batches,
    }
    path.write_text(json.dumps(out, indent=1) + "\n")
    return out


def searched(
    study: Study,
    data: str,
    seed: int,
    work: Path,
    most: float,
    name: str,
    scored: int,
    cost: str = "macs",
    least: float = 0.0,
) -> dict[str, Any]:
    """What a search of a seed's supernet found within this much of a cost: its best, its front."""
    from hetero import nas
    from hetero.progress import Reporter

    begun = time.process_time()
    net = supernet(study, data, seed, work)
    dim, size_px = net.gallery.space.dim, net.gallery.preprocess.size_px
    price = nas.priced(net.net.space, nas.load_cost(cost), dim, size_px)
    found = nas.search(
        net.net.space,
        price,
        net.score,
        nas.Budget(cost, most, least),
        work / f"nas-search-{name}",
        trials=scored,
        seed=seed,
        identity=net.digest,
        reporter=Reporter(quiet=True),
    )
    took = spent(work / f"nas-search-{name}" / "cpu_s.txt", begun)
    # A search over all costs has a front and no winner.
    pool = nas.contenders(net.net.space, price, net.score, found, TRIES, seed=seed) if least else ()
    return {
        "seed": seed,
        "budget": most,
        "cpu_s": took,
        "scored": sum(c.fits for c in found.candidates),
        "best": asdict(found.best),
        "contenders": [asdict(c) for c in pool],
        "front": [asdict(c) for c in found.front],
    }


def at_cost(front: list[dict[str, Any]], most: float) -> dict[str, Any]:
    """The best of a front within a cost: its dearest one, as a front rises."""
    return max((c for c in front if c["cost"] <= most), key=lambda c: float(c["cost"]))


def tuned(
    study: Study,
    data: str,
    seed: int,
    work: Path,
    candidate: dict[str, Any],
    name: str,
    epochs: int,
    views: int,
) -> dict[str, Any]:
    """Test scores of an architecture with inherited weights, and trained on from them."""
    import dataclasses

    from benchmarks.lab import embed_split, pair
    from hetero.progress import Reporter

    root = work / "nas-tuned" / name
    note = root.with_suffix(".json")
    asked = {"backbone": candidate["backbone"], "epochs": epochs, "views": views, "seed": seed}
    if note.exists() and json.loads(note.read_text())["asked"] == asked:
        kept: dict[str, Any] = json.loads(note.read_text())
        return kept
    net = supernet(study, data, seed, work)
    architecture = tuple(candidate["architecture"])
    plain = net.bundle(architecture, root / "inherited")
    begun = time.process_time()
    longer = dataclasses.replace(net, recipe=dataclasses.replace(net.recipe, views=views))
    own = longer.tuned(
        architecture,
        dataclasses.replace(net.settings, epochs=epochs),
        root / "tuned",
        vectors=work / "seed-0" / "vectors-gallery",
        resume=True,
        reporter=Reporter(quiet=True),
    )
    task, theirs = embed_split(work / "seed-0" / "gallery", data)
    out: dict[str, Any] = {
        "asked": asked,
        "macs": own.manifest.model.macs,
        "parameters": own.manifest.model.parameters,
        "cpu_s": round(time.process_time() - begun, 1),
    }
    for key, bundle in (("inherited", plain), ("tuned", own)):
        _, mine = embed_split(bundle.root, data)
        out[key] = {"heterogeneous": pair(task, mine, theirs), "own": pair(task, mine, mine)}
    note.write_text(json.dumps(out, indent=1) + "\n")
    return out
