"""Is one file slower than another: alternating blocks, an interval of known error rate, a grade.

Latencies of two sessions cannot be compared on a machine that does other things, or grows warm. So
both files run in one session, in short blocks that alternate, each block a process of its own: what
a process happens to get (its place in memory, a core, a neighbour) is then a part of the noise and
not of the difference. A *group* is four blocks, ABBA or BAAB by lot, so that a slow drift cancels.

A block's *quiet latency* is the 2nd percentile of its runs: what the file takes when nothing else
has the processor, the cache or the other half of the core. Of a file's two blocks in a group the
quieter one counts, and B's over A's is the group's ratio. If the files are equally fast, exchanging
the names A and B changes nothing but the sign of its logarithm, because the order was drawn by lot:
each ratio is above 1 with probability 1/2, whatever the noise looks like. The interval is therefore
that of the sign test (order statistics about the median), which supposes nothing else, where a
bootstrap of a dozen groups would suppose that there are many. `python -m benchmarks.latency_ab`
measures both error rates on a busy machine.

The same blocks hold A/A experiments. Within a group, the later block of a file against the earlier
one shows whether the session was steady; the quieter block of a group against that of the group
before has the very noise of a group's ratio, and says what the run could have detected. From both
comes its *grade*.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from hetero.errors import ConfigError

Arm = Literal["A", "B"]
ARMS: tuple[Arm, Arm] = ("A", "B")
Grade = Literal["valid", "noisy", "invalid"]

#: What a group can look like: in both, a linear drift adds the same to A and to B.
ORDERS = ("ABBA", "BAAB")
#: With fewer groups no order statistic is a bound at 97.5 %.
MIN_GROUPS = 6
CONFIDENCE = 0.95
QUIET_PERCENT = 2.0
#: How often a detectable slow-down would be found.
POWER = 0.9
#: The largest detectable slow-down of a valid run, and of one that is not invalid.
VALID_UP_TO, NOISY_UP_TO = 0.10, 0.25


@dataclass(frozen=True, eq=False)
class Block:
    """A short run of one file, in a process of its own.

    Attributes:
        arm: Which file.
        latency_ns: Every warm run, in order, at least one.
    """

    arm: Arm
    latency_ns: Int64[np.ndarray, " m"]


@dataclass(frozen=True)
class Ratio:
    """A median ratio with its two-sided 95 % interval; each end is wrong in 2.5 % at most.

    Attributes:
        value: Median over the groups, above 0.
        low, high: Order statistics of the groups' ratios.
        groups: The groups' ratios, in order.
    """

    value: float
    low: float
    high: float
    groups: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """What alternating blocks say of B against A.

    Attributes:
        ratio: B over A, of quiet latencies: 1.1 is ten per cent slower.
        median_ratio: The same of the median latencies; noisier, and not judged.
        same: The same file against itself, a group's later block over its earlier one: A's, B's.
        quiet_ns: Quiet latency of A and of B, median over the groups of the quieter block.
        p50_ns: The same of the median latencies.
        margin: Slow-down that is no regression: 0.05 is five per cent.
        detectable: The slow-down that would be found to exceed the margin in 90 %, by what one
            file does from group to group; inf where the groups are too few for any.
        grade: "valid", "noisy" (true, but blind for what is below `detectable`), or "invalid".
        reason: Why, in a clause; empty when valid.
    """

    ratio: Ratio
    median_ratio: Ratio
    same: tuple[Ratio, Ratio]
    quiet_ns: tuple[float, float]
    p50_ns: tuple[float, float]
    margin: float
    detectable: float
    grade: Grade
    reason: str


def quiet(latency_ns: Int64[np.ndarray, " m"]) -> float:
    """What a file takes, in nanoseconds, when nothing else has the processor; see the module.

    Args:
        latency_ns: Warm runs, at least one.
    """
    return float(np.percentile(latency_ns, QUIET_PERCENT))


def orders(groups: int, seed: int) -> tuple[str, ...]:
    """The order of the blocks of each group, drawn by lot.

    Raises:
        ConfigError: Fewer than 6 groups.
    """
    if groups < MIN_GROUPS:
        raise ConfigError(f"{groups} groups of blocks: at least {MIN_GROUPS} bear an interval")
    lot = random.Random(seed)
    return tuple(lot.choice(ORDERS) for _ in range(groups))


def compare(
    groups: Sequence[Sequence[Block]], margin: float, disturbed: str = "", emulated: str = ""
) -> Comparison:
    """What the groups say of B against A.

    Args:
        groups: Each four blocks, two of A and two of B, in the order in which they ran.
        margin: See `Comparison`; at least 0.
        disturbed: What happened meanwhile (throttling, restarts) that makes a valid run noisy.
        emulated: Why the times mean nothing at all, if so.

    Raises:
        ConfigError: A group of another make, fewer than 6, or a margin below 0.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise ConfigError(f"margin: a part of the latency, at least 0, got {margin}")
    for group in groups:
        if sorted(b.arm for b in group) != ["A", "A", "B", "B"]:
            made = "".join(b.arm for b in group)
            raise ConfigError(f"a group needs two blocks of A and two of B, got {made!r}")
    quiet_a, quiet_b = (_levels(groups, arm, QUIET_PERCENT) for arm in ARMS)
    middle_a, middle_b = (_levels(groups, arm, 50.0) for arm in ARMS)
    same = (_within(groups, "A"), _within(groups, "B"))
    again = [*(quiet_a[1:] / quiet_a[:-1]), *(quiet_b[1:] / quiet_b[:-1])]
    detectable = detectable_slowdown(again, len(groups), margin)
    grade, reason = _grade(same, detectable, margin, disturbed, emulated)
    return Comparison(
        ratio=median_ratio(quiet_b / quiet_a),
        median_ratio=median_ratio(middle_b / middle_a),
        same=same,
        quiet_ns=(float(np.median(quiet_a)), float(np.median(quiet_b))),
        p50_ns=(float(np.median(middle_a)), float(np.median(middle_b))),
        margin=margin,
        detectable=detectable,
        grade=grade,
        reason=reason,
    )


