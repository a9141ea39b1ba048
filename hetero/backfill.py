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
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hetero import compatibility
from hetero.errors import ConfigError, DataError
from hetero.metrics import Score, mean
from hetero.verdict import Decided
from hetero.versions import METRICS

WEEK_S = 7 * 24 * 3600.0

#: A plan that takes longer than this is none.
LONGEST_WEEKS = 260

#: Traffic below which a cohort counts as gone.
GONE = 0.01


# -- the plan file --------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Index(_Part):
    """The index in production.

    Attributes:
        images: Rows in it.
        price_per_1000: Of embedding a thousand images, in `currency`.
        currency: For people.
        images_per_s: How fast rows are re-embedded, all workers together; None to measure what this
            machine does.
        starts_week: When re-embedding begins, in weeks from now.
    """

    images: int = Field(ge=1, le=10**15)
    price_per_1000: float = Field(default=0.0, ge=0)
    currency: str = "USD"
    images_per_s: float | None = Field(default=None, gt=0)
    starts_week: float = Field(default=0.0, ge=0, le=LONGEST_WEEKS)


class Generation(_Part):
    """A gallery model with rows in the index, or, the last one, by which rows are re-embedded.

    Attributes:
        bundle: Folder of the gallery bundle.
        name: For people; "" for the folder's.
        share: Of the rows today, in 0..1.
    """

    bundle: str = Field(min_length=1)
    name: str = ""
    share: float = Field(default=0.0, ge=0, le=1)


class Cohort(_Part):
    """An installed version of the app.

    Attributes:
        bundle: Folder of its query bundle.
        name: For people; "" for the folder's.
        traffic: Its share of the queries today, in 0..1.
        declines: Share of its users that go over to the last cohort each week, in 0..1.
        floor: What it has to find at any time, in 0..1; None for no more than today less the
            margin.
    """

    bundle: str = Field(min_length=1)
    name: str = ""
    traffic: float = Field(ge=0, le=1)
    declines: float = Field(default=0.0, ge=0, le=1)
    floor: float | None = Field(default=None, ge=0, le=1)


class Plan(_Part):
    """A plan file.

    Attributes:
        metric: Of `hetero.versions.METRICS`.
        weeks: To look ahead; more if re-embedding takes longer.
        margin: What a cohort may lose against today, in 0..1.
        index: See `Index`.
        generation: Oldest first; the last one re-embeds the rows of the others.
        cohort: Oldest first; users go over to the last one.
    """

    metric: str = "recall_at_1"
    weeks: int = Field(default=12, ge=1, le=LONGEST_WEEKS)
    margin: float = Field(default=0.01, ge=0, le=1)
    index: Index
    generation: list[Generation] = Field(min_length=2)
    cohort: list[Cohort] = Field(min_length=1)

    @model_validator(mode="after")
    def _adds_up(self) -> Plan:
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r}: there are {', '.join(METRICS)}")
        for what, values in (
            ("share of all generations", [g.share for g in self.generation]),
            ("traffic of all cohorts", [c.traffic for c in self.cohort]),
        ):
            if not math.isclose(sum(values), 1, abs_tol=1e-3):
                raise ValueError(f"{what}: adds up to {sum(values):g}, not to 1")
        for kind, names in (("generation", self.generations), ("cohort", self.cohorts)):
            if twice := next((n for n in names if names.count(n) > 1), None):
                raise ValueError(f"{kind} {twice!r} is there twice; give each a name")
        if self.generation[-1].share > 1 - 1e-9:
            raise ValueError(f"all rows are of {self.generations[-1]} already; nothing to plan")
        if self.cohort[-1].declines:
            raise ValueError(
                f"cohort {self.cohorts[-1]!r} is the last, to which users go over; it cannot "
                "decline"
            )
        return self

    @property
    def generations(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(g.name or Path(g.bundle).name for g in self.generation)

    @property
    def cohorts(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(c.name or Path(c.bundle).name for c in self.cohort)

    @property
    def rows(self) -> int:
        """How many rows are to be re-embedded."""
        return math.ceil((1 - self.generation[-1].share) * self.index.images)

    @property
    def cost(self) -> float:
        """What that costs, in `Index.currency`."""
        return self.rows / 1000 * self.index.price_per_1000

    def traffic(self, week: float) -> Float64[np.ndarray, " c"]:
        """Each cohort's share of the traffic, in so many weeks."""
        now = np.asarray([c.traffic for c in self.cohort], dtype=np.float64)
        kept = now * np.asarray([(1 - c.declines) ** week for c in self.cohort])
        kept[-1] += now.sum() - kept.sum()
        shares: Float64[np.ndarray, " c"] = kept / now.sum()
        return shares


def load(path: Path) -> Plan:
    """The plan of a TOML file; folders in it are relative to the file.

    Raises:
        ConfigError: The file is missing, is not TOML, or has a wrong key or value.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: plan cannot be read ({error})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        plan = Plan.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(x + 1 if isinstance(x, int) else x) for x in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {f'{where}: ' if where else ''}{what}") from error

    def beside(part: Any) -> Any:
        return part.model_copy(update={"bundle": str(path.parent / part.bundle)})

    parts = {key: [beside(p) for p in getattr(plan, key)] for key in ("generation", "cohort")}
    return plan.model_copy(update=parts)


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
