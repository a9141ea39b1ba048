"""Mistakes with a number in them: that with which the reference comes nearest to the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from hetero.diagnose import _search
from hetero.diagnose._pipeline import STEPS, Array, Engine, States
from hetero.diagnose._search import Point, Tried
from hetero.diagnose.hypotheses import Family
from hetero.preprocess import Preprocess

#: Pictures that a number is fitted on: some that moved and some that did not; all judge it.
_MOVED, _STILL = 10, 4

#: Families looked at closer: those that explain most, and this much at the least.
_CLOSER, _WORTH = 3, 0.3

#: Numbers looked at between two neighbours, and how often.
_BETWEEN, _ROUNDS = 4, 4


def nearest(
    families: Iterable[Family],
    spec: Preprocess,
    engine: Engine,
    point: Point,
    states: States,
    moved: Array,
) -> Iterator[Tried]:
    """The best of those families that explain most between the two ends of a point.

    Args:
        families: Those of other steps are passed over.
        spec: How pictures should be prepared.
        engine: The reference model.
        point: Where to compare.
        states: The reference's from `point.start` on.
        moved: Which pictures moved.
    """
    low, high = STEPS.index(point.start), STEPS.index(point.until) if point.until else len(STEPS)
    some = _some(moved)
    small, part = _search.some_states(states, some), _search.some_of(point, some)
    fits = []
    for family in families:
        if low <= STEPS.index(family.at) < high:
            # What acts on rows costs nothing, and may need each row's neighbour.
            cheap = family.at in ("l2", "output")
            at = (states, point) if cheap else (small, part)
            fits.append(_Fit(family, spec, engine, at[1], at[0]))
    good = sorted((f for f in fits if f.explained() > _WORTH), key=lambda f: -f.explained())
    before = _gap(point, _search.at(states, point.until))
    for fit in good[:_CLOSER]:
        fit.closer()
        variant = fit.family(fit.best)
        value = _search.value_of(variant, spec, engine, point, states)
        if value is not None:
            yield _search.judged(variant, value, before, point)


class _Fit:
    """A family's number, sought on some pictures."""

    def __init__(
        self, family: Family, spec: Preprocess, engine: Engine, point: Point, states: States
    ) -> None:
        self.family, self._made_with = family, (spec, engine, point, states)
        self._whole = float(_gap(point, _search.at(states, point.until)).sum())
        self._found: dict[float, float] = {}
        self.best = min(family.numbers, key=self._left)

    def explained(self) -> float:
        """The part of the departure that the best number takes away."""
        return 1 - self._left(self.best) / max(self._whole, 1e-12)

    def closer(self) -> None:
        """Looks between the best number's neighbours."""
        integers = all(isinstance(n, int) for n in self.family.numbers)
        for _ in range(_ROUNDS):
            known = sorted(self._found)
            here = known.index(self.best)
            low, high = known[max(0, here - 1)], known[min(len(known) - 1, here + 1)]
            between = np.linspace(low, high, _BETWEEN + 2)[1:-1]
            more = {round(n) if integers else float(n) for n in between}
            if not more - set(self._found):
                break
            self.best = min({self.best, *more}, key=self._left)

    def _left(self, number: float) -> float:
        if number not in self._found:
            spec, engine, point, states = self._made_with
            value = _search.value_of(self.family(number), spec, engine, point, states)
            gap = np.inf if value is None else float(_gap(point, value).sum())
            self._found[number] = gap if np.isfinite(gap) else 2 * self._whole
        return self._found[number]


def _gap(point: Point, value: Any) -> Array:
    return np.clip(point.measure(value, point.target), 0, None)


def _some(moved: Array) -> Array:
    """Pictures spread over those that moved and those that did not."""
    parts = []
    for which, most in ((np.flatnonzero(moved), _MOVED), (np.flatnonzero(~moved), _STILL)):
        if len(which):
            parts.append(which[np.unique(np.linspace(0, len(which) - 1, most).astype(int))])
    return np.sort(np.concatenate(parts))
