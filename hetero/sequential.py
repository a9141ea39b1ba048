"""The same verdict while the queries are still being asked, valid whenever one stops.

Somebody bets, class after class, that the loss is below the margin. The bets are fair or worse if
it is not, so capital that has grown twentyfold happens with probability 1/20 at most, however long
one plays and whenever one looks: that capital is an *e-value*, and evidence multiplies. A second
gambler bets that the loss is above the margin.

What makes this true when queries come in classes: one bet is on one *class*, never on one query.
Classes are taken in an order drawn by lot, one or a few queries of each drawn by lot too. If the
test classes are a sample of the classes that will be met, which every interval of this program
supposes, their outcomes are then independent and alike, whatever the queries of a class have in
common. The bet of a class is (class size / largest size) * (mean loss of its queries - margin),
whose expectation has the sign of (mean loss over queries - margin) and which lies in known bounds.
The claim is about such classes in general, as that of `hetero.verdict`, and not only about this
test set.

Each gambler splits the capital over fixed fractions of the largest bet that cannot ruin him. The
capital of a fraction is a product over classes, so that it does not depend on the order, and that
what was measured before and after a disconnect is put together by adding logarithms.

Paper: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting",
JRSS-B 86(1), 2024, arXiv:2010.09686: the hedged capital process with a discrete mixture (their
section on "convex combinations"); J. Ville, 1939, for the inequality.
Differs: outcomes are sizes of classes times a paired loss; fractions are fixed, not adaptive, for
the sake of a capital that can be merged; a part of alpha is kept for the fixed test that follows
when the test set is used up without a decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from hetero.errors import DataError
from hetero.verdict import SPENT, Decision, Evidence

#: Fractions of the largest bet, and how the capital is split: most on the boldest, which is right
#: where a file flips nothing at all.
FRACTIONS = (0.99, 0.7, 0.5, 0.35, 0.25, 0.15, 0.08, 0.04)
SHARES = (0.4, *(0.6 / 7,) * 7)

Side = Literal["below", "above"]


def log_factors(
    loss: Float64[np.ndarray, " c"], weight: Float64[np.ndarray, " c"], margin: float, side: Side
) -> Float64[np.ndarray, "c f"]:
    """By what each fraction's capital is multiplied at each class, as a logarithm.

    Args:
        loss: Mean paired loss of the queries asked of a class, in -1..1.
        weight: Size of the class over that of the largest, in 0..1.
        margin: In -1..1, ends excluded.
        side: "below" bets on a loss below the margin, "above" on one above it.
    """
    if not -1 < margin < 1:
        raise DataError(f"a margin of {margin:g} cannot be bet on; it lies between -1 and 1")
    sign = 1.0 if side == "below" else -1.0
    # The worst outcome of a bet is a loss of 1 (or a gain of 1), and costs the fraction.
    stake = sign * weight * (margin - loss) / (1 - sign * margin)
    out: Float64[np.ndarray, "c f"] = np.log1p(stake[:, None] * np.asarray(FRACTIONS))
    return out


def log_capital(logs: Float64[np.ndarray, "... f"]) -> Float64[np.ndarray, ...]:
    """The gambler's whole capital, as a logarithm, from that of each fraction."""
    top = logs.max(-1)
    parts = np.exp(logs - top[..., None]) @ np.asarray(SHARES)
    out: Float64[np.ndarray, ...] = top + np.log(parts)
    return out


