"""Does a plan for re-embedding come true? Three generations, forecast from little and replayed.

    python -m benchmarks.planner emoji            some CPU minutes
    python -m benchmarks.planner emoji --quick    about one, with models that find little

Three gallery models, each trained into the space of the one before, and a small query model for
each: the apps. Two plans, as they follow each other in the life of an index. First all rows are by
v1 and v2 is to re-embed them, with two apps in the field; half way comes v3, with a third app, and
re-embeds what is there, half by v1 and half by v2. Each takes eight weeks.

The forecast is measured in mixed indexes at three shares between none and all. The replay is a loop
of its own: it deals the rows anew, re-embeds an eighth of them every week, and asks every query
each time. A second forecast asks the queries of every other class only, and is held to the replay
of the others: what the intervals are for.

Raw results go to benchmarks/results/planner-NAME.json (with --quick to planner-NAME-quick.json);
the section in docs/results.md is made from the former by `python -m benchmarks.tables`. Exit code 1
if a rule does not hold. Stopped, the same command goes on with the models that are there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.acceptance.rules import Outcome, table, told
from benchmarks.lab import fewer_classes, machine, parser, save

NAMES = ("emoji",)

#: Weeks that re-embedding takes.
WEEKS = 8
#: Share of the queries that forecasts ask on the way, and random indexes they take the mean of.
SAMPLE, REPEATS = 1.0, 16
#: Random indexes of a replay: in one of a thousand rows chance decides whose turn it is when, and
#: that alone moves a score; in one of millions it does not.
REPLAYS = 16
#: What forecasts may be off by, in 0..1.
WITHIN = 0.01


@dataclass(frozen=True)
class Size:
    """How large the study is.

    Attributes:
        name: "full" or "quick".
        keep: Share of the training classes.
        widths: Of the three generations.
        epochs: Of gallery models; query models take half.
        batch, views: Of each training.
        test: Every so manyth test class asks and is searched.
    """

    name: str
    keep: float
    widths: tuple[int, int, int]
    epochs: int
    batch: int
    views: int
    test: int


SIZES = {
    "full": Size("full", 1.0, (4, 6, 8), 8, 128, 2, 2),
    "quick": Size("quick", 0.34, (4, 6, 8), 2, 64, 1, 6),
}

#: Of each plan: shares of the generations today, and name, traffic and weekly decline of the apps.
PLANS: dict[str, tuple[dict[str, float], tuple[tuple[str, float, float], ...]]] = {
    "v1 to v2": ({"v1": 1.0, "v2": 0.0}, (("app1", 0.9, 0.1), ("app2", 0.1, 0.0))),
    "v1 and v2 to v3": (
        {"v1": 0.5, "v2": 0.5, "v3": 0.0},
        (("app1", 0.4, 0.1), ("app2", 0.5, 0.05), ("app3", 0.1, 0.0)),
    ),
}


def train(data: str, seed: int, size: Size, root: Path) -> None:
    """Three generations and an app for each, in folders of `root`; those there stay."""
    from hetero import data as sources
    from hetero.fit import Settings
    from hetero.preprocess import Preprocess
    from hetero.progress import Reporter
    from hetero.train import (
        GalleryRecipe,
        QueryRecipe,
        UpgradeRecipe,
        train_gallery,
        train_query,
        train_upgrade,
    )

    quiet = Reporter(quiet=True)
    images = fewer_classes(sources.load(data), size.keep)
    how = Settings(size.epochs, batch=size.batch, seed=seed, keep_going=True)
    nets = [f"resnet:width={w}" for w in size.widths]
    line = [
        train_gallery(
            fewer_classes(images, 0.5),
            GalleryRecipe(nets[0]),
            Preprocess(32),
            how,
            root / "v1",
            resume=True,
            reporter=quiet,
        )
    ]
    for number, net in enumerate(nets[1:], 2):
        line.append(
            train_upgrade(
                line[-1],
                images,
                UpgradeRecipe(net, settings={"regression.weight": 10.0}, views=size.views),
                how,
                root / f"v{number}",
                ancestors=line[-2::-1],
                vectors=root / "vectors",
                resume=True,
                reporter=quiet,
            )
        )
    for number, gallery in enumerate(line, 1):
        train_query(
            gallery,
            images,
            QueryRecipe("mobilenet:width=0.25", "regression", views=size.views),
            replace(how, epochs=max(1, size.epochs // 2)),
            root / f"app{number}",
            vectors=root / f"vectors-v{number}",
            resume=True,
            reporter=quiet,
        )


def forecast(
    name: str, images: Any, root: Path, output: Path, sample: float, seed: int
) -> dict[str, Any]:
    """What `hetero upgrade plan` makes of a plan."""
    from hetero.backfill import WEEK_S, Plan
    from hetero.bundle import Bundle
    from hetero.progress import Reporter
    from hetero.stages import planning

    shares, apps = PLANS[name]
    asked = Plan.model_validate(
        {
            "weeks": WEEKS,
            "index": {"images": 1_000_000, "images_per_s": 1_000_000 / (WEEKS * WEEK_S)},
            "generation": [{"bundle": g, "share": share} for g, share in shares.items()],
            "cohort": [{"bundle": a, "traffic": t, "declines": d} for a, t, d in apps],
        }
    )
    made = planning.plan(
        asked,
        [Bundle.load(root / g) for g in shares],
        [Bundle.load(root / a) for a, _, _ in apps],
        images,
        planning.Effort(repeats=REPEATS, sample=sample, seed=seed),
        output,
        Reporter(quiet=True),
    )
    return made.to_json()


def replay(name: str, images: Any, root: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Order -> app -> Recall@1 of each query in each week, and the class of each query.

    Mixed indexes are made here row by row and not by what forecasts are made with; one for each
    seed, of which the mean is taken.
    """
    import numpy as np

    from hetero import refresh
    from hetero.bundle import Bundle
    from hetero.progress import Reporter
    from hetero.retrieval import rank
    from hetero.space import Embeddings
    from hetero.stages.embedding import embed
    from hetero.stages.versioning import embedded

    shares, apps = PLANS[name]
    quiet = Reporter(quiet=True)
    bundles = {b: Bundle.load(root / b) for b in (*shares, *(a for a, _, _ in apps))}
    job, vectors = embedded(tuple(bundles.values()), images, "test", quiet)
    by = [vectors[bundles[g].digest].take(job.gallery_ids) for g in shares]
    count, target = len(job.gallery_ids), len(shares) - 1

    rows = images.rows("train")
    ids = [images.ids[r] for r in rows]
    pixels = images.pixels(rows, bundles["v1"].preprocess)
    learnt = [embed(bundles[g], ids, pixels, quiet) for g in shares]
    unsure = np.stack(
        [refresh.uncertainty(b, x, learnt[-1]) for b, x in zip(by, learnt, strict=True)]
    )

    found: dict[str, dict[str, Any]] = {}
    labels: list[str] = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        now = rng.permutation(np.arange(count) * target // count)
        orders = {
            "random": rng.permutation(count),
            "uncertain first": np.argsort(-unsure[now, np.arange(count)], kind="stable"),
        }
        if target > 1:
            shuffled = rng.permutation(count)
            orders["oldest first"] = shuffled[np.argsort(now[shuffled], kind="stable")]
        for order, rows_first in orders.items():
            for app, _, _ in apps:
                asked, weeks = vectors[bundles[app].digest].take(job.query_ids), []
                for week in range(WEEKS + 1):
                    made = now.copy()
                    made[rows_first[: round(week / WEEKS * count)]] = target
                    mixed = np.stack([by[made[row]].vectors[row] for row in range(count)])
                    index = Embeddings(asked.space, job.gallery_ids, mixed, "replay")
                    ranks = rank(asked, index, job.truth)
                    weeks.append((ranks.best == 0) / len(seeds))
                    labels = list(ranks.labels)
                total = found.setdefault(order, {}).setdefault(app, np.zeros(np.shape(weeks)))
                total += np.asarray(weeks)
    return {"found": found, "labels": labels}


def part(images: Any, every: int) -> Any:
    """The collection with every so manyth class of each split."""
    kept = {c for s in ("train", "val", "test") for c in images.classes(s)[::every]}
    rows = [r for r, label in enumerate(images.labels) if label in kept]
    some = {
        name: tuple(getattr(images, name)[r] for r in rows)
        for name in ("ids", "labels", "groups", "splits", "roles")
    }
    return replace(images, **some, read=lambda row: images.read(rows[row]))


def asking(images: Any, half: int) -> Any:
    """The collection with queries of every other test class only; the gallery stays whole."""
    kept = set(images.classes("test")[half::2])
    roles = [
        "gallery" if split == "test" and label not in kept and role == "both" else role
        for role, split, label in zip(images.roles, images.splits, images.labels, strict=True)
    ]
    return replace(images, roles=tuple(roles))


def study(data: str, seed: int, size: Size, root: Path) -> dict[str, Any]:
    """Everything measured with one seed; models that are in `root` are not trained again."""
    import numpy as np
    import torch

    from hetero import data as sources
    from hetero.metrics import mean

    torch.set_num_threads(1)
    begun = time.process_time()
    train(data, seed, size, root)
    trained = time.process_time() - begun
    images = part(sources.load(data), size.test)
    half = asking(images, 0)
    asked = {label for label, r in zip(images.labels, half.roles, strict=True) if r == "both"}
    plans = {}
    for name in PLANS:
        output = root / "plans" / name.replace(" ", "-")
        told = forecast(name, images, root, output, SAMPLE, seed)
        other = forecast(name, half, root, output / "half", 1.0, seed)
        seen = replay(name, images, root, range(seed + 1000, seed + 1000 + REPLAYS))
        labels = np.asarray(seen["labels"])
        unasked = ~np.isin(labels, sorted(asked))
        points = []
        for order, apps in seen["found"].items():
            for app, values in apps.items():
                for week in range(WEEKS + 1):
                    moved = values[week] - values[0]
                    elsewhere = mean(moved[unasked], labels[unasked].tolist())
                    points.append(
                        {
                            "order": order,
                            "app": app,
                            "week": week,
                            "predicted": _at(told, order, app, week),
                            "replayed": float(values[week].mean()),
                            "replayed_change": float(moved.mean()),
                            "predicted_by_half": _at(other, order, app, week),
                            "replayed_on_other_half": {
                                "change": elsewhere.value,
                                "change_ci": elsewhere.ci,
                            },
                        }
                    )
        outcomes = {
            c["name"]: c["outcome"]
            for o in told["orders"]
            if o["name"] == told["order"]
            for c in o["cohorts"]
        }
        everyone = {o["name"]: _everyone(o, WEEKS) for o in told["orders"]}
        plans[name] = {
            "chosen": told["order"],
            "outcomes": outcomes,
            "matrix": told["matrix"],
            "areas": {o["name"]: o["area"] for o in told["orders"]},
            "everyone": everyone,
            "points": points,
        }
        print(f"{name}: {time.process_time() - begun:.0f} CPU s", flush=True)
    return {
        "seed": seed,
        "cpu_s": round(time.process_time() - begun),
        "training_cpu_s": round(trained),
        "queries": len(labels),
        "classes": len(set(labels.tolist())),
        "plans": plans,
    }


def _at(told: dict[str, Any], order: str, app: str, week: int) -> dict[str, Any]:
    """The forecast of an app in a week."""
    made = next(o for o in told["orders"] if o["name"] == order)
    points = next(c["points"] for c in made["cohorts"] if c["name"] == app)
    found = min(points, key=lambda p: abs(p["week"] - week))
    return {key: found[key] for key in ("value", "ci", "change", "change_ci")}


def _everyone(order: dict[str, Any], weeks: int) -> list[float]:
    """The forecast over all traffic, week by week."""
    made = order["everyone"]
    return [min(made, key=lambda x: abs(x["week"] - w))["value"] for w in range(weeks + 1)]


# -- the rules ------------------------------------------------------------------------------------


def _misses(raw: dict[str, Any]) -> list[tuple[float, str]]:
    """Forecast less replay of every app, order and week, and what it is about."""
    return [
        (
            p["predicted"]["value"] - p["replayed"],
            f"{plan}, {p['app']}, {p['order']}, week {p['week']}",
        )
        for plan, made in raw["plans"].items()
        for p in made["points"]
    ]


def _everyone_misses(raw: dict[str, Any]) -> list[float]:
    """Forecast less replay over all traffic, of every order and week."""
    out = []
    for plan, made in raw["plans"].items():
        apps = PLANS[plan][1]
        for order, predicted in made["everyone"].items():
            for week, value in enumerate(predicted):
                # Who leaves an app is with the last one, as in the plan.
                shares = [t * (1 - d) ** week for _, t, d in apps]
                shares[-1] = 1 - sum(shares[:-1])
                replayed = sum(
                    share
                    * next(
                        p["replayed"]
                        for p in made["points"]
                        if (p["order"], p["app"], p["week"]) == (order, app, week)
                    )
                    for share, (app, _, _) in zip(shares, apps, strict=True)
                )
                out.append(value - replayed)
    return out


def _elsewhere(raw: dict[str, Any]) -> list[tuple[float, bool]]:
    """For classes that were not asked: the miss of each change, and if the intervals explain it."""
    out = []
    for made in raw["plans"].values():
        for p in made["points"]:
            if p["week"] == 0:
                continue
            told, seen = p["predicted_by_half"], p["replayed_on_other_half"]
            widths = [(ci[1] - ci[0]) / 2 for ci in (told["change_ci"], seen["change_ci"])]
            miss = told["change"] - seen["change"]
            out.append((miss, abs(miss) <= (widths[0] ** 2 + widths[1] ** 2) ** 0.5))
    return out


def judge(seeds: Sequence[dict[str, Any]]) -> list[Outcome]:
    """The outcome of every claim."""
    misses = [m for raw in seeds for m in _misses(raw)]
    worst = max(misses, key=lambda m: abs(m[0]))
    typical = sum(abs(m) for m, _ in misses) / len(misses)
    everyone = [m for raw in seeds for m in _everyone_misses(raw)]
    elsewhere = [m for raw in seeds for m in _elsewhere(raw)]
    inside = sum(ok for _, ok in elsewhere) / len(elsewhere)
    wrong, decided = [], 0
    for raw in seeds:
        for plan, made in raw["plans"].items():
            for app, outcome in made["outcomes"].items():
                lowest = min(
                    p["replayed_change"]
                    for p in made["points"]
                    if (p["order"], p["app"]) == (made["chosen"], app)
                )
                if outcome != "inconclusive":
                    decided += 1
                    if (outcome == "fail") != (lowest < -WITHIN):
                        wrong.append(f"{plan}: {app} {outcome}, replayed {100 * lowest:+.1f}")
    return [
        Outcome(
            "P1",
            "what each app finds in each week is forecast within 1 point",
            "Recall@1 of every app, order and week at most 1 point off, every seed",
            f"{len(misses)} points, {100 * typical:.2f} off on average, at worst "
            f"{100 * worst[0]:+.2f} ({worst[1]})",
            abs(worst[0]) <= WITHIN,
        ),
        Outcome(
            "P2",
            "and so is what all traffic finds, while users move on",
            "Recall@1 over all traffic at most 1 point off, every order, week and seed",
            f"at worst {100 * max(everyone, key=abs):+.2f}",
            max(map(abs, everyone)) <= WITHIN,
        ),
        Outcome(
            "P3",
            "an app that is said to break does, and one that is said to hold does",
            "no app falls more than 1 point below today that is said to hold, and every one that "
            "is said to break does; every seed",
            f"{decided} of {sum(len(m['outcomes']) for r in seeds for m in r['plans'].values())} "
            f"apps decided; wrong: {'; '.join(wrong) or 'none'}",
            not wrong,
        ),
        Outcome(
            "P4",
            "intervals are wide enough for classes that were not asked",
            "changes against today, forecast from every other class: at least 9 in 10 of those "
            "replayed on the other classes within both intervals combined",
            f"{100 * inside:.0f} % inside; {100 * max((m for m, _ in elsewhere), key=abs):+.2f} "
            f"points off at worst",
            inside >= 0.9,
        ),
    ]


def section(name: str, raw: dict[str, Any]) -> str:
    """The part of docs/results.md about one collection."""
    size, seeds = raw["size"], raw["seeds"]
    outcomes = judge(seeds)
    minutes = sum(s["cpu_s"] for s in seeds) / 60
    lines = [
        f"## Plans for re-embedding, replayed: {name}, {sum(o.passed for o in outcomes)} of "
        f"{len(outcomes)} hold",
        "",
        f"`{raw['command']}`: generations `resnet` of widths "
        f"{', '.join(map(str, size['widths']))}, {size['epochs']} epochs, an app "
        "`mobilenet:width=0.25` for each; seeds "
        f"{', '.join(str(s['seed']) for s in seeds)}; {minutes:.0f} CPU minutes. Forecast from "
        f"{100 * raw['sample']:g} % of {seeds[0]['queries']:,} queries of "
        f"{seeds[0]['classes']} classes, at three shares between none and all, in "
        f"{raw['repeats']} random indexes; replayed in {raw['replays']} others, with every query, "
        f"in {WEEKS} steps.",
        "",
        *table(outcomes),
        "",
        f"Recall@1, forecast / replayed, order `random`, seed {seeds[0]['seed']}:",
        "",
        f"| plan | app | verdict | {' | '.join(f'week {w}' for w in range(0, WEEKS + 1, 2))} |",
        "| --- | --- | --- |" + " --- |" * (WEEKS // 2 + 1),
    ]
    for plan, made in seeds[0]["plans"].items():
        for app, outcome in made["outcomes"].items():
            points = [p for p in made["points"] if (p["order"], p["app"]) == ("random", app)]
            cells = [
                f"{100 * p['predicted']['value']:.1f} / {100 * p['replayed']:.1f}"
                for p in points[::2]
            ]
            lines.append(f"| {plan} | {app} | {outcome} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Run and print the outcomes."""
    made = parser(__doc__, NAMES)
    made.add_argument("--quick", action="store_true")
    made.add_argument("--seeds", type=int, nargs="*", default=[0])
    args = made.parse_args()
    size = SIZES["quick" if args.quick else "full"]
    tail = "-quick" if args.quick else ""
    seeds = []
    for seed in args.seeds:
        work = args.work / f"planner-{args.name}{tail}" / f"seed-{seed}"
        seeds.append(study(args.data, seed, size, work))
        save(
            args.results / f"planner-{args.name}{tail}.json",
            {
                "command": f"python -m benchmarks.planner {args.name}"
                + (" --quick" if args.quick else ""),
                "size": asdict(size),
                "sample": SAMPLE,
                "repeats": REPEATS,
                "replays": REPLAYS,
                "machine": machine(),
                "seeds": seeds,
            },
        )
    return told(judge(seeds))


if __name__ == "__main__":
    sys.exit(main())
