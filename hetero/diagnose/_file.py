"""A model file held against PyTorch by itself, before any device comes in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hetero.diagnose._diagnosis import Diagnosis, Fault, Layer, Loss
from hetero.diagnose._evidence import FLOORS
from hetero.diagnose._pipeline import Array

#: Rows of a float model are of length 1 but for rounding; int8 outputs are a little less exact.
LENGTH = 0.02


@dataclass(frozen=True)
class FileCheck:
    """A model file held against PyTorch on the probe, before any device comes in.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        gap: 1 - cosine to PyTorch, one a probe picture.
        expected: Median of such gaps that its precision accounts for.
        sibling: Median gap of the same format's fp32 file; None where there is none.
        layer: The first departing layer, found if the file departs.
        rows: The fp32 sibling's rows for the canaries; None where there is none.
        length: Median length of the file's rows for the probe.
        ranges: Ranges of eight-bit activations that do not fit, from `ranges.odd`.
    """

    precision: str
    gap: tuple[float, ...]
    expected: float
    sibling: float | None = None
    layer: Layer | None = None
    rows: Array | None = field(default=None, compare=False)
    length: float = 1.0
    ranges: tuple[str, ...] = ()

    @property
    def departs(self) -> bool:
        """Whether the file does not do what PyTorch does."""
        return self._turned or bool(self.ranges) or not abs(self.length - 1) <= LENGTH

    @property
    def _turned(self) -> bool:
        gaps = np.asarray(self.gap)
        limit = max(FLOORS[self.precision], 2 * self.expected)
        return bool(np.median(gaps) > limit or (gaps > 20 * limit).sum() >= 2)

    @property
    def guilty(self) -> Layer | None:
        """The first departing layer, unless it cannot have done it.

        A vector divided by its length keeps its direction: where the L2 layer of a file that turns
        vectors is the first to stand out, what came before was too spread over layers to do so.
        """
        if self._turned and self.layer is not None and self.layer.stage == "l2":
            return None
        return self.layer

    @property
    def stage(self) -> str:
        """The stage to blame if it departs."""
        if not self._turned and abs(self.length - 1) > LENGTH:
            return "l2"
        if not self._turned and self.ranges:
            return "quantisation"
        if self.guilty is not None and self.guilty.stage:
            return self.guilty.stage
        if self.precision == "fp32":
            return "conversion"
        broken = self.sibling is not None and self.sibling > FLOORS["fp32"]
        return "conversion" if broken else "quantisation"


def refused(message: str, precision: str, sibling: bool, recall: float) -> Diagnosis:
    """The diagnosis of a file that the runtime on this machine does not run at all.

    Args:
        message: What it says.
        precision: Of the file.
        sibling: Whether the same format's fp32 file runs.
        recall: Of PyTorch's vectors, all of which is lost.
    """
    stage = "quantisation" if precision == "int8" and sibling else "conversion"
    evidence = ["its bytes are whole: their seal fits"]
    if precision != "fp32":
        evidence.append(f"the fp32 file of this format {'runs' if sibling else 'does not run'}")
    fault = Fault(
        stage,
        f"the runtime refuses the file: {message}",
        tuple(evidence),
        "export it again with `hetero export`, which runs what it writes",
        True,
        2.0,
    )
    loss = Loss(stage, 2.0, recall, "no vector at all")
    return Diagnosis("fault", (fault,), (loss,), 2.0, recall, recall)


def file_fault(file: FileCheck) -> Fault:
    """What a file that departs is blamed for."""
    median = float(np.median(file.gap))
    evidence = [
        f"run here, the {file.precision} file is {median:.2g} (1 - cosine, median) from PyTorch on "
        f"the probe, where {max(FLOORS[file.precision], 2 * file.expected):.2g} is allowed"
    ]
    if file.sibling is not None and file.precision != "fp32":
        right = "right" if file.sibling <= FLOORS["fp32"] else "wrong as well"
        evidence.append(f"the fp32 file of this format is {right} ({file.sibling:.2g})")
    evidence += file.ranges[:3]
    where = ", in the range of an activation" if file.ranges else ""
    if abs(file.length - 1) > LENGTH:
        evidence.append(f"its vectors have a length of {file.length:.3g} instead of 1")
    if file.guilty is not None:
        place = file.guilty.module or file.guilty.torch_op
        where = f", first at {place}"
        evidence.append(
            f"{file.guilty.op} {file.guilty.tensor!r} is {file.guilty.error:.2g} off, what it is "
            f"computed from {file.guilty.error_before:.2g} (found by {file.guilty.match})"
        )
    elif file.layer is not None:
        evidence.append("no single layer before the L2 step stands out: many are a little off")
    fixes = {
        "conversion": "export it again with `hetero export`, which refuses such a file",
        "quantisation": "quantise per channel with ranges from real pictures, or keep the layer "
        "in float",
        "pooling": "pool in the file as the net does",
        "l2": "end the file with the division of each vector by its own L2 length",
        "normalise": "put the bundle's mean and std into the file",
    }
    stage = file.stage
    return Fault(
        stage,
        f"the {file.precision} file does not do what PyTorch does{where}",
        tuple(evidence),
        fixes[stage],
        True,
        float(np.mean(file.gap)),
    )
