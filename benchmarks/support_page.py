"""docs/support.md, made from benchmarks/results/support.json."""

# Lines of a Markdown table cannot be broken.
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path("docs/support.md")

#: Format and precision -> the cosine that the worst picture should reach.
LEAST = {"fp32": 0.99999, "fp16": 0.9995}


def render(raw: dict[str, Any]) -> str:
    """The whole page."""
    cells = raw["cells"]
    works = [c for c in cells if c["works"]]
    lines = [
        "# What works",
        "",
        f"Made by `{raw['command']}`: {len(raw['architectures'])} architectures, {raw['size_px']} px, "
        f"{raw['dim']} numbers a picture. **{len(works)} of {len(cells)} files work "
        f"({len(works) / max(1, len(cells)):.0%})**: written, read back, run on {raw['probes']} pictures, and "
        "held against PyTorch. Core ML is *reference execution, not Apple's runtime*.",
        "",
        "Weights are random; batch norms have the statistics of real pictures. So the float columns say how exact "
        "a file is. The int8 columns are harsher than on trained nets.",
        "",
        f"Latency: processor time of one thread, one picture, the median of {raw['rounds']} rounds in which all files of an architecture "
        f"take turns{_busy(raw)} Conversion: by the clock, so longer on a busy machine.",
        "",
        *_sums(cells),
    ]
    for name, about in raw["architectures"].items():
        lines += [
            "",
            f"## {name}",
            "",
            f"{about['parameters'] / 1e6:.2f} M parameters, {about['macs'] / 1e6:.0f} M multiply-adds.",
            "",
            "| file | | worst cosine | size, KiB | latency, ms | to fp32 ONNX | conversion, s |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
            *(_row(c) for c in cells if c["architecture"] == name),
        ]
    failed = [c for c in cells if not c["works"]]
    if failed:
        lines += ["", "## What fails, and why", ""]
        lines += [f"- {c['architecture']}: {c['reason']}" for c in failed]
    below = [c for c in works if c["cosine_worst"] < LEAST.get(c["precision"], -1)]
    if below:
        lines += ["", "## Works, but below what a float file should reach", ""]
        lines += [
            f"- {c['architecture']} {c['format']} {c['precision']}: {c['cosine_worst']:.6f}, "
            f"wanted {LEAST[c['precision']]:g}"
            for c in below
        ]
    versions = ", ".join(f"{k} {v}" for k, v in raw["versions"].items())
    lines += ["", f"{raw['system']}, Python {raw['python']}; {versions}."]
    return "\n".join(lines) + "\n"


def _busy(raw: dict[str, Any]) -> str:
    """What else ran meanwhile: on a busy machine times are longer than they need be."""
    loads = [a["load_average"] for a in raw["architectures"].values() if a["load_average"]]
    if not loads or max(loads) < raw["processors"]:
        return "."
    return (
        f"; other work ran meanwhile (load average {min(loads):g} to {max(loads):g} on {raw['processors']} processors), so "
        "compare within an architecture, by the ratio."
    )


def _sums(cells: list[dict[str, Any]]) -> list[str]:
    kinds = list(dict.fromkeys((c["format"], c["precision"]) for c in cells))
    lines = ["| file | works | worst cosine of all |", "| --- | ---: | ---: |"]
    for kind in kinds:
        some = [c for c in cells if (c["format"], c["precision"]) == kind]
        good = [c["cosine_worst"] for c in some if c["works"]]
        worst = f"{min(good):.6f}" if good else "-"
        lines.append(f"| {' '.join(kind)} | {len(good)} of {len(some)} | {worst} |")
    return lines


def _row(cell: dict[str, Any]) -> str:
    what = f"| {cell['format']} {cell['precision']} |"
    if not cell["works"]:
        return f"{what} **fails** | - | - | - | - | - |"
    timed = cell["latency"]
    ms, ratio = (f"{timed['ms']:.2f}", f"{timed['ratio']:.2f}") if timed else ("-", "-")
    return (
        f"{what} works | {cell['cosine_worst']:.6f} | {cell['size_bytes'] / 1024:.0f} | {ms} | {ratio} | "
        f"{cell['conversion_s']:.1f} |"
    )
