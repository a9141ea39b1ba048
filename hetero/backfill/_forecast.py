"""An index on its way to a new gallery model, and the apps that ask it meanwhile: a forecast.

A *cohort* is an installed version of the app: a query model, its share of the traffic, and how fast
its users move on. While rows of older *generations* are re-embedded by the newest one, each cohort
meets an index of another mixture every day. What it finds at a few shares is measured; everything
between is interpolated query by query, so that intervals, differences and sums over cohorts follow.

Where only some queries are asked of mixed indexes, their mean is not taken for that of all: all
queries are asked at both ends, and the few only say how far the way between leaves the straight
line. That is the difference estimator of survey sampling (Särndal, Swensson and Wretman, "Model
Assisted Survey Sampling", 1992, section 6.3). A few hundred queries still leave points of Recall@1
open there, and the intervals say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from hetero import compatibility
from hetero.backfill._plan import LONGEST_WEEKS, Cohort, Plan
from hetero.errors import ConfigError, DataError
from hetero.metrics import Score, mean
from hetero.verdict import Decided

WEEK_S = 7 * 24 * 3600.0

#: Traffic below which a cohort counts as gone.
GONE = 0.01


# -- what is measured -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Way:
    """What each query finds while rows are re-embedded in some order.

    Attributes:
        progress: Shares of the rows to be re-embedded, ascending from 0 to 1.
        values: The metric of each query at each of these; the mean over queries is the score.
        labels: The class of each query.
    """

    progress: tuple[float, ...]
    values: Float64[np.ndarray, "p q"]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what is no way from start to end."""
        rising = all(a < b for a, b in zip(self.progress, self.progress[1:], strict=False))
        if not (rising and (self.progress[0], self.progress[-1]) == (0.0, 1.0)):
            raise DataError(f"forecast: progress ascends from 0 to 1; got {self.progress}")
        if self.values.shape != (len(self.progress), len(self.labels)):
            raise DataError(
                f"forecast: values of shape {self.values.shape} for {len(self.progress)} shares "
                f"and {len(self.labels)} queries"
            )

    def at(self, progress: float) -> Float64[np.ndarray, " q"]:
        """The values at any progress in 0..1, on the straight line between those measured."""
        right = min(max(int(np.searchsorted(self.progress, progress)), 1), len(self.progress) - 1)
        left, width = right - 1, self.progress[right] - self.progress[right - 1]
        part = (progress - self.progress[left]) / width
        made: Float64[np.ndarray, " q"] = (1 - part) * self.values[left] + part * self.values[right]
        return made


def estimated(
    progress: Sequence[float],
    start: Float64[np.ndarray, " q"],
    end: Float64[np.ndarray, " q"],
    between: Float64[np.ndarray, "m s"],
    some: Int64[np.ndarray, " s"],
    labels: tuple[str, ...],
) -> Way:
    """The way of all queries where only some were asked on it.

    Args:
        progress: From 0 to 1.
        start: Of every query before anything is re-embedded.
        end: Of every query when all is.
        between: Of some queries at each progress but the first and the last.
        some: Which ones, by position.
        labels: The class of every query.
    """
    values = []
    for at, found in zip(progress[1:-1], between, strict=True):
        line = (1 - at) * start + at * end
        # Each query asked stands for all those of its kind that were not.
        line[some] += len(start) / len(some) * (found - line[some])
        values.append(line)
    return Way(tuple(progress), np.stack([start, *values, end]), labels)


