"""From rates measured on a core to what a million, a hundred million, a billion pictures ask for.

    python -m benchmarks.scale                            the table
    python -m benchmarks.scale --cores 512 --price 0.04   so many cores, so much a core and hour

The rates are those of benchmarks/results/bulk.json.
Shards are independent, so work is proportional to pictures and divides by cores; what was measured
to see that it is, on one machine, stands in docs/results.md. An interval is that of the mean over
repeats (Student's t, 95 %): it knows the noise of one machine, and nothing of another.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.lab import RESULTS

PAGE = Path("docs/scale.md")
BEGIN, END = "<!-- scale:begin -->", "<!-- scale:end -->"
SIZES = (10**6, 10**8, 10**9)


@dataclass(frozen=True)
class Interval:
    """A value, and where it lies at 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Three significant digits: "12.3 (11.9 to 12.8)"."""
        return f"{_short(self.value)} ({_short(self.low)} to {_short(self.high)})"


def mean(values: Sequence[float]) -> Interval:
    """The mean of repeats with Student's interval.

    Raises:
        ValueError: Fewer than two repeats say nothing of their spread.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs two repeats at least, got {len(values)}")
    middle = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Interval(middle, max(middle - half, 1e-9), middle + half)


@dataclass(frozen=True)
class Estimate:
    """What a collection of a size asks for.

    Attributes:
        images: How many pictures.
        core_hours: Of one core; low with the highest rate.
        days: On all cores.
        disk_bytes: Vectors, ids and ledger.
        memory_bytes: Of all workers together and the process that hands out shards.
        price: Of the core hours; None where no price was given.
    """

    images: int
    core_hours: Interval
    days: Interval
    disk_bytes: float
    memory_bytes: float
    price: Interval | None


def estimate(
    images: int,
    per_core: Interval,
    cores: int,
    bytes_per_row: float,
    main_bytes: float,
    worker_bytes: float,
    price: float | None = None,
) -> Estimate:
    """What so many pictures ask for at a measured rate.

    Args:
        images: How many.
        per_core: Pictures a second of one core, decoding included.
        cores: That work at a time, one worker each.
        bytes_per_row: On disk.
        main_bytes: Peak memory of the process that hands out shards.
        worker_bytes: Peak memory of a worker.
        price: Of a core for an hour.
    """

    def over(scale: float) -> Interval:
        return Interval(
            scale / per_core.value, scale / per_core.high, scale / per_core.low
        )  # the highest rate takes least

    hours = images / 3600
    return Estimate(
        images,
        over(hours),
        over(hours / 24 / cores),
        images * bytes_per_row,
        main_bytes + cores * worker_bytes,
        None if price is None else over(hours * price),
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(days: Interval) -> str:
    """In the unit that makes a handy number of it."""
    factor, unit = (1440, "minutes") if days.value < 2 / 24 else (24, "hours")
    if days.value >= 2:
        factor, unit = 1, "days"
    return f"{Interval(factor * days.value, factor * days.low, factor * days.high)} {unit}"


def _room(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def table(raw: dict[str, Any], cores: int, price: float | None = None) -> list[str]:
    """The estimates of every model that was measured, as Markdown."""
    main = max(g["main_peak_bytes"] for g in raw["growth"])
    out = [
        f"{cores} cores, one worker each" + ("." if price is None else f", {price} a core hour."),
        "",
        "| model | pictures a second and core | pictures | core hours | time | disk | memory |"
        + (" cost |" if price is not None else ""),
        "| --- | --- | ---: | --- | --- | ---: | ---: |" + (" --- |" if price is not None else ""),
    ]
    for r in raw["rates"]:
        most = max(run["workers"] for run in r["runs"])
        runs = [run["stream"] for run in r["runs"] if run["workers"] == most]
        rate = mean([run["images_per_s"] / most for run in runs])
        worker = max(run["worker_peak_bytes"] for run in runs)
        for images in SIZES:
            e = estimate(images, rate, cores, r["bytes_per_row"], main, worker, price)
            out.append(
                f"| `{r['backbone']}`, {r['size_px']} px | {rate} | {images:,} | {e.core_hours} "
                f"| {_time(e.days)} | {_room(e.disk_bytes)} | {_room(e.memory_bytes)} |"
                + (f" {e.price} |" if e.price is not None else "")
            )
    return out


def render() -> str:
    """docs/scale.md with its table made anew."""
    head, rest = PAGE.read_text().split(BEGIN)
    path = RESULTS / "bulk.json"
    raw = json.loads(path.read_text()) if path.exists() else {}
    lines = (
        table(raw, cores=64)
        if {"rates", "growth"} <= set(raw)
        else ["Not measured yet: `python -m benchmarks.bulk`, then `python -m benchmarks.tables`."]
    )
    return f"{head}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "bulk.json")
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--price", type=float, help="of a core for an hour, in any currency")
    args = parser.parse_args()
    print("\n".join(table(json.loads(args.results.read_text()), args.cores, args.price)))


if __name__ == "__main__":
    main()