def median_ratio(ratios: Iterable[float]) -> Ratio:
    """The median of independent ratios with its exact interval.

    Raises:
        ConfigError: Fewer than 6.
    """
    from scipy.stats import quantile_test

    groups = tuple(ratios)
    if len(groups) < MIN_GROUPS:
        raise ConfigError(f"{len(groups)} ratios: at least {MIN_GROUPS} bear an interval")
    found = quantile_test(groups, q=1.0, p=0.5).confidence_interval(CONFIDENCE)
    return Ratio(float(np.median(groups)), float(found.low), float(found.high), groups)


def detectable_slowdown(again: Sequence[float], groups: int, margin: float) -> float:
    """The slow-down that this noise lets find to exceed the margin in 90 %.

    Args:
        again: Ratios that would be 1 without noise, each made as a group's ratio is.
        groups: How many groups there will be.
        margin: See `Comparison`.
    """
    from scipy.stats import beta, binom

    # The lower end is the `rank`-th smallest ratio: all but the smaller ones have to be above.
    rank = int(binom.ppf((1 - CONFIDENCE) / 2, groups, 0.5))
    if rank < 1:
        return math.inf
    # How probable that must be for one group, so that it happens in enough of them in 90 %.
    chance = float(beta.ppf(POWER, groups - rank + 1, rank))
    noise = np.log(np.asarray(again, dtype=np.float64))
    # Noise has no preferred sign.
    reach = float(np.quantile(np.concatenate([noise, -noise]), chance))
    return (1 + margin) * math.exp(max(0.0, reach)) - 1


def _levels(
    groups: Sequence[Sequence[Block]], arm: Arm, percent: float
) -> Float64[np.ndarray, " g"]:
    """Of each group the smaller percentile of the file's two blocks."""
    return np.array(
        [min(np.percentile(b.latency_ns, percent) for b in g if b.arm == arm) for g in groups]
    )


def _within(groups: Sequence[Sequence[Block]], arm: Arm) -> Ratio:
    """The later block of one file over the earlier one."""
    pairs = ([b.latency_ns for b in g if b.arm == arm] for g in groups)
    return median_ratio(quiet(later) / quiet(earlier) for earlier, later in pairs)


def _grade(
    same: Iterable[Ratio], detectable: float, margin: float, disturbed: str, emulated: str
) -> tuple[Grade, str]:
    if emulated:
        return "invalid", emulated
    for arm, found in zip("AB", same, strict=True):
        if found.low > 1 + margin or found.high < 1 / (1 + margin):
            change = abs(found.value - 1)
            return "invalid", (
                f"A/A: {arm} differs from itself by {change:.1%}, which is more than the margin"
            )
    blind = f"A/A: a slow-down below {detectable:.0%} would not be seen"
    if detectable > NOISY_UP_TO:
        return "invalid", blind
    if detectable > VALID_UP_TO:
        return "noisy", blind
    return ("noisy", disturbed) if disturbed else ("valid", "")
