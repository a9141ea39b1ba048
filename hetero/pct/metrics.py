"""What a new classifier breaks and mends: errors, negative and positive flips, per class.

A negative flip is a picture that the old classifier got right and the new one gets wrong. The
classes of a closed set are given and pictures are drawn, so pictures are the sampling unit here (or
groups of them that belong together), where retrieval draws classes. Intervals of rates come from
`hetero.verdict.bound`: without groups they are those of Clopper and Pearson.

Paper: Yan et al., "Positive-Congruent Training", CVPR 2021, arXiv:2011.09161, section 3.
Differs: intervals, and a gate with declared error rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from hetero import verdict
from hetero.errors import DataError
from hetero.metrics import Score
from hetero.verdict import Evidence, paired

#: Pictures of a class below which its rates are not worth naming it the worst.
LEAST = 10


@dataclass(frozen=True)
class Rates:
    """How a new classifier stands to an old one, over some pictures.

    Attributes:
        n: Pictures.
        er_old, er_new: Error rates, in 0..1.
        nfr: Share of the pictures that turned from right to wrong.
        pfr: Share that turned from wrong to right; er_old - er_new = pfr - nfr.
        relative_nfr: nfr over what independent errors would give, (1 - er_old) · er_new: 1 where
            the two err independently, 0 where nothing flips. None where that is 0.
    """

    n: int
    er_old: Score
    er_new: Score
    nfr: Score
    pfr: Score
    relative_nfr: Score | None

    def to_json(self) -> dict[str, Any]:
        """Names to value and interval."""
        found: dict[str, Any] = {"n": self.n}
        for name in ("er_old", "er_new", "nfr", "pfr", "relative_nfr"):
            score: Score | None = getattr(self, name)
            found[name] = None if score is None else {"value": score.value, "ci": score.ci}
        return found


@dataclass(frozen=True, eq=False)
class Comparison:
    """A new classifier against an old one.

    Attributes:
        overall: Over all pictures.
        classes: By class, in the order of their names.
        evidence: Of negative flips, for `hetero.verdict.decide`.
        flipped: Positions of the pictures that turned from right to wrong.
    """

    overall: Rates
    classes: dict[str, Rates]
    evidence: Evidence
    flipped: Int64[np.ndarray, " f"]

    def worst(self, count: int = 5) -> list[tuple[str, Rates]]:
        """The classes with most negative flips, of those with at least LEAST pictures."""
        able = [(c, r) for c, r in self.classes.items() if r.n >= LEAST and r.nfr.value > 0]
        return sorted(able, key=lambda x: (-x[1].nfr.value, x[0]))[:count]


def compare(
    old_right: Bool[np.ndarray, " n"],
    new_right: Bool[np.ndarray, " n"],
    labels: Sequence[str],
    groups: Sequence[str],
    confidence: float = 0.95,
) -> Comparison:
    """The comparison of two classifiers on the same pictures.

    Args:
        old_right: Whether the old one gives each picture's class.
        new_right: The same of the new one.
        labels: The class of each picture.
        groups: Pictures of one group are not independent; each picture's id where there are none.
        confidence: Of the intervals, each by itself.

    Raises:
        DataError: No picture, or lengths that differ.
    """
    n = len(old_right)
    if not n or {len(new_right), len(labels), len(groups)} != {n}:
        raise DataError(
            f"flips: {n} old answers, {len(new_right)} new ones, {len(labels)} labels and "
            f"{len(groups)} groups; expected one of each for every picture, at least one"
        )
    negative = old_right & ~new_right
    named, at = np.asarray(labels), np.asarray(groups)
    classes = {}
    for label in sorted(set(labels)):
        mine = named == label
        classes[label] = rates(old_right[mine], new_right[mine], at[mine].tolist(), confidence)
    return Comparison(
        rates(old_right, new_right, groups, confidence),
        classes,
        paired(negative.astype(np.float64), groups),
        np.flatnonzero(negative),
    )


def rates(
    old_right: Bool[np.ndarray, " n"],
    new_right: Bool[np.ndarray, " n"],
    groups: Sequence[str],
    confidence: float = 0.95,
) -> Rates:
    """The rates over these pictures; arguments as for `compare`."""

    def of(outcomes: Bool[np.ndarray, " n"]) -> Score:
        return share(outcomes, groups, confidence)

    return Rates(
        n=len(old_right),
        er_old=of(~old_right),
        er_new=of(~new_right),
        nfr=of(old_right & ~new_right),
        pfr=of(~old_right & new_right),
        relative_nfr=_relative(old_right, new_right, groups, confidence),
    )


def share(
    outcomes: Bool[np.ndarray, " n"], groups: Sequence[str], confidence: float = 0.95
) -> Score:
    """The share of pictures with an outcome, and its interval with groups as the sampling unit."""
    level = (1 - confidence) / 2
    yes = paired(outcomes.astype(np.float64), groups)
    no = paired((~outcomes).astype(np.float64), groups)
    ci = (1 - verdict.bound(no.rows, level, "high"), verdict.bound(yes.rows, level, "high"))
    return Score(float(outcomes.mean()), ci, len(outcomes))


def _relative(
    old_right: Bool[np.ndarray, " n"],
    new_right: Bool[np.ndarray, " n"],
    groups: Sequence[str],
    confidence: float,
) -> Score | None:
    """Relative NFR, its interval by the Bayesian bootstrap of groups (Rubin, 1981)."""
    columns = np.stack([old_right, ~new_right, old_right & ~new_right], 1).astype(np.float64)
    expected = columns[:, 0].mean() * columns[:, 1].mean()
    if expected == 0:
        return None
    _, code = np.unique(np.asarray(groups), return_inverse=True)
    table = np.stack([np.bincount(code, weights=c) for c in columns.T] + [np.bincount(code)], 1)
    # Groups that are alike share one weight: a sum of k exponentials is a gamma of shape k.
    kinds, alike = np.unique(table, axis=0, return_counts=True)
    rng = np.random.default_rng(0)
    draws: list[Float64[np.ndarray, " d"]] = []
    step = max(1, 2**21 // len(kinds))
    for begin in range(0, verdict.DRAWS, step):
        size = (min(step, verdict.DRAWS - begin), len(kinds))
        right, wrong, flipped, total = (rng.standard_gamma(alike.astype(float), size) @ kinds).T
        with np.errstate(divide="ignore", invalid="ignore"):
            draws.append(flipped * total / (right * wrong))
    low, high = np.nanquantile(np.concatenate(draws), [(1 - confidence) / 2, (1 + confidence) / 2])
    value = columns[:, 2].mean() / expected
    return Score(float(value), (float(low), float(high)), len(old_right))
