"""The sections of docs/results.md about devices."""

# Lines of a Markdown table cannot be broken.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

_KINDS = {"local": "this machine", "ssh": "ssh", "adb": "adb", "browser": "browser"}


def faults(raw: dict[str, Any]) -> str:
    """Every fault and what became of it on each kind of device."""
    sums = raw["summary"]
    kinds = [k for k in _KINDS if k in sums["by_kind"]]
    lines = [
        "## Faults on the way to a device, and on it",
        "",
        f"`{raw['command']}`: **{sums['faults']}** faults, {sums['runs']} runs on {len(kinds)} kinds of device; rows lost: "
        f"**{sums['rows_lost']}** of {sums['rows']:,}, rows duplicated: **{sums['rows_duplicated']}**; "
        f"{sums['as_promised']} of {sums['runs']} ended as promised. Each really happens: processes are killed and frozen, links cut by a "
        "proxy, disks are full file systems. Behind `ssh` is a real OpenSSH server, behind `adb` the real client with a double of the "
        "phone's daemon, behind `browser` a real Chromium; workers and servers all run on this machine. *Survived*: the run ends by itself "
        "with every row. *Reported*: it ends in one clear line with the exit code given, and the next run has every row.",
        "",
        f"| fault | {' | '.join(_KINDS[k] for k in kinds)} |",
        "| --- |" + " --- |" * len(kinds),
    ]
    cells = {(r["fault"], r["kind"]): r for r in raw["faults"]}
    for name in dict.fromkeys(r["fault"] for r in raw["faults"]):
        shown = [_outcome(cells.get((name, kind))) for kind in kinds]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    if raw["not_made_here"]:
        lines += ["", f"Not made here: {len(raw['not_made_here'])}, with the reason in the file."]
    return "\n".join([*lines, ""])


def _outcome(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["outcome"] == "reported":
        return f"reported, {row['exit_codes'][-1]}; {row['then']}"
    return str(row["outcome"]) if row["outcome"] == "survived" else "**failed**"


def overhead(raw: dict[str, Any]) -> str:
    """Latency beside the runtimes' own benchmarks, and host time beside the device's."""
    plan, limit = raw["plan"], raw["host_limit"]
    held = sum(r["within_margin"] for r in raw["latency"])
    lines = [
        "## What the harness costs",
        "",
        f"`{raw['command']}`: {raw['model']}, {raw['latency_px']} px. Our worker's latency over that of the runtime's own benchmark for the same "
        "file: ONNX Runtime's `inference_ort` (benchmark_helper.py) and LiteRT's benchmark_litert_model.py, both out of the runtimes' packages. "
        f"{plan['groups']} groups of four alternating blocks, each a process of its own, {plan['warmup']} + {plan['runs']} runs in each; the "
        f"2nd percentile of a block, as in `hetero bench --against`. Three times; {held} of {len(raw['latency'])} ratios are within "
        f"{100 * raw['margin']:.0f} %. The machine was shared: `load` is its 1-minute average on {raw['machine']['cpus']} processors.",
        "",
        "| runtime | ours over its own | 95 % interval | ms, ours, its own | grade | load |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in sorted(raw["latency"], key=lambda x: (x["format"], x["seed"])):
        ratio, (own, ours) = r["agent_over_own"], r["quiet_ns"]
        name = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}[r["format"]]
        lines.append(
            f"| {name} | {ratio['value']:.3f} | {ratio['low']:.3f} to {ratio['high']:.3f} | {ours / 1e6:.3f}, {own / 1e6:.3f} "
            f"| {r['grade']} | {r['load_after']:.0f} |"
        )
    first = raw["host"][0]
    lines += [
        "",
        f"The host's whole time for {first['pictures']:,} pictures of {raw['host_px']} px over SSH (a real OpenSSH server on this machine) over what the device's "
        f"runtime took to import (with NumPy), load and run them; median of {len(first['runs']) - 1}, limit {limit}. The first run sends "
        f"{first['sent_bytes'] / 1e6:.0f} MB of pictures and model; later ones find them there, as the second file of a check does. Host "
        "and device share the processors here, so that sending costs the device as well.",
        "",
        f"| file | later runs | within {limit} | first run | later, over inference alone |",
        "| --- | --- | --- | --- | --- |",
    ]
    for r in raw["host"]:
        low, high = r["host_over_device_range"]
        lines.append(
            f"| {r['format']} | {r['host_over_device']:.2f} ({low:.2f} to {high:.2f}) | {'yes' if r['within_limit'] else '**no**'} "
            f"| {r['host_over_device_first']:.2f} | {r['host_over_inference']:.2f} |"
        )
    return "\n".join([*lines, ""])


def alarms(raw: dict[str, Any]) -> str:
    """How often a comparison of latencies cries wolf, and how often it sees ten per cent."""
    what, true = raw["what"], raw["true_slowdown"]
    lines = [
        "## Comparisons of latency: false alarms, and slow-downs seen",
        "",
        f"`{raw['command']}`: A/A compares a file with itself, A/B with one of {what['layers']['B']} instead of {what['layers']['A']} equal "
        f"layers, which really costs {100 * (true['median'] - 1):.0f} % more (user CPU time, median of {len(true['ratios'])}). Each comparison is "
        f"{what['groups']} groups of alternating blocks as `hetero bench --against` runs them; an alarm is a verdict of *fail* at a margin of "
        f"{100 * what['margin']:.0f} %. On a machine that did other things meanwhile. Rates with exact 95 % intervals.",
        "",
        "| | comparisons | alarms | rate | pass, inconclusive | grades: valid, noisy, invalid | ratio, median (range) | load, median (range) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, s in raw["summary"].items():
        count = s.get("false_alarms", s.get("detected", 0))
        low, high = (100 * x for x in s["rate_95"])
        grades, out = s["grades"], s["outcomes"]
        lines.append(
            f"| {kind} | {s['comparisons']} | **{count}** | {100 * s['rate']:.1f} % ({low:.1f} to {high:.1f}) "
            f"| {out['pass']}, {out['inconclusive']} | {grades['valid']}, {grades['noisy']}, {grades['invalid']} "
            f"| {s['ratio_median']:.3f} ({s['ratio_range'][0]:.3f} to {s['ratio_range'][1]:.3f}) "
            f"| {s['load_median']:.1f} ({s['load_range'][0]:.1f} to {s['load_range'][1]:.1f}) |"
        )
    return "\n".join([*lines, ""])


def adbd(raw: dict[str, Any]) -> str:
    """The tests of phones against Android's own daemon."""
    about, phone, tests = raw["adbd"], raw["phone"], raw["tests"]
    lines = [
        "## Phones, by Android's own daemon",
        "",
        f"`{raw['command']}`: AOSP's adbd, {about['files']} files of Debian's source package {about['source']}, built in {about['build_s']} s; adb "
        f"{phone['client']}; shell {phone['shell']}, tools {phone['tools']}, as {phone['uname']} programs, emulated. In the double's place in "
        f"tests/test_adb.py: {tests['passed']} tests passed, {tests['failed']} failed, {tests['skipped']} skipped. A phone itself was not there.",
    ]
    for name, why in raw["failed"].items():
        lines.append(f"- failed: `{name}`: {' '.join(why) if isinstance(why, list) else why}")
    for name, why in raw["skipped"].items():
        lines.append(f"- skipped: `{name}`: {why}")
    return "\n".join([*lines, ""])
