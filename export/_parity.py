"""Parity: the written file run on the bundle's probe, held against PyTorch's vectors.

Both widespread TFLite converters have been seen to write a wrong file without a word. An export is
therefore not done until what was written has been read back, run, and found to agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float32

from hetero import _plugins
from hetero.bundle import Bundle, Probe
from hetero.compare import agreement
from hetero.errors import BundleError, ExportError
from hetero.export._job import ConvertJob, Facts
from hetero.retrieval import Truth
from hetero.space import Embeddings, Space

#: Neighbours compared among the probe pictures.
NEIGHBOURS = 10


@dataclass(frozen=True)
class Gate:
    """What a file has to reach on the probe before it is accepted.

    Attributes:
        cosine_worst: Least allowed smallest cosine to PyTorch.
        cosine_median: Least allowed median cosine.
        max_abs_diff: Largest allowed difference of one component.
    """

    cosine_worst: float
    cosine_median: float
    max_abs_diff: float


#: int8's is wide: it catches broken files. What int8 may cost in retrieval is for `check` to judge.
GATES: Mapping[str, Gate] = MappingProxyType(
    {
        "fp32": Gate(cosine_worst=0.99999, cosine_median=0.99999, max_abs_diff=1e-4),
        "fp16": Gate(cosine_worst=0.999, cosine_median=0.999, max_abs_diff=0.1),
        "int8": Gate(cosine_worst=0.80, cosine_median=0.95, max_abs_diff=1.0),
        "int8w": Gate(cosine_worst=0.90, cosine_median=0.99, max_abs_diff=1.0),
        "palette6": Gate(cosine_worst=0.80, cosine_median=0.95, max_abs_diff=1.0),
    }
)

#: The L2 tail is float in every precision, so rows have length 1 but for rounding.
LENGTH_TOLERANCE = 1e-3

#: How far an output of a linearised model's float32 file may be from the exact one.
OUTPUT_TOLERANCE = 1e-4

#: Pictures a Jacobian-vector product is taken of at a time; bounds memory.
_SOME = 16


@dataclass(frozen=True)
class Parity:
    """How far a file's vectors are from PyTorch's, on the probe.

    Attributes:
        cosine_worst, cosine_p1, cosine_median: Of the cosines, one per picture.
        centred_cosine_worst: The smallest cosine after PyTorch's mean vector is taken off both; a
            component common to all embeddings hides damage from the plain cosine.
        max_abs_diff: Largest difference of one component.
        neighbour_agreement: Mean share of the nearest probe pictures that both find, in 0..1.
        worst_id: The picture of the smallest cosine.
        n: Number of pictures.
        same_class: Of a classifier, the share of pictures that both give the same class; else None.
    """

    cosine_worst: float
    cosine_p1: float
    cosine_median: float
    centred_cosine_worst: float
    max_abs_diff: float
    neighbour_agreement: float
    worst_id: str
    n: int
    same_class: float | None = None

    def judge(self, gate: Gate) -> None:
        """Nothing, if the gate is reached.

        Raises:
            ExportError: It is not; the message has the numbers and the worst picture.
        """
        least = (
            ("worst cosine", self.cosine_worst, gate.cosine_worst),
            ("median cosine", self.cosine_median, gate.cosine_median),
        )
        # "not at least" rather than "below": a number that is none misses every bound.
        missed = [f"{name} {x:.6g} is below {low:g}" for name, x, low in least if not x >= low]
        if not self.max_abs_diff <= gate.max_abs_diff:
            missed.append(
                f"largest difference {self.max_abs_diff:.6g} is above {gate.max_abs_diff:g}"
            )
        if missed:
            raise ExportError(
                f"the written file does not do what PyTorch does: {', '.join(missed)} "
                f"(worst probe picture {self.worst_id!r}, {self.n} pictures); "
                "use another format or precision, or change the backbone"
            )


def measure(
    ids: tuple[str, ...],
    reference: Float32[np.ndarray, "n d"],
    raw: np.ndarray[Any, Any],
    space: Space,
    logits: bool = False,
) -> Parity:
    """The differences between PyTorch's vectors and a file's.

    Args:
        ids: Of the pictures.
        reference: PyTorch's rows.
        raw: What the file gave for the same pictures, not normalised again.
        space: Of both.
        logits: Whether the rows are a classifier's. Those have any length; their differences are
            told in lengths of PyTorch's row.

    Raises:
        ExportError: Wrong shape, a row that is not finite, or unit rows that have lost their
            length.
        BundleError: Fewer than two pictures.
    """
    if len(ids) < 2:
        raise BundleError(f"a probe of {len(ids)} pictures proves nothing; it needs at least 2")
    if raw.shape != reference.shape:
        raise ExportError(
            f"the written file gave an array of shape {raw.shape}, expected {reference.shape}"
        )
    rows, right = raw.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    bad = np.flatnonzero(~(np.abs(lengths - 1) < LENGTH_TOLERANCE))
    if logits:
        if (lost := np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))).size:
            raise ExportError(
                f"{lost.size} of {len(ids)} rows of the written file are no logits, first "
                f"{ids[lost[0]]!r}: all 0, or not finite"
            )
        scale = np.linalg.norm(right, axis=1, keepdims=True)
        same_class = float((rows.argmax(1) == right.argmax(1)).mean())
        rows, right = rows / scale, right / scale
    elif bad.size:
        raise ExportError(
            f"{bad.size} of {len(ids)} rows of the written file are not of length 1, first "
            f"{ids[bad[0]]!r} with {lengths[bad[0]]:.6g}; the converter damaged the end of the net"
        )
    ours = Embeddings.normalised(space, ids, reference, "PyTorch")
    theirs = Embeddings.normalised(space, ids, raw, "the written file")
    alone = Truth(ids, ids, ids, ids)  # a picture is hidden from itself
    got = agreement(ours, theirs, ours, alone, k=min(NEIGHBOURS, len(ids) - 1))
    mean = right.mean(axis=0)
    return Parity(
        cosine_worst=float(got.cosine.min()),
        cosine_p1=float(np.percentile(got.cosine, 1)),
        cosine_median=float(np.median(got.cosine)),
        centred_cosine_worst=float(_cosine(rows - mean, right - mean).min()),
        max_abs_diff=float(np.abs(rows - right).max()),
        neighbour_agreement=float(got.overlap.mean()),
        worst_id=got.worst_id,
        n=len(ids),
        same_class=same_class if logits else None,
    )


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # Two rows that are both the mean are alike; one alone is not.
    same = np.isclose(a, b, atol=1e-6).all(axis=1)
    cosine = np.einsum("nd,nd->n", a, b) / np.where(lengths > 0, lengths, 1)
    return np.where(same & (lengths < 1e-12), 1.0, cosine)


def check(job: ConvertJob, probe: Probe, space: Space) -> Facts:
    """The facts of a written file that carries its metadata and agrees with PyTorch.

    Args:
        job: What was written, and where.
        probe: Pictures and PyTorch's vectors for them.
        space: Of the vectors.

    Raises:
        ExportError: The metadata does not read back as written, or the vectors do not agree.
    """
    variant = _plugins.load("hetero.export", job.format)
    found = variant.metadata(job.output)
    if found != dict(job.metadata):
        odd = sorted(k for k in {*found, *job.metadata} if found.get(k) != job.metadata.get(k))
        raise ExportError(
            f"the metadata of the written file does not read back: {odd[0]} is "
            f"{found.get(odd[0])!r}, expected {job.metadata.get(odd[0])!r}"
        )
    inputs: np.ndarray[Any, Any] = probe.pixels
    if not job.bake:
        inputs = Bundle.load(job.bundle, verify=False).preprocess.tensor(probe.pixels)
    with variant.load(job.output) as runner:
        raw = runner(inputs)
        runtime = runner.runtime
    if job.adaptation is not None:
        return {**_outputs(job, job.adaptation, probe, raw), "compared_with": runtime}
    logits = job.metadata.get("hetero.role") == "classifier"
    parity = measure(probe.ids, probe.vectors, raw, space, logits)
    parity.judge(GATES[job.precision])
    same = {} if parity.same_class is None else {"same_class": parity.same_class}
    return {
        **same,
        "cosine_worst": parity.cosine_worst,
        "cosine_p1": parity.cosine_p1,
        "cosine_median": parity.cosine_median,
        "centred_cosine_worst": parity.centred_cosine_worst,
        "max_abs_diff": parity.max_abs_diff,
        "neighbour_agreement": parity.neighbour_agreement,
        "worst_id": parity.worst_id,
        "probes": parity.n,
        "compared_with": runtime,
    }


def _outputs(job: ConvertJob, adaptation: Path, probe: Probe, raw: np.ndarray[Any, Any]) -> Facts:
    """How far a linearised model's file is from its Jacobian-vector product, on the probe.

    Raises:
        ExportError: Too far, or not of the same shape.
    """
    import torch

    from hetero import lqf

    bundle, found = Bundle.load(job.bundle, verify=False), lqf.Adaptation.load(adaptation)
    images = torch.from_numpy(bundle.preprocess.tensor(probe.pixels))
    net = lqf.base(bundle, found.head)
    rows = [lqf.by_jvp(net, found.change, part) for part in torch.split(images, _SOME)]
    right = torch.cat(rows).numpy()
    if raw.shape != right.shape:
        raise ExportError(
            f"the written file gave an array of shape {raw.shape}, expected {right.shape}"
        )
    apart = np.abs(raw.astype(np.float64) - right).max(axis=1)
    worst = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
    if not apart[worst] <= OUTPUT_TOLERANCE:
        raise ExportError(
            f"the written file does not do what the Jacobian-vector product does: outputs differ "
            f"by {apart[worst]:.3g}, at most {OUTPUT_TOLERANCE:g} was expected (probe picture "
            f"{probe.ids[worst]!r}, outputs up to {np.abs(right).max():.3g}); use another format"
        )
    return {
        "max_abs_diff": float(apart[worst]),
        "largest_output": float(np.abs(right).max()),
        "worst_id": probe.ids[worst],
        "probes": len(probe.ids),
    }
