"""Which wrong version of a step gives what the device gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hetero.diagnose._evidence import departure
from hetero.diagnose._pipeline import (
    PICTURE_STEPS,
    STEP_OF,
    STEPS,
    Array,
    Engine,
    Pipeline,
    States,
    reference,
    run,
)
from hetero.diagnose.hypotheses import Variant
from hetero.preprocess import Preprocess

#: Share of the pictures that a cause has to bring into their bands.
_NEARLY_ALL = 0.97

#: A cause that is none of the list's, but near one of them: at least this part of what moved is
#: explained, and whatever else is tried leaves at least so many times as much unexplained.
_MOSTLY, _TIMES = 0.8, 2.5

#: How many variants are tried on all pictures, and what they have to explain of some.
_ON_ALL, _WORTH = 6, 0.3


@dataclass(frozen=True, eq=False)
class Tried:
    """A variant and how near it comes.

    Attributes:
        variant: What was tried.
        explained: Part of the departure that it takes away, at most 1; below 0 if it adds.
        reproduces: Whether it gives what the device gave, within the bands.
        gap: What is left, one a picture.
        value: What it gave.
    """

    variant: Variant
    explained: float
    reproduces: bool
    gap: Array
    value: Any = None


@dataclass(frozen=True, eq=False)
class Point:
    """Where a search compares.

    Attributes:
        start: The step whose input is known.
        value: That input.
        until: The step before which the pipeline stops; "" for the end.
        target: What the device had there.
        measure: (ours, the device's) -> how far apart, one a picture.
        allow: How far apart they may be, one a picture.
    """

    start: str
    value: Any
    until: str
    target: Any
    measure: Callable[[Any, Any], Array]
    allow: Array


def at(states: States, until: str) -> Any:
    """What the pipeline holds before a step, or its rows at the end."""
    return states.before[until] if until else states.rows


def outcome(
    pipeline: Pipeline, spec: Preprocess, engine: Engine, point: Point, *, by_file: bool
) -> Any:
    """What a pipeline has at a point."""
    states = run(
        pipeline, spec, engine, point.start, point.value, by_file=by_file, until=point.until
    )
    return at(states, point.until)


def stages_of(start: str, until: str) -> tuple[str, ...]:
    """The stages whose step lies between two steps."""
    low, high = STEPS.index(start), STEPS.index(until) if until else len(STEPS)
    return tuple(s for s, step in STEP_OF.items() if low <= STEPS.index(step) < high)


def weigh(
    variants: Iterable[Variant],
    spec: Preprocess,
    engine: Engine,
    point: Point,
    states: States,
    screen: Array,
    known: dict[tuple[str, str, str], Any] | None = None,
) -> list[Tried]:
    """Every variant that can act between the two ends of a point, the best first.

    Args:
        variants: Those of other stages are passed over.
        spec: How pictures should be prepared.
        engine: The reference model.
        point: Where to compare.
        states: The reference's from `point.start` on.
        screen: Places of some pictures of every kind, the first one among them.
        known: What variants gave before, by stage, text and point; read and added to.
    """
    low, high = STEPS.index(point.start), STEPS.index(point.until) if point.until else len(STEPS)
    able = [v for v in variants if low <= STEPS.index(v.at) < high]
    # What acts on pictures costs most. It is tried on some of them, and what comes near on all.
    small, part = some_states(states, screen), some_of(point, screen)
    rough = [v for v in able if v.at in (*PICTURE_STEPS, "normalise", "layout")]
    seen = sorted(_judged(rough, spec, engine, part, small, known, "some "), key=order)
    near = {id(t.variant) for t in seen[:_ON_ALL] if t.explained > _WORTH}
    whole = [v for v in able if id(v) in near or v not in rough]
    rest = [replace(t, reproduces=False) for t in seen if id(t.variant) not in near]
    return sorted([*_judged(whole, spec, engine, point, states, known, ""), *rest], key=order)


def _judged(
    variants: Iterable[Variant],
    spec: Preprocess,
    engine: Engine,
    point: Point,
    states: States,
    known: dict[tuple[str, str, str], Any] | None,
    what: str,
) -> Iterator[Tried]:
    """Variants that change something, each held against the device."""
    ours = at(states, point.until)
    before = np.clip(point.measure(ours, point.target), 0, None)
    for variant in variants:
        key = (variant.stage, variant.what, what + point.until)
        if known is not None and key in known:
            value = known[key]
        else:
            value = value_of(variant, spec, engine, point, states)
            if known is not None:
                known[key] = value
        if value is not None and not _same(value, ours):
            yield judged(variant, value, before, point)


def some_states(states: States, some: Array) -> States:
    """The states of some of the pictures."""
    before = {step: _picked(value, some) for step, value in states.before.items()}
    return replace(
        states, before=before, rows=states.rows[some] if len(states.rows) else states.rows
    )


def some_of(point: Point, some: Array) -> Point:
    """The point for some of the pictures."""
    value = None if point.value is None else _picked(point.value, some)
    target = _picked(point.target, some)
    return replace(point, value=value, target=target, allow=point.allow[some])


def _picked(value: Any, some: Array) -> Any:
    return [value[i] for i in some] if isinstance(value, list) else value[some]


def order(tried: Tried) -> tuple[bool, float]:
    """Sorts those that reproduce the device before the others, the best first."""
    return not tried.reproduces, -tried.explained


def judged(variant: Variant, value: Any, before: Array, point: Point) -> Tried:
    """A variant's value held against the device's."""
    gap = np.clip(point.measure(value, point.target), 0, None)
    explained = 1 - float(gap.sum()) / max(float(before.sum()), 1e-12)
    # The bands are for the right input; a wrong one may be rounded a little further.
    near = gap <= 2 * point.allow
    better = float(np.median(gap)) <= float(np.median(before))
    whole = float(near.mean()) >= _NEARLY_ALL and better and explained > 0.5
    return Tried(variant, explained, whole, gap, value)


def value_of(
    variant: Variant, spec: Preprocess, engine: Engine, point: Point, states: States
) -> Any:
    """What a variant gives at a point; None where it cannot be done with this model."""
    step = variant.at
    pipeline = replace(reference(), **{step: variant.step})
    # A file with the preprocessing inside shows what its own arithmetic makes of wrong pixels.
    by_file = step in (*PICTURE_STEPS, "l2", "output")
    start = step if step in states.before else point.start
    here = replace(point, start=start, value=states.before[start])
    try:
        return outcome(pipeline, spec, engine, here, by_file=by_file)
    except (ValueError, IndexError, RuntimeError, ArithmeticError, AttributeError):
        # A wrong step may not fit this model at all (no such layer, a picture too small).
        return None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return all(x.shape == y.shape and np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a.shape == b.shape and np.array_equal(a, b))


def named(tried: Sequence[Tried], hints: Sequence[str]) -> tuple[Tried, bool] | None:
    """The variant that is the cause and whether it is exact; None where none is.

    Args:
        tried: From `weigh`, the best first.
        hints: The stages that the pattern of moved pictures leaves, or none if it leaves all.
    """
    if not tried:
        return None
    exact = [t for t in tried if t.reproduces]
    if exact:
        return min(exact, key=lambda t: float(t.gap.sum())), True
    best = tried[0]
    others = [t.explained for t in tried if t.variant.stage != best.variant.stage]
    rest, runner_up = 1 - best.explained, 1 - max([0.0, *others])
    if (
        best.explained >= _MOSTLY
        and runner_up >= _TIMES * rest
        and (not hints or best.variant.stage in hints)
    ):
        return best, False
    if hints:
        same = [t for t in tried if t.variant.stage in hints and t.explained >= 0.5]
        if same:
            return same[0], False
    return None


def levels(ours: Any, theirs: Any) -> Array:
    """Mean difference of two lists (or arrays) of pictures, in brightness levels, 0..255."""
    return np.asarray(
        [
            float(np.abs(a.astype(np.float64) - b.astype(np.float64)).mean())
            if a.shape == b.shape
            else 255.0
            for a, b in zip(ours, theirs, strict=True)
        ]
    )


def vectors(ours: Array, theirs: Array) -> Array:
    """`departure`, where the device may have sent another number of numbers."""
    if ours.shape != theirs.shape:
        return np.full(len(ours), 2.0)
    return departure(ours, theirs)