# -- the forecast ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A cohort at one time.

    Attributes:
        week: From now.
        progress: Share of the rows to be re-embedded that are, in 0..1.
        traffic: The cohort's share of all queries.
        score: What it finds.
        change: The same less what it finds today, paired by query.
        outcome: Whether it is above its floor and within the margin of today.
    """

    week: float
    progress: float
    traffic: float
    score: Score
    change: Score
    outcome: Decided


@dataclass(frozen=True)
class Outlook:
    """A cohort over time.

    Attributes:
        name: Of the cohort.
        points: In order of time.
        reason: Why it cannot search what is to come, in words; "" where it can.
        gone_week: When its traffic is below `GONE`; None if that never happens.
    """

    name: str
    points: tuple[Point, ...]
    reason: str = ""
    gone_week: float | None = None

    @property
    def outcome(self) -> Decided:
        """Fail where it breaks at some time, pass where it certainly never does."""
        return _worst(p.outcome for p in self.points)

    @property
    def breaks(self) -> Point | None:
        """The first time that it breaks; where that is uncertain, that it may; None if never."""
        return next((p for p in self.points if p.outcome == self.outcome != "pass"), None)

    @property
    def worst(self) -> Point:
        """The time of its lowest score."""
        return min(self.points, key=lambda p: p.score.value)


@dataclass(frozen=True)
class Order:
    """A forecast for one order of re-embedding.

    Attributes:
        name: Of the order.
        everyone: Time in weeks and the score over all traffic.
        area: The mean of that over the time of re-embedding.
        gain: The area less that of the first order, paired by query.
        cohorts: One each.
    """

    name: str
    everyone: tuple[tuple[float, Score], ...]
    area: Score
    gain: Score
    cohorts: tuple[Outlook, ...]


@dataclass(frozen=True)
class Forecast:
    """What a plan comes to.

    Attributes:
        plan: What was asked.
        images_per_s: Speed of re-embedding.
        measured: Whether that was measured here rather than given.
        cells: (cohort, generation) -> score in an index of that generation alone; None where they
            share no space.
        orders: At least one.
        sample: Share of the queries that were asked of mixed indexes.
    """

    plan: Plan
    images_per_s: float
    measured: bool
    cells: Mapping[tuple[str, str], Score | None]
    orders: tuple[Order, ...]
    sample: float = 1.0

    @property
    def chosen(self) -> Order:
        """The order with the largest area; of equal ones the first."""
        return max(self.orders, key=lambda o: o.area.value)

    @property
    def duration_weeks(self) -> float:
        """How long re-embedding takes."""
        return duration_weeks(self.plan, self.images_per_s)

    @property
    def outcome(self) -> Decided:
        """Fail where a cohort breaks under the chosen order."""
        return _worst(c.outcome for c in self.chosen.cohorts)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plan = self.plan
        return {
            "outcome": self.outcome,
            "metric": plan.metric,
            "rows": plan.rows,
            "cost": plan.cost,
            "currency": plan.index.currency,
            "images_per_s": self.images_per_s,
            "images_per_s_is": "measured here" if self.measured else "as given",
            "starts_week": plan.index.starts_week,
            "duration_weeks": self.duration_weeks,
            "sample": self.sample,
            "order": self.chosen.name,
            "matrix": [
                {"cohort": c, "generation": g, **({} if s is None else _plain(s))}
                for (c, g), s in self.cells.items()
            ],
            "orders": [
                {
                    "name": o.name,
                    "area": _plain(o.area),
                    "gain": _plain(o.gain),
                    "everyone": [{"week": week, **_plain(s)} for week, s in o.everyone],
                    "cohorts": [_outlook(c) for c in o.cohorts],
                }
                for o in self.orders
            ],
            "plan": plan.model_dump(),
        }


def _plain(score: Score) -> dict[str, Any]:
    return {"value": score.value, "ci": score.ci}


def _outlook(cohort: Outlook) -> dict[str, Any]:
    breaks = cohort.breaks
    return {
        "name": cohort.name,
        "outcome": cohort.outcome,
        "breaks_week": breaks and breaks.week,
        "reason": cohort.reason,
        "gone_week": cohort.gone_week,
        "points": [
            {
                "week": p.week,
                "progress": p.progress,
                "traffic": p.traffic,
                **_plain(p.score),
                "change": p.change.value,
                "change_ci": p.change.ci,
                "outcome": p.outcome,
            }
            for p in cohort.points
        ],
    }


def _worst(outcomes: Iterable[Decided]) -> Decided:
    seen = set(outcomes)
    return "fail" if "fail" in seen else "inconclusive" if "inconclusive" in seen else "pass"


def duration_weeks(plan: Plan, images_per_s: float) -> float:
    """How long the rows of a plan take to be re-embedded."""
    return plan.rows / images_per_s / WEEK_S


def timeline(
    plan: Plan, images_per_s: float, progress: Sequence[float]
) -> tuple[tuple[float, float], ...]:
    """Times in weeks and the progress then: every week, and whenever a measured share is reached.

    Raises:
        ConfigError: It takes more than `LONGEST_WEEKS`.
    """
    begins, takes = plan.index.starts_week, duration_weeks(plan, images_per_s)
    last = max(plan.weeks, math.ceil(begins + takes))
    if last > LONGEST_WEEKS:
        raise ConfigError(
            f"plan: {plan.rows:,} images at {images_per_s:.3g} a second take {takes:,.0f} weeks; "
            f"at most {LONGEST_WEEKS} are planned, so give it more workers (index.images_per_s)"
        )
    found = {float(w): min(1.0, max(0.0, (w - begins) / takes)) for w in range(last + 1)}
    found |= {begins + p * takes: float(p) for p in progress}
    return tuple(sorted(found.items()))


def forecast(
    plan: Plan,
    images_per_s: float,
    ways: Mapping[str, Sequence[Way]],
    *,
    reasons: Sequence[str] = (),
    on_point: Callable[[], None] = lambda: None,
) -> tuple[Order, ...]:
    """What each order of re-embedding means to each cohort and to all traffic.

    Args:
        plan: Cohorts, traffic, floors, times.
        images_per_s: Speed of re-embedding.
        ways: Order -> the way of each cohort, in the plan's order; all about the same queries.
        reasons: For each cohort, why it cannot search what is to come; "" where it can.
        on_point: Called after each time of each order.

    Raises:
        ConfigError: See `timeline`.
        DataError: Ways are about different queries, or are not one for each cohort.
    """
    every = [way for found in ways.values() for way in found]
    if any(len(found) != len(plan.cohort) for found in ways.values()):
        raise DataError(f"forecast: one way for each of {len(plan.cohort)} cohorts")
    if len({way.labels for way in every}) != 1:
        raise DataError("forecast: the ways are not about the same queries")
    shares = sorted({p for way in every for p in way.progress})
    times = timeline(plan, images_per_s, shares)
    begins, takes = plan.index.starts_week, duration_weeks(plan, images_per_s)
    out: list[Order] = []
    reference: Float64[np.ndarray, " q"] | None = None
    for name, found in ways.items():
        labels = found[0].labels
        whole = []
        outlooks: list[list[Point]] = [[] for _ in plan.cohort]
        known: list[dict[float, tuple[Score, Score, Decided]]] = [{} for _ in plan.cohort]
        everyone = []
        for week, progress in times:
            traffic = plan.traffic(week)
            values = [way.at(progress) for way in found]
            for at, cohort in enumerate(plan.cohort):
                if progress not in known[at]:
                    lost = bool(reasons and reasons[at] and progress)
                    known[at][progress] = _judged(values[at], found[at], cohort, plan.margin, lost)
                outlooks[at].append(Point(week, progress, float(traffic[at]), *known[at][progress]))
            whole.append(traffic @ np.stack(values))
            everyone.append((week, mean(whole[-1], labels)))
            on_point()
        during = [at for at, (week, _) in enumerate(times) if begins <= week <= begins + takes]
        weeks = np.asarray([times[at][0] for at in during])
        area = np.trapezoid(np.stack([whole[at] for at in during]), weeks, axis=0) / np.ptp(weeks)
        reference = area if reference is None else reference
        out.append(
            Order(
                name,
                tuple(everyone),
                mean(area, labels),
                mean(area - reference, labels),
                tuple(
                    Outlook(title, tuple(points), reason, _gone(cohort))
                    for title, cohort, points, reason in zip(
                        plan.cohorts,
                        plan.cohort,
                        outlooks,
                        reasons or [""] * len(plan.cohort),
                        strict=True,
                    )
                ),
            )
        )
    return tuple(out)


def _judged(
    values: Float64[np.ndarray, " q"], way: Way, cohort: Cohort, margin: float, lost: bool
) -> tuple[Score, Score, Decided]:
    """Score, change, and outcome: a failure where all is lost."""
    score = mean(values, way.labels)
    change = mean(values - way.values[0], way.labels)
    met: list[bool | None] = []
    if lost:
        met.append(False)
    elif not np.array_equal(values, way.values[0]):
        met.append(compatibility.held(change, margin).met)
    if cohort.floor is not None:
        low, high = score.ci or (-math.inf, math.inf)
        above = (low - cohort.floor, high - cohort.floor)
        met.append(compatibility.held(Score(score.value - cohort.floor, above, score.n)).met)
    return score, change, "fail" if False in met else "inconclusive" if None in met else "pass"


def _gone(cohort: Cohort) -> float | None:
    if cohort.traffic <= GONE:
        return 0.0
    if cohort.declines in (0, 1):
        return None if cohort.declines == 0 else 0.0
    return math.log(GONE / cohort.traffic) / math.log1p(-cohort.declines)
