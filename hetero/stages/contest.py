"""Stage: one exported file against another on a device, in blocks that alternate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hetero.latency import Comparison
from hetero.report import Outcome

if TYPE_CHECKING:
    from hetero.devices import RunResult


def disturbance(results: Sequence[RunResult]) -> tuple[str, str]:
    """What disturbed these blocks, and why their times mean nothing: each a clause, or ""."""
    restarts = sum(r.conditions.restarts for r in results)
    execution = results[0].conditions.execution
    emulated = "" if execution == "native" else f"{execution} device: its times say nothing"
    return f"workers were restarted {restarts} times" if restarts else "", emulated


def outcome(found: Comparison) -> Outcome:
    """What the interval says of the margin; of an invalid run, nothing."""
    if found.grade == "invalid" or found.ratio.low <= 1 + found.margin < found.ratio.high:
        return "inconclusive"
    return "pass" if found.ratio.high <= 1 + found.margin else "fail"
