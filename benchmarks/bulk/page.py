"""The section on bulk embedding in docs/results.md."""

# Lines of a Markdown table cannot be broken.
# ruff: noqa: E501

from __future__ import annotations

import statistics
from typing import Any


def section(raw: dict[str, Any]) -> str:
    """Rates, growth and interruptions as Markdown."""
    lines = [
        "## Bulk embedding",
        "",
        f"`{raw['command']}`, {raw['machine']['cores']} cores, JPEGs of {raw['source_px']} px made of `{raw['data']}`, "
        "fp32 ONNX files by ONNX Runtime with one thread a worker.",
        "",
    ]
    for part, write in (("rates", _rates), ("growth", _growth), ("kills", _kills)):
        if part in raw:
            lines += write(raw[part])
    return "\n".join(lines)


def _rates(rates: list[dict[str, Any]]) -> list[str]:
    out = [
        "Pictures a second. *Model alone*: decoded pictures in memory, nothing written. *Share*: stream / model alone, in pairs; median "
        "and range. *Possible*: what cores that also decode could give at best, 1 / (1/model + 1/decoder), as a share of model alone.",
        "",
        "| model | input | workers | model alone | decoder alone | stream | share | possible |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for r in rates:
        for workers in sorted({run["workers"] for run in r["runs"]}):
            runs = [run for run in r["runs"] if run["workers"] == workers]
            model, decoder, stream = (
                statistics.median(pick(run) for run in runs)
                for pick in (
                    lambda run: run["model"],
                    lambda run: run["decoder"],
                    lambda run: run["stream"]["images_per_s"],
                )
            )
            shares = [run["stream"]["images_per_s"] / run["model"] for run in runs]
            # One worker's decoding thread has a core of its own, where there are two.
            possible = "" if workers == 1 else f"{100 / (1 + model / decoder):.0f} %"
            out.append(
                f"| `{r['backbone']}` | {r['size_px']} px | {workers} | {model:,.1f} | {decoder:,.0f} | {stream:,.1f} "
                f"| {100 * statistics.median(shares):.0f} % ({100 * min(shares):.0f} to {100 * max(shares):.0f}) | {possible} |"
            )
    return [*out, ""]


def _growth(growth: list[dict[str, Any]]) -> list[str]:
    first = growth[0]
    out = [
        f"From start to verified folder, `{first['backbone']}` at {first['size_px']} px:",
        "",
        "| pictures | seconds | CPU seconds | CPU ms a picture | peak memory, main process | largest worker |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for g in growth:
        out.append(
            f"| {g['images']:,} | {g['wall_s']:.0f} | {g['cpu_s']:.0f} | {1000 * g['cpu_s'] / g['images']:.2f} "
            f"| {g['main_peak_bytes'] / 2**20:.0f} MiB | {g['worker_peak_bytes'] / 2**20:.0f} MiB |"
        )
    if len(growth) > 1:
        a, b = growth[0], growth[-1]
        slope = 1000 * (b["cpu_s"] - a["cpu_s"]) / (b["images"] - a["images"])
        out += [
            "",
            f"Between the first and the last row: {slope:.2f} CPU ms for each further picture.",
        ]
    return [*out, ""]


def _kills(kills: dict[str, Any]) -> list[str]:
    count = sum(kills["kills"].values())
    by = ", ".join(f"{n} {way}" for way, n in sorted(kills["kills"].items()))
    at = ", ".join(f"{n} with {moment}" for moment, n in sorted(kills["moments"].items()))
    bad = len(kills["differences"]) + len(kills["wrong_exits"]) + kills["orphans"]
    verdict = "nothing lost, nothing twice, nothing changed" if not bad else f"**{bad} faults**"
    return [
        f"{count} interruptions at random ({by}; {at}) of a run over {kills['images']} pictures; {kills['ends']} runs came to their end, "
        f"{kills['resumed']} of them interrupted before, and were compared byte by byte with an undisturbed one: {verdict}.",
        "",
    ]
