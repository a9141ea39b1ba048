"""From raw latencies to the few numbers one reports, and whether to believe them.

Everything here is a pure function: the raw nanoseconds are kept, so that another question needs no
other run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from hetero.devices._types import Conditions, RunResult
from hetero.errors import ConfigError

Validity = Literal["clean", "noisy", "throttled", "emulated"]

#: A 99th percentile of fewer runs than this rests on fewer than ten of them.
MIN_RUNS_FOR_P99 = 1000
#: Involuntary context switches per run above which something else was running.
MAX_SWITCHES_PER_RUN = 1.0
#: Part of the measured time in which the thread had a processor, below which the same is true.
MIN_CPU_SHARE = 0.9
#: Slower by this much at the end than at the beginning counts as throttled.
MAX_SUSTAINED_RATIO = 1.15
#: Runs below which beginning and end are not compared.
MIN_RUNS_FOR_RATIO = 25


@dataclass(frozen=True)
class Timing:
    """What the latencies of one run say.

    Attributes:
        runs: Number of measured runs.
        min_ns, p50_ns, p90_ns: Minimum and percentiles, linear between runs.
        p99_ns: The same, or None for fewer than 1000 runs.
        sustained_ratio: Median of the last fifth over median of the first fifth; above 1 the device
            became slower. None for fewer than 25 runs.
        throughput_per_s: Runs per second of measured time.
        validity: "emulated" (no times at all), "noisy" (something else was running), "throttled"
            (it became slower by itself) or "clean".
        reason: Why, in a few words; empty when clean.
    """

    runs: int
    min_ns: int
    p50_ns: float
    p90_ns: float
    p99_ns: float | None
    sustained_ratio: float | None
    throughput_per_s: float
    validity: Validity
    reason: str


def timing(result: RunResult) -> Timing:
    """What the latencies of a device's run say.

    Raises:
        ConfigError: The plan measured none.
    """
    return summarise(result.latency_ns, result.conditions)


def summarise(latency_ns: Int64[np.ndarray, " m"], conditions: Conditions | None = None) -> Timing:
    """What these latencies say.

    Args:
        latency_ns: Every measured run in order, at least one.
        conditions: Under which they came about; without, only their slope is judged.

    Raises:
        ConfigError: There is none.
    """
    if latency_ns.size == 0:
        raise ConfigError("no latency was measured; use a plan with min_runs or min_s above 0")
    p50, p90, p99 = (float(x) for x in np.percentile(latency_ns, (50, 90, 99)))
    ratio = sustained_ratio(latency_ns)
    validity, reason = judge(ratio, conditions or Conditions())
    return Timing(
        runs=latency_ns.size,
        min_ns=int(latency_ns.min()),
        p50_ns=p50,
        p90_ns=p90,
        p99_ns=p99 if latency_ns.size >= MIN_RUNS_FOR_P99 else None,
        sustained_ratio=ratio,
        throughput_per_s=float(latency_ns.size / (latency_ns.sum() / 1e9)),
        validity=validity,
        reason=reason,
    )


def sustained_ratio(latency_ns: Int64[np.ndarray, " m"]) -> float | None:
    """Median of the last fifth over median of the first, or None for fewer than 25 runs."""
    if latency_ns.size < MIN_RUNS_FOR_RATIO:
        return None
    fifth = latency_ns.size // 5
    return float(np.median(latency_ns[-fifth:]) / np.median(latency_ns[:fifth]))


def judge(ratio: float | None, conditions: Conditions) -> tuple[Validity, str]:
    """Whether to believe the times, and the reason if not.

    What the firmware says is certain. Otherwise noise is judged before throttling: on a machine
    that does other things, becoming slower proves nothing about heat.
    """
    c = conditions
    if c.execution != "native":
        return "emulated", f"{c.execution} device: numerics only, its times say nothing"
    if c.throttled:
        return "throttled", f"the firmware said: {', '.join(c.throttled)}"
    if c.switches_per_run is not None and c.switches_per_run > MAX_SWITCHES_PER_RUN:
        return "noisy", f"{c.switches_per_run:.1f} involuntary context switches per run"
    if c.cpu_share is not None and c.cpu_share < MIN_CPU_SHARE:
        return "noisy", f"had a processor for {c.cpu_share:.0%} of the time only"
    if c.restarts:
        return "noisy", f"the worker was restarted {c.restarts} times"
    if ratio is not None and ratio > MAX_SUSTAINED_RATIO:
        return "throttled", f"the last fifth took {ratio:.2f} times as long as the first"
    return "clean", ""


def spread(medians_ns: Sequence[float]) -> float:
    """How far repeats of a run lie apart, as part of their median: 0.05 is 5 %.

    Raises:
        ConfigError: Fewer than two repeats, or one that is not above 0.
    """
    if len(medians_ns) < 2 or min(medians_ns) <= 0:
        raise ConfigError(f"a spread needs two repeats above 0, got {list(medians_ns)}")
    return float((max(medians_ns) - min(medians_ns)) / np.median(np.asarray(medians_ns)))
