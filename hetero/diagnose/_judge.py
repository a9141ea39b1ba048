"""The diagnosis itself: point by point along the trace, then the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hetero.diagnose import _families, _search
from hetero.diagnose._diagnosis import Diagnosis, Fault, Suspect
from hetero.diagnose._evidence import acquitted, allowed, departure, is_fault, moved, pattern
from hetero.diagnose._file import LENGTH, FileCheck, file_fault
from hetero.diagnose._fit import fitted
from hetero.diagnose._library import Library, with_file
from hetero.diagnose._losses import fit_shape, losses
from hetero.diagnose._pipeline import (
    STAGES,
    Array,
    States,
    reference,
    run,
    unit,
)
from hetero.diagnose._search import Point, Tried
from hetero.diagnose.trace import Trace

#: Brightness levels that decoders and resizes may differ by on average: lossless files, JPEG.
_LEVELS, _JPEG_LEVELS = 0.2, 1.0

#: Decoders that round otherwise, for what that costs a JPEG.
_DECODERS = 3

#: Part of the departure that fitted numbers have to explain, all pictures together.
_FITS = 0.9

#: Tried hypotheses that are shown.
_SHOWN = 5

_FIXES = {
    "decode": "decode the picture as `hetero.preprocess.decode` does",
    "orientation": "turn the decoded picture as its EXIF orientation says, once",
    "colour": "hand the model RGB as the decoder gives it",
    "crop": "crop as the bundle's preprocess spec says",
    "resize": "resize as the bundle's preprocess spec says",
}


def diagnose(
    known: Library,
    trace: Trace | None,
    recall: Callable[[Array], float],
    *,
    precision: str = "fp32",
    file: FileCheck | None = None,
    device_only: bool = False,
) -> Diagnosis:
    """The stages that moved a device's vectors, or that nothing moved them.

    Args:
        known: From `library`.
        trace: What the device gave for the canaries; None looks at the file alone.
        recall: Unit rows for the canaries -> their recall@1 in the gallery.
        precision: Of the device's model.
        file: What is known about the file by itself.
        device_only: The device was given the reference's own pixels, so that only the runtime and
            what follows can be guilty.

    Raises:
        DataError: The trace lacks a canary.
    """
    names = tuple(p.name for p in known.pictures)
    torch_rows, by_file = known.torch_rows, known.home
    own = None if np.array_equal(by_file, torch_rows) else by_file
    allow = allowed(torch_rows, own, precision)
    allow = np.maximum(allow, _jpeg_slack(known))
    work = _Work(known, allow, recall, device_only)
    if file is not None and file.departs:
        work.faults.append(file_fault(file))
    marks: list[tuple[str, Array, str]] = [("", torch_rows, "")]
    if file is not None and file.rows is not None:
        marks.append(("conversion", unit(file.rows), "the fp32 file instead of PyTorch"))
    if own is not None:
        stage = "conversion" if precision == "fp32" else "quantisation"
        marks.append((stage, known.home, f"the {precision} file, run here"))
    last = known.home
    if trace is not None:
        marks += work.follow(trace.ordered(names))
        last = fit_shape(trace.ordered(names).embedding, known.home)
    lost = losses(marks, torch_rows, recall)
    total = float(departure(last, torch_rows).mean())
    departs = file is not None and file.departs
    gap = departure(last, torch_rows if departs or trace is None else known.home)
    out = moved(gap, allow)
    which = [i for i in np.argsort([len(p.data) for p in known.pictures]) if out[i]]
    found = Diagnosis(
        "fault" if work.faults else "inconclusive" if work.unexplained else "healthy",
        tuple(sorted(work.faults, key=lambda f: -f.cosine_lost)),
        lost,
        total,
        recall(torch_rows) - recall(last),
        recall(torch_rows),
        tuple(Suspect(t.variant.stage, t.variant.what, t.explained) for t in work.tried[:_SHOWN]),
        tuple(work.notes),
        names[int(gap.argmax())],
        names[which[0]] if which else "",
        file.guilty if file is not None and departs else None,
    )
    return found if trace is None else _with_lengths(found, trace.embedding)


class _Work:
    """The state of one diagnosis while it goes along the trace."""

    def __init__(
        self, known: Library, allow: Array, recall: Callable[[Array], float], device_only: bool
    ) -> None:
        self.known, self.allow, self.recall = known, allow, recall
        self.device_only = device_only
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self.tried: list[Tried] = []
        self.unexplained = False

    def follow(self, trace: Trace) -> list[tuple[str, Array, str]]:
        """Finds the faults in a trace; gives (stage, rows, how) after each swap."""
        known, marks = self.known, []
        start, value, states = "decode", None, known.states
        by_library = True
        for until, target, measure, allow in self._points(trace):
            point = Point(start, value, until, target, measure, allow)
            ours = _search.at(states, until)
            gap = measure(ours, target)
            out = moved(gap, allow)
            label = self._segment(start, until)
            found: Tried | None = None
            if is_fault(out, gap, allow):
                label, found = self._blame(point, states, gap, out, by_library, ours)
            if until == "":
                if found is not None:
                    marks.append((label, unit(np.asarray(found.value)), found.variant.what))
                last = fit_shape(trace.embedding, known.home)
                rest = self._segment(start, "") if found is None else "rest"
                if is_fault(out, gap, allow) and found is None and label in STAGES:
                    rest = label
                marks.append((rest, last, "the device's vectors"))
                break
            # From here on what the device had takes the place of the reference's.
            start, value, by_library = until, target, False
            states = self._from(start, value)
            marks.append((label, states.rows, f"with the device's {_CALLED[until]}"))
        return marks

    def _from(self, start: str, value: Any) -> States:
        """What a healthy device would have made of a value from this step on."""
        known = self.known
        states = run(reference(), known.spec, known.engine, start, value)
        if start in ("l2", "output"):
            return replace(states, rows=unit(states.rows))
        return with_file(states, known.engine)

    def _points(self, trace: Trace) -> list[tuple[str, Any, Callable[[Any, Any], Array], Array]]:
        """(step before which the device's value is known, value, measure, band), in order."""
        known = self.known
        out: list[tuple[str, Any, Callable[[Any, Any], Array], Array]] = []
        jpeg = np.asarray([p.data[:2] == b"\xff\xd8" for p in known.pictures])
        level = np.where(jpeg, _JPEG_LEVELS, _LEVELS)
        if len(trace.decoded) == len(trace.names):
            pictures = [trace.decoded[n] for n in trace.names]
            out.append(("crop", pictures, _search.levels, level))
        if trace.pixels is not None:
            tight = level if not out else np.full(len(level), _LEVELS)
            out.append(("normalise", trace.pixels, _search.levels, tight))
        if trace.tensor is not None:
            std = np.asarray(known.spec.std).reshape(3, 1, 1) * 255

            def in_levels(a: Any, b: Any) -> Array:
                return _search.levels([x * std for x in a], [x * std for x in b])

            tight = level if not out else np.full(len(level), _LEVELS)
            out.append(("network", trace.tensor, in_levels, tight))
        if trace.raw is not None:
            out.append(("l2", trace.raw, _search.vectors, self.allow))
        out.append(("", trace.embedding, _search.vectors, self.allow))
        return out

    def _segment(self, start: str, until: str) -> str:
        stages = _search.stages_of("network" if self.device_only else start, until)
        inside = [s for s in STAGES if s in stages and s not in ("conversion", "quantisation")]
        return inside[0] if len(inside) == 1 else f"{inside[0]}..{inside[-1]}"

    def _blame(
        self, point: Point, states: States, gap: Array, out: Array, by_library: bool, ours: Any
    ) -> tuple[str, Tried | None]:
        """Adds the fault in a segment; gives the stage, and what reproduces it."""
        known = self.known
        lost = self._lost(point)
        evidence = [f"{int(out.sum())} of {len(out)} canary pictures moved"]
        if point.until == "":
            odd = self._broken(np.asarray(point.target), lost)
            if odd:
                return odd, None
        hints, why = pattern(known.pictures, out)
        if hints and hints[0] not in _search.stages_of(point.start, point.until):
            hints, why = (), ""
        pool, fitted_ = list(known.variants), list(known.families)
        free = acquitted(known.pictures, out, gap)
        if self.device_only:
            free = frozenset()
            inside, hints = set(_search.stages_of("network", "")), ()
            pool = [v for v in pool if v.stage in inside]
            fitted_ = [f for f in fitted_ if f.stage in inside]
        cache = known.known if by_library and point.until in ("", "normalise") else None
        tried: list[Tried] = []
        best = None
        pool = [v for v in pool if v.stage not in free]
        fitted_ = [f for f in fitted_ if f.stage not in free]
        # Where the pictures that moved leave few stages, those come first, and mostly suffice.
        likely = [v for v in pool if v.stage in hints]
        for some in (likely, [v for v in pool if v.stage not in hints]):
            if best is None or not best[1]:
                at = (point, states, known.screen, cache)
                tried += _search.weigh(some, known.spec, known.engine, *at)
                tried.sort(key=_search.order)
                best = _search.named(tried, hints)
        if best is None or not best[1]:
            fitted_ = [f for f in fitted_ if not hints or f.stage in hints]
            more = _families.nearest(fitted_, known.spec, known.engine, point, states, out)
            tried = sorted([*tried, *more], key=_search.order)
            best = _search.named(tried, hints)
        if (best is None or not best[1]) and point.until == "" and not hints:
            tried = sorted([*tried, *self._fits(point, states, ours, out)], key=_search.order)
            best = _search.named(tried, hints)
        self.tried = sorted([*self.tried, *tried], key=lambda t: -t.explained)
        if why:
            evidence.append(why)
        if best is not None:
            found, exact = best
            left = float(np.median(found.gap[out]))
            evidence.insert(
                0,
                f"done on purpose it {'gives what the device gave' if exact else 'comes near'}: "
                f"{found.explained:.1%} of the departure explained, median {left:.2g} left of "
                f"{float(np.median(gap[out])):.2g}",
            )
            v = found.variant
            cause = v.what if exact else f"near to: {v.what}"
            self.faults.append(Fault(v.stage, cause, tuple(evidence), v.fix, exact, lost))
            return v.stage, found
        if hints:
            fix = _FIXES[hints[0]]
            cause = f"the {hints[0]} departs in a way that no hypothesis reproduces"
            self.faults.append(Fault(hints[0], cause, tuple(evidence), fix, False, lost))
            return hints[0], None
        segment = self._segment(point.start, point.until)
        if segment in STAGES:
            fix = "compare this one step's input and output with the reference's"
            cause = f"the {segment} departs in a way that no hypothesis reproduces"
            evidence.append("what comes before and after it is known to be right")
            self.faults.append(Fault(segment, cause, tuple(evidence), fix, False, lost))
            return segment, None
        if self.device_only:
            cause = "the device's runtime gives other numbers for the same file and pixels"
            fix = "turn its delegates and reduced precision off one by one, or change the runtime"
            self.faults.append(Fault("runtime", cause, tuple(evidence), fix, False, lost))
            return "runtime", None
        self.unexplained = True
        self.notes.append(
            f"something between {segment.replace('..', ' and ')} departs and nothing tried "
            f"reproduces it ({'; '.join(evidence)}); record pixels.npy and tensor.npy as well"
        )
        return segment, None

    def _fits(self, point: Point, states: States, ours: Any, moved_: Array) -> list[Tried]:
        known = self.known
        tensor = states.before.get("network")
        target = np.asarray(point.target)
        if tensor is None or target.shape != np.asarray(ours).shape:
            return []
        before = point.measure(ours, target)
        # With the device's pixels known, no crop lies between here and the end.
        pictures = states.before.get("crop", [])
        flat = any(m and p.kind == "flat" for m, p in zip(moved_, known.pictures, strict=True))
        if self.device_only:
            pictures, flat = [], False
        rows = unit(np.asarray(ours))
        made = fitted(known.spec, known.engine, pictures, tensor, rows, target, flat)
        inside = set(_search.stages_of("network" if self.device_only else point.start, ""))
        out = []
        for variant in (v for v in made if v.stage in inside):
            value = _search.value_of(variant, known.spec, known.engine, point, states)
            tried = _search.judged(variant, value, before, point)
            # Numbers that were fitted prove something only if they explain the rest too.
            if tried.reproduces or tried.explained >= _FITS:
                out.append(tried)
        return out

    def _broken(self, rows: Array, lost: float) -> str:
        """The stage, where the vectors are not even vectors of this model; else ""."""
        dim = self.known.home.shape[1]
        bad = int((~np.isfinite(rows).all(axis=1)).sum())
        if bad:
            self.faults.append(
                Fault(
                    "runtime",
                    f"{bad} of {len(rows)} vectors hold numbers that are not finite",
                    ("NaN or infinity comes from an overflow, mostly of 16-bit floats",),
                    "forbid reduced precision in the delegate's options, or use the fp32 file",
                    True,
                    lost,
                )
            )
            return "runtime"
        if rows.shape[1] == dim:
            return ""
        k = min(rows.shape[1], dim)
        first = departure(rows[:, :k], self.known.home[:, :k])
        same = float((first <= 10 * self.allow).mean()) >= 0.9
        self.faults.append(
            Fault(
                "output",
                f"the device sends {rows.shape[1]} numbers a picture instead of {dim}",
                (f"its first {k} numbers are {'' if same else 'not '}the reference's first {k}",),
                f"send all {dim} numbers of the vector, in the runtime's order",
                same,
                lost,
            )
        )
        return "output"

    def _lost(self, point: Point) -> float:
        """Mean 1 - cosine that the device's value at a point costs, before this point's fault."""
        if point.until in ("", "l2"):
            return float(_search.vectors(self.known.home, np.asarray(point.target)).mean())
        return float(departure(self._from(point.until, point.target).rows, self.known.home).mean())


#: What a trace holds before a step.
_CALLED = {
    "crop": "decoded pictures",
    "normalise": "pixels",
    "network": "tensor",
    "l2": "raw output",
}


def _jpeg_slack(known: Library) -> Array:
    """What a JPEG decoder that rounds by a level here and there may cost, one a picture."""
    pixels = known.states.pixels
    assert pixels is not None, "the library holds the whole reference run"
    jpeg = np.asarray([p.data[:2] == b"\xff\xd8" for p in known.pictures])
    gaps = []
    for seed in range(_DECODERS):
        noise = np.random.default_rng(seed).integers(-1, 2, pixels[jpeg].shape)
        near = np.clip(pixels[jpeg].astype(np.int64) + noise, 0, 255).astype(np.uint8)
        rows = run(reference(), known.spec, known.engine, "normalise", near).rows
        gaps.append(departure(rows, known.torch_rows[jpeg]))
    out = np.zeros(len(jpeg))
    # One decoder may hit a picture by chance where another does not.
    out[jpeg] = 2 * np.maximum(np.max(gaps, axis=0), np.median(gaps))
    return out


def _with_lengths(diagnosis: Diagnosis, rows: Array) -> Diagnosis:
    """The diagnosis with a fault of the L2 step added, if directions are right and lengths not."""
    lengths = np.linalg.norm(np.asarray(rows, dtype=np.float64), axis=1)
    if diagnosis.verdict != "healthy" or not np.isfinite(lengths).all():
        return diagnosis
    if float(np.quantile(np.abs(lengths - 1), 0.9)) <= LENGTH:
        return diagnosis
    fault = Fault(
        "l2",
        f"vectors are not of length 1 but {lengths.min():.3g} to {lengths.max():.3g}",
        ("their directions are right, so only the last division is missing or wrong",),
        "divide each vector by its own L2 length, once, as the last step",
        True,
        0.0,
    )
    return replace(diagnosis, verdict="fault", faults=(fault,))
