"""What a Raspberry Pi's firmware says of power and heat: the bits of ``vcgencmd get_throttled``.

The lower bits are of this moment, the upper ones are set once and stay until the next boot.
"""

from __future__ import annotations

from collections.abc import Sequence

BITS = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
SINCE_BOOT = 16


def words(readings: Sequence[int]) -> str:
    """The last reading in words, or "" if there is none."""
    if not readings:
        return ""
    now, ever = _names(readings[-1]), _names(readings[-1] >> SINCE_BOOT)
    if not now and not ever:
        return "never since boot"
    parts = [f"now {' and '.join(now)}"] if now else []
    return "; ".join([*parts, f"since boot {' and '.join(ever)}"] if ever else parts)


def disturbance(readings: Sequence[int]) -> str:
    """What changed the clock between the first reading and the last, in words; "" for nothing.

    What had happened before the first reading and is over leaves no trace here: whether it happened
    again cannot be told.
    """
    if not readings:
        return ""
    during = (readings[-1] & ~readings[0]) >> SINCE_BOOT
    for reading in readings:
        during |= reading & ((1 << SINCE_BOOT) - 1)
    found = _names(during)
    return f"{' and '.join(found)}, says the firmware" if found else ""


def _names(bits: int) -> list[str]:
    return [name for place, name in enumerate(BITS) if bits >> place & 1]
