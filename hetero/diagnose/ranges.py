"""Whether the ranges of an eight-bit file's activations fit what pictures fill.

A scale that is wrong in one layer may move every vector by less than eight bits are allowed to, and
still costs recall on the pictures that need that layer. So it is looked at where it is: a range of
which a fraction is used, or in which numbers pile up at an end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Part of a range that sound pictures fill at the least. Healthy files were seen to fill 0.8.
_USED = 0.3

#: Share of the numbers that may be cut off at an end; calibration by percentiles cuts 1e-4 to 1e-3.
_CUT = 0.004


@dataclass(frozen=True)
class Range:
    """An activation of an eight-bit file, over a handful of pictures.

    Attributes:
        tensor: Its name in the file.
        low, high: The smallest and largest number that it can hold.
        used_low, used_high: Those it did hold.
        cut: Share of the numbers, 0..1, that were cut off at an end.
    """

    tensor: str
    low: float
    high: float
    used_low: float
    used_high: float
    cut: float


def odd(ranges: Iterable[Range]) -> tuple[str, ...]:
    """What is wrong with those that fit badly, a line each, the worst first."""
    found = []
    for r in ranges:
        used = (r.used_high - r.used_low) / max(r.high - r.low, 1e-12)
        held = f"{r.tensor!r} can hold {r.low:.3g} to {r.high:.3g}"
        if 0 < used < _USED:
            line = f"{held}, pictures fill {r.used_low:.3g} to {r.used_high:.3g}: {used:.0%} of it"
            found.append((_USED / used, line))
        if r.cut > _CUT:
            line = f"{held}, and {r.cut:.1%} of its numbers are cut off at an end"
            found.append((r.cut / _CUT, line))
    return tuple(line for _, line in sorted(found, reverse=True))
