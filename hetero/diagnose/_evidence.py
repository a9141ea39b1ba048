"""Which canaries moved, by more than precision and runtime account for, and what that proves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float64

from hetero.diagnose._pipeline import Array, unit
from hetero.diagnose.canary import Canary

#: 1 - cosine that number types alone may cost where no file can be run here to tell.
FLOORS: Mapping[str, float] = MappingProxyType({"fp32": 1e-5, "fp16": 1e-4, "int8": 1e-3})

#: Stages whose pictures no other stage's fault moves alone. The others move nearly everything.
_TELLING = ("orientation", "decode", "crop", "resize", "colour")


def departure(a: Array, b: Array) -> Float64[np.ndarray, " n"]:
    """1 - cosine of each pair of rows, 0..2; 2 where a row is zero or not finite.

    Args:
        a: Rows of any length.
        b: As many rows of the same dimension.
    """
    first, second = unit(a).astype(np.float64), unit(b).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        # Of the difference, not 1 - dot: that would round small departures to nothing.
        gap = ((first - second) ** 2).sum(axis=1) / 2
        lengths = np.stack([np.linalg.norm(x, axis=1) for x in (first, second)])
    whole = (np.abs(lengths - 1) < 1e-3).all(axis=0)
    out: Float64[np.ndarray, " n"] = np.where(whole & np.isfinite(gap), gap, 2.0)
    return out


def allowed(reference: Array, by_file: Array | None, precision: str) -> Float64[np.ndarray, " n"]:
    """How far each picture's vector may lie from where this machine puts it.

    As far as the file's own vector lies from PyTorch's: another runtime rounds the same numbers in
    another order, and cannot be asked to be nearer than that.

    Args:
        reference: PyTorch's rows.
        by_file: The exported file's rows for the same pictures, run here; None without a file.
        precision: Of the file.
    """
    floor = np.full(len(reference), FLOORS.get(precision, FLOORS["fp32"]))
    if by_file is None:
        return floor
    own = departure(by_file, reference)
    # Where the file is broken, its error is no measure of what is normal.
    usual = min(float(np.quantile(own, 0.9)), 20 * FLOORS[precision])
    band: Float64[np.ndarray, " n"] = np.minimum(2 * own, 4 * usual).clip(
        min=max(2 * usual, FLOORS["fp32"])
    )
    return band


def moved(gap: Array, allow: Array) -> Bool[np.ndarray, " n"]:
    """Which pictures are out of their band."""
    out: Bool[np.ndarray, " n"] = gap > allow
    return out


def is_fault(out: Array, gap: Array, allow: Array) -> bool:
    """Whether what is out of its band is more than an accident: two pictures, or one far out."""
    return int(out.sum()) >= 2 or bool((gap > 50 * allow).any())


def acquitted(pictures: Sequence[Canary], out: Array, gap: Array) -> frozenset[str]:
    """The stages that cannot have done it, going by the pictures of one brightness alone.

    No crop, resize or turn moves such a picture, and no other constants, pooling, length or order
    of numbers leave all of them where they are.

    Args:
        pictures: The canaries.
        out: Which of them moved.
        gap: How far each lies from where it should.
    """
    flat = np.asarray([p.kind == "flat" for p in pictures])
    if int(out[flat].sum()) >= 2:
        return frozenset({"orientation", "crop", "resize"})
    still = flat.any() and out.any() and gap[flat].max() < np.median(gap[out]) / 100
    return frozenset({"normalise", "pooling", "l2", "output"} if still else ())


def pattern(pictures: Sequence[Canary], out: Array) -> tuple[tuple[str, ...], str]:
    """The stages that alone can have moved just these pictures, and why; or () and why not.

    The first is the one that moves fewest others, and most likely.

    Args:
        pictures: The canaries.
        out: Which of them moved.
    """
    which = {i for i, x in enumerate(out) if x}
    reach = {s: {i for i, p in enumerate(pictures) if s in p.moved_by} for s in _TELLING}
    kinds = sorted({pictures[i].kind for i in which})
    still = sorted({p.kind for p in pictures} - set(kinds))
    able = sorted((len(r), s) for s, r in reach.items() if which and which <= r)
    if not able or not still:
        return (), f"moved: {', '.join(kinds) or 'none'}; untouched: {', '.join(still) or 'none'}"
    stage = able[0][1]
    reached = reach[stage]
    whole = [k for k in kinds if all(i in which for i, p in enumerate(pictures) if p.kind == k)]
    if not whole and len(which) < len(reached) / 4:
        return (), f"only {len(which)} pictures moved, of kinds {', '.join(kinds)}"
    return tuple(s for _, s in able), (
        f"only pictures that {stage} touches moved ({', '.join(kinds)}); "
        f"untouched: {', '.join(still)}"
    )