@dataclass(frozen=True)
class State:
    """What both gamblers have after some classes; can be saved, resumed and merged.

    Attributes:
        margin: What they bet on.
        largest: Queries of the largest class of the test set.
        classes: Names of the classes seen, so that none counts twice.
        queries: How many queries were asked.
        below, above: Logarithm of the capital of each of FRACTIONS.
    """

    margin: float
    largest: int
    classes: tuple[str, ...] = ()
    queries: int = 0
    below: tuple[float, ...] = (0.0,) * len(FRACTIONS)
    above: tuple[float, ...] = (0.0,) * len(FRACTIONS)

    def observe(self, name: str, outcomes: Sequence[float], size: int) -> State:
        """The state after one more class.

        Args:
            name: Of the class.
            outcomes: Paired losses, in -1..1, of queries drawn from it by lot.
            size: How many queries it has.

        Raises:
            DataError: The class was seen before, or the numbers cannot be.
        """
        if name in self.classes:
            raise DataError(f"class {name!r} was seen before; evidence counts once")
        Evidence("sequence", ((float(sum(outcomes)), len(outcomes), size),), self.largest)
        loss = np.asarray([sum(outcomes) / len(outcomes)])
        weight = np.asarray([size / self.largest])
        grown = {
            side: tuple(getattr(self, side) + log_factors(loss, weight, self.margin, side)[0])
            for side in ("below", "above")
        }
        return replace(
            self,
            classes=(*self.classes, name),
            queries=self.queries + len(outcomes),
            below=tuple(float(x) for x in grown["below"]),
            above=tuple(float(x) for x in grown["above"]),
        )

    def merge(self, other: State) -> State:
        """Both together: their evidence multiplies.

        Raises:
            DataError: They bet on different things, or a class is in both.
        """
        if (self.margin, self.largest) != (other.margin, other.largest):
            raise DataError("evidence on different margins or test sets cannot be put together")
        both = sorted(set(self.classes) & set(other.classes))
        if both:
            raise DataError(f"class {both[0]!r} is in both; evidence counts once")
        return State(
            self.margin,
            self.largest,
            self.classes + other.classes,
            self.queries + other.queries,
            tuple(a + b for a, b in zip(self.below, other.below, strict=True)),
            tuple(a + b for a, b in zip(self.above, other.above, strict=True)),
        )

    def e_value(self, side: Side) -> float:
        """By what the gambler's capital has grown; 1 / level decides."""
        return math.exp(min(700.0, float(log_capital(np.asarray(getattr(self, side))))))

    def outcome(self, alpha: float, beta: float) -> Literal["pass", "fail", "inconclusive"]:
        """What may be said now: with SPENT of these error rates, at any time."""
        if self.e_value("below") >= 1 / (SPENT * alpha):
            return "pass"
        return "fail" if self.e_value("above") >= 1 / (SPENT * beta) else "inconclusive"

    def to_json(self) -> dict[str, Any]:
        """The state as plain numbers; every float comes back bit by bit."""
        return {**vars(self), "fractions": list(FRACTIONS), "shares": list(SHARES)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> State:
        """What `to_json` wrote.

        Raises:
            DataError: It was written with other fractions.
        """
        if (tuple(value["fractions"]), tuple(value["shares"])) != (FRACTIONS, SHARES):
            raise DataError("evidence of another version cannot be continued; measure anew")
        return cls(
            float(value["margin"]),
            int(value["largest"]),
            tuple(value["classes"]),
            int(value["queries"]),
            tuple(value["below"]),
            tuple(value["above"]),
        )


def _series(evidence: Evidence) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Mean loss and weight of each class, in order."""
    rows = np.asarray(evidence.rows, dtype=np.float64)
    return rows[:, 0] / rows[:, 1], rows[:, 2] / evidence.largest


def _highest(evidence: Evidence, margin: float, side: Side) -> float:
    """The most that the gambler ever had, as a logarithm."""
    logs = log_factors(*_series(evidence), margin, side).cumsum(0)
    return float(log_capital(logs).max())


def confidence_sequence(
    evidence: Evidence, level_low: float, level_high: float
) -> tuple[float, float]:
    """Bounds of the mean loss that hold at all times at once, so also when one stopped.

    Args:
        evidence: Of design "sequence".
        level_low: Probability that the lower bound was ever above the truth.
        level_high: Probability that the upper bound was ever below the truth.
    """

    def edge(side: Side, level: float) -> float:
        # The capital of a bet on "below m" grows with m: bisect for where it reaches 1 / level.
        low, high = -1 + 1e-9, 1 - 1e-9
        for _ in range(40):
            middle = (low + high) / 2
            refuted = _highest(evidence, middle, side) >= -math.log(level)
            if refuted == (side == "below"):
                high = middle
            else:
                low = middle
        return (low + high) / 2

    return edge("above", level_low), edge("below", level_high)


def decide(evidence: Evidence, margin: float, alpha: float, beta: float) -> Decision:
    """As `hetero.verdict.decide`, for classes taken in random order and stopped at will.

    The bounds use SPENT of alpha and beta.
    """
    low, high = confidence_sequence(evidence, SPENT * beta, SPENT * alpha)
    if _highest(evidence, margin, "below") >= -math.log(SPENT * alpha):
        return Decision("pass", low, high)
    if _highest(evidence, margin, "above") >= -math.log(SPENT * beta):
        return Decision("fail", low, high)
    return Decision("inconclusive", low, high)


#: How many classes are asked before one looks at the evidence, and how many queries of each class
#: are asked once a file was seen to change any answer; before that, one.
CLASSES_AT_ONCE, QUERIES_OF_EACH = 64, 4


def queries_of_each(changed: bool) -> int:
    """How many queries to ask of each of the next classes.

    One, as long as every answer was that of the reference: more of the same class would say little
    new. After that more, so that the answers of a class average out and the bets can be bolder. It
    depends on the past only, as a fair game requires.
    """
    return QUERIES_OF_EACH if changed else 1
