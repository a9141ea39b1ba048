"""Stage: a plan for re-embedding an index, from what each app version finds at a few shares."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from hetero import backfill, refresh, versions
from hetero._files import make_folder, write_json
from hetero.backfill import Forecast, Plan, Way
from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import ConfigError, SpaceMismatchError
from hetero.evaluate import Task
from hetero.metrics import Score, per_query
from hetero.progress import Reporter
from hetero.render import backfill as render
from hetero.retrieval import Ranks
from hetero.space import Embeddings
from hetero.stages.checking import unseen
from hetero.stages.drawing import drawn
from hetero.stages.embedding import embed
from hetero.stages.versioning import embedded

#: Pictures embedded to measure how fast that goes.
TIMED = 512


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        progress: Shares of the rows to be re-embedded at which every order is measured, ascending
            from 0 to 1.
        repeats: Times that rows of the test gallery are dealt to generations, and put in an order.
        sample: Share of the queries that are asked of mixed indexes, in 0..1; all are asked at both
            ends.
        seed: Of what is dealt, ordered and sampled.
    """

    progress: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    repeats: int = 2
    sample: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what measures no way from start to end."""
        rising = all(a < b for a, b in zip(self.progress, self.progress[1:], strict=False))
        if not rising or self.progress[:1] != (0.0,) or self.progress[-1:] != (1.0,):
            raise ConfigError(
                f"plan: shares ascend from 0 to 1, both included; got {self.progress}"
            )
        if self.repeats < 1 or not 0 < self.sample <= 1:
            raise ConfigError(
                "plan: at least one repeat and a sample above 0, of at most 1; got "
                f"{self.repeats} and {self.sample:g}"
            )


def plan(
    asked: Plan,
    generations: Sequence[Bundle],
    cohorts: Sequence[Bundle],
    images: Images,
    effort: Effort,
    output: Path,
    reporter: Reporter,
) -> Forecast:
    """The forecast of a plan, measured on test classes; writes plan.json and plan.svg.

    Args:
        asked: What is in production.
        generations: Gallery bundles in the plan's order.
        cohorts: Query bundles, or gallery bundles that are to query, in the plan's order.
        images: Test split for what is found, training split for what is uncertain.
        effort: How much is measured.
        output: Folder for results.
        reporter: Shows progress.

    Raises:
        SpaceMismatchError: Generations with rows in the index share no space with each other.
        DataError: A test class was trained on.
        ConfigError: Re-embedding takes years.
    """
    bundles = {b.digest: b for b in (*generations, *cohorts)}
    for bundle in bundles.values():
        unseen(bundle, images)
    job, vectors = embedded(tuple(bundles.values()), images, "test", reporter)
    speed = asked.index.images_per_s or _speed(generations[-1], images, job, reporter)
    # Before the long part: a plan of many years is refused at once.
    backfill.timeline(asked, speed, effort.progress)

    # Only generations with rows in the index, and the one they are to have.
    present = [
        at for at, g in enumerate(asked.generation) if g.share or at == len(asked.generation) - 1
    ]
    galleries = [generations[at] for at in present]
    rows = versions.common(*((vectors[g.digest], g.nested) for g in galleries))
    shares = [asked.generation[at].share for at in present]
    names = ["random"]
    if len(present) > 2:
        names.append("oldest first")
    unsure: Sequence[Mapping[str, float]] = ()
    if images.rows("train"):
        names.append("uncertain first")
        unsure = _uncertainty(galleries, rows, job, images, reporter)
    else:
        reporter.line(f"{images.name}: no training pictures, so none is the more uncertain")
    deals = [dealt(job.gallery_ids, shares, effort.seed + n) for n in range(effort.repeats)]
    orders = {
        name: [_ordered(name, parts, unsure, effort.seed + n) for n, parts in enumerate(deals)]
        for name in names
    }
    found = _Measured(asked, galleries, vectors, job, deals, orders, effort)
    ways: dict[str, list[Way]] = {name: [] for name in orders}
    reasons = []
    with reporter.bar("search mixed indexes", len(cohorts) * found.steps) as bar:
        for name, query in zip(asked.cohorts, cohorts, strict=True):
            try:
                measured = found.ways(query, bar.advance)
                reasons.append("")
            except SpaceMismatchError:
                measured = dict.fromkeys(orders, found.shut_out(query))
                there = " and ".join(asked.generations[at] for at in present)
                reasons.append(f"{name} shares no space with {there}")
            for order, way in measured.items():
                ways[order].append(way)
    shown = {p for measured in ways.values() for way in measured for p in way.progress}
    times = len(backfill.timeline(asked, speed, sorted(shown)))
    with reporter.bar("forecast", times * len(orders)) as bar:
        made = backfill.forecast(
            asked, speed, ways, reasons=reasons, on_point=lambda: bar.advance(1)
        )
    done = Forecast(
        asked,
        speed,
        asked.index.images_per_s is None,
        _cells(asked, generations, cohorts, job, vectors),
        made,
        effort.sample,
    )
    make_folder(output)
    write_json(output / "plan.json", done.to_json())
    drawn(output / "plan.svg", lambda: render.drawing(done), reporter)
    return done


def _speed(bundle: Bundle, images: Images, job: Task, reporter: Reporter) -> float:
    """Images a second that this machine embeds by PyTorch."""
    some = min(TIMED, len(job.rows))
    pixels = images.pixels(job.rows[:some], bundle.preprocess)
    begun = time.perf_counter()
    embed(bundle, job.ids[:some], pixels, reporter)
    return some / (time.perf_counter() - begun)


def dealt(ids: Sequence[str], shares: Sequence[float], seed: int) -> tuple[tuple[str, ...], ...]:
    """The rows of each generation in a random index with these shares."""
    order = refresh.at_random(ids, seed)
    edges = [round(x * len(ids)) for x in np.cumsum([0.0, *shares]) / sum(shares)]
    return tuple(order[a:b] for a, b in itertools.pairwise(edges))


def _index(by: Sequence[Embeddings], parts: Sequence[Sequence[str]]) -> Embeddings:
    """The index in which each generation has its part of the rows."""
    index = by[0]
    for rows, ids in zip(by[1:], parts[1:], strict=True):
        index = refresh.mixed(index, rows, ids)
    return index


def _ordered(
    name: str,
    parts: Sequence[Sequence[str]],
    unsure: Sequence[Mapping[str, float]],
    seed: int,
) -> tuple[str, ...]:
    """The rows that are not by the last generation, the first to be re-embedded first."""
    old = [i for ids in parts[:-1] for i in ids]
    if name == "random":
        return refresh.at_random(old, seed)
    if name == "oldest first":
        return tuple(i for ids in parts[:-1] for i in refresh.at_random(ids, seed))
    value = [found[i] for found, ids in zip(unsure, parts[:-1], strict=True) for i in ids]
    return refresh.most_first(old, np.asarray(value, dtype=np.float64))


def _uncertainty(
    galleries: Sequence[Bundle],
    rows: Sequence[Embeddings],
    job: Task,
    images: Images,
    reporter: Reporter,
) -> list[dict[str, float]]:
    """For each generation but the last, how far each row is expected to move, by id."""
    train = images.rows("train")
    ids = [images.ids[r] for r in train]
    *before, after = versions.common(
        *(
            (embed(g, ids, images.pixels(train, g.preprocess), reporter), g.nested)
            for g in galleries
        )
    )
    return [
        dict(
            zip(
                job.gallery_ids,
                refresh.uncertainty(there.take(job.gallery_ids), learnt, after).tolist(),
                strict=True,
            )
        )
        for there, learnt in zip(rows, before, strict=False)
    ]


@dataclass(frozen=True)
class _Measured:
    """What every cohort is measured on.

    Attributes:
        plan: For metric and names.
        galleries: Generations with rows in the index, and the one they are to have.
        vectors: By digest of the bundle, of all pictures.
        job: Queries and gallery.
        deals: Rows of each of the galleries, once for each repeat.
        orders: Order -> rows to be re-embedded, once for each repeat.
        effort: See there.
    """

    plan: Plan
    galleries: Sequence[Bundle]
    vectors: Mapping[str, Embeddings]
    job: Task
    deals: Sequence[Sequence[Sequence[str]]]
    orders: Mapping[str, Sequence[Sequence[str]]]
    effort: Effort

    @property
    def steps(self) -> int:
        """Searches for each cohort."""
        return len(self.deals) * (1 + len(self.orders) * (len(self.effort.progress) - 2))

    def ways(self, query: Bundle, on_searches: Callable[[int], None]) -> dict[str, Way]:
        """Order -> a cohort's way.

        Args:
            query: The cohort's model.
            on_searches: Called with how many of `steps` are done.

        Raises:
            SpaceMismatchError: It shares no space with a generation.
        """
        asked, *there = self._common(query, self.galleries)
        indexes = [_index(there, parts) for parts in self.deals]
        starts = [self.job.rank(asked, index) for index in indexes]
        first, start = starts[0], self._mean(starts)
        end = self._mean([self.job.rank(asked, there[-1])])
        on_searches(len(indexes))
        chosen = np.random.default_rng(self.effort.seed).permutation(len(first.queries))
        some = np.sort(chosen[: max(1, round(self.effort.sample * len(chosen)))]).astype(np.int64)
        few = _only(self.job, first.queries[some])
        inner = self.effort.progress[1:-1]
        out = {}
        for name, lists in self.orders.items():
            between = np.empty((len(inner), len(some)))
            for at, progress in enumerate(inner):
                between[at] = self._mean(
                    [
                        refresh.ranks(
                            few, asked, index, there[-1], ids[: round(progress * len(ids))]
                        )
                        for index, ids in zip(indexes, lists, strict=True)
                    ]
                )
                on_searches(len(indexes))
            out[name] = backfill.estimated(
                self.effort.progress, start, end, between, some, first.labels
            )
        return out

    def shut_out(self, query: Bundle) -> Way:
        """The way of a cohort that finds nothing from the first re-embedded row on."""
        target = self.vectors[self.galleries[-1].digest]
        labels = self.job.rank(target, target).labels
        start = np.zeros(len(labels))
        if not any(parts[-1] for parts in self.deals):
            with contextlib.suppress(SpaceMismatchError):
                asked, *there = self._common(query, self.galleries[:-1])
                indexes = [_index(there, parts[:-1]) for parts in self.deals]
                start = self._mean([self.job.rank(asked, index) for index in indexes])
        none = np.zeros(len(labels))
        return Way((0.0, 1 / max(2, self.plan.rows), 1.0), np.stack([start, none, none]), labels)

    def _common(self, query: Bundle, galleries: Sequence[Bundle]) -> tuple[Embeddings, ...]:
        return versions.common(*((self.vectors[b.digest], b.nested) for b in (query, *galleries)))

    def _mean(self, found: Sequence[Ranks]) -> Float64[np.ndarray, " q"]:
        module, k = versions.metric_of(self.plan.metric)
        values: Float64[np.ndarray, " q"] = np.mean(
            [per_query(module, ranks, k) for ranks in found], axis=0
        )
        return values


def _only(job: Task, queries: Int64[np.ndarray, " s"]) -> Task:
    """The task with some of its queries."""
    some = queries.tolist()
    return replace(
        job,
        query_ids=tuple(job.query_ids[q] for q in some),
        truth=replace(
            job.truth,
            query_labels=tuple(job.truth.query_labels[q] for q in some),
            query_groups=tuple(job.truth.query_groups[q] for q in some),
        ),
    )


def _cells(
    plan: Plan,
    generations: Sequence[Bundle],
    cohorts: Sequence[Bundle],
    job: Task,
    vectors: Mapping[str, Embeddings],
) -> dict[tuple[str, str], Score | None]:
    """What each cohort finds in an index of one generation."""
    out: dict[tuple[str, str], Score | None] = {}
    for name, query in zip(plan.cohorts, cohorts, strict=True):
        for title, gallery in zip(plan.generations, generations, strict=True):
            try:
                ranks = job.rank(
                    *versions.meet(
                        vectors[query.digest],
                        vectors[gallery.digest],
                        query.nested,
                        gallery.nested,
                    )
                )
            except SpaceMismatchError:
                out[name, title] = None
                continue
            out[name, title] = versions.scored(ranks, plan.metric)
    return out
