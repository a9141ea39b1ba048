"""A diagnosis in words: lines, a table, a page, and the script that shows the difference."""

from __future__ import annotations

from typing import Any

from hetero.diagnose._diagnosis import Diagnosis


def as_lines(found: Diagnosis) -> list[str]:
    """Cause, evidence and fix, a line each."""
    lines = [f"verdict: {found.verdict}"]
    for fault in found.faults:
        lines += [
            f"stage: {fault.stage}",
            f"cause: {fault.cause}",
            f"evidence: {'; '.join(fault.evidence)}",
            f"fix: {fault.fix}",
        ]
    if found.layer is not None:
        at = found.layer
        lines.append(
            f"layer: {at.op} {at.tensor!r}, in PyTorch {at.module or at.torch_op} ({at.torch_op}), "
            f"found by {at.match}, confidence {at.confidence:.2f}"
        )
    lines += [f"note: {note}" for note in found.notes]
    if found.verdict == "healthy":
        lines.append("no departure beyond what the file's precision and runtime account for")
    return lines


def table(found: Diagnosis) -> list[tuple[str, str, str, str]]:
    """Stage, cosine lost, recall@1 lost in points, how it was measured; the last row is the sum."""
    rows = [
        (x.stage, f"{x.cosine_lost:.2g}", f"{100 * x.recall_lost:+.1f}", x.how)
        for x in found.losses
    ]
    whole = (f"{found.cosine_lost:.2g}", f"{100 * found.recall_lost:+.1f}")
    return [*rows, ("total", *whole, f"of a recall@1 of {100 * found.recall:.1f}")]


def as_markdown(found: Diagnosis, facts: dict[str, Any]) -> str:
    """The diagnosis as a page."""
    head = [f"# Diagnosis: {found.verdict}{', ' if found.stage else ''}{found.stage}", ""]
    lines = head + [f"- {line}" for line in as_lines(found)]
    lines += [
        "",
        "| stage | 1 - cosine | recall@1 lost, points | how |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(row)} |" for row in table(found)]
    if found.suspects:
        lines += ["", "| tried | stage | explains |", "| --- | --- | --- |"]
        lines += [f"| {s.what} | {s.stage} | {s.explained:.1%} |" for s in found.suspects]
    lines += ["", *(f"- {k}: {v}" for k, v in facts.items()), ""]
    return "\n".join(lines)


#: Filled with a picture's name; runs with NumPy alone.
SCRIPT = '''"""Shows the difference: run it with `python compare.py` in this folder.

The reference's vector of the picture comes from a hetero bundle; yours goes where the device's is.
"""

import numpy as np

NAME = {name!r}

reference, device = np.load("reference.npy"), np.load("device.npy")
print("picture:", NAME)
print("numbers: reference", reference.size, "device", device.size)
print("length: reference", np.linalg.norm(reference), "device", np.linalg.norm(device))
k = min(reference.size, device.size)
a, b = reference[:k], device[:k]
cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
print("cosine:", cosine, "(1 is the same direction)")
for at in np.argsort(-abs(a - b))[:5]:
    print("number", at, "reference", a[at], "device", b[at])
# With hetero and the bundle at hand, the reference can be made again:
#   from hetero.preprocess import decode
#   pixels = bundle.preprocess.pixels(decode(open(NAME, "rb").read()))
'''
