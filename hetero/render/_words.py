"""Names, numbers and places as people read them, the same in every renderer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hetero.report import Limit, Measurement

Kind = Literal["percent", "points", "cosine", "times", "count", "plain"]

#: Shown where there is no number.
ABSENT = "\N{EN DASH}"

_TIMES = "\N{MULTIPLICATION SIGN}"

#: Units as shown, by kind; a plain number carries the measurement's own.
_UNITS: dict[Kind, str] = {"percent": "%", "points": "points", "cosine": "", "times": _TIMES}
_SPOKEN_UNITS = {"1/s": "per second", "count": ""}
_FORMATS = {"onnx": "ONNX", "tflite": "TFLite", "coreml": "Core ML", "pytorch": "PyTorch"}


@dataclass(frozen=True)
class Word:
    """How a measurement is presented.

    Attributes:
        label: What it is called in a table.
        kind: How its number is written.
    """

    label: str
    kind: Kind = "plain"


WORDS = {
    "heterogeneous_recall_at_1": Word("Recall@1, query model in the gallery's index", "percent"),
    "heterogeneous_recall_at_5": Word("Recall@5, query model in the gallery's index", "percent"),
    "heterogeneous_map": Word("mAP, query model in the gallery's index", "percent"),
    "homogeneous_query_recall_at_1": Word("Recall@1, query model in its own index", "percent"),
    "homogeneous_query_map": Word("mAP, query model in its own index", "percent"),
    "reverse_recall_at_1": Word("Recall@1, gallery model in the query model's index", "percent"),
    "reverse_map": Word("mAP, gallery model in the query model's index", "percent"),
    "recall_at_1_lost": Word("Recall@1 lost to PyTorch", "points"),
    "query_negative_flip_rate": Word("Negative flips: right before export, wrong now", "percent"),
    "query_positive_flip_rate": Word("Positive flips: wrong before export, right now", "percent"),
    "recall_at_1_lost_to_baseline": Word("Recall@1 lost to the baseline", "points"),
    "map_lost_to_baseline": Word("mAP lost to the baseline", "points"),
    "query_negative_flip_rate_to_baseline": Word(
        "Negative flips: right in the baseline, wrong now", "percent"
    ),
    "latency_p50_over_baseline": Word("Latency p50, over the baseline's", "times"),
    "size_over_baseline": Word("File size, over the baseline's", "times"),
    "cosine_worst": Word("Cosine to PyTorch, worst", "cosine"),
    "cosine_p1": Word("Cosine to PyTorch, 1st percentile", "cosine"),
    "cosine_median": Word("Cosine to PyTorch, median", "cosine"),
    "neighbour_overlap_at_10": Word("First 10 neighbours kept", "percent"),
    "device_inferences": Word("Queries run on the device until the verdict was certain", "count"),
    "device_inferences_saved": Word("Queries that did not have to be run", "count"),
    "size": Word("File size"),
    "load_time": Word("Load time"),
    "first_latency": Word("First embedding after loading"),
    "latency_p50": Word("Latency, p50"),
    "latency_p90": Word("Latency, p90"),
    "latency_p99": Word("Latency, p99"),
    "latency_mean": Word("Latency, mean"),
    "latency_min": Word("Latency, least"),
    "latency_p95": Word("Latency, p95"),
    "peak_memory": Word("Peak memory"),
    "throughput": Word("Throughput"),
    "preprocess_p50": Word("Decode, resize and crop on this machine, p50"),
    "latency_quiet": Word("Quiet latency"),
    "latency_ratio": Word("Latency, B over A", "times"),
    "latency_p50_ratio": Word("Median latency, B over A", "times"),
    "latency_same_ratio": Word("Latency, the same file later over earlier", "times"),
    "detectable_slowdown": Word("Smallest slow-down that this run would find", "percent"),
    "latency_first_minute_p50": Word("Latency in the first minute, p50"),
    "latency_last_minute_p50": Word("Latency in the last minute, p50"),
    "sustained_ratio": Word("Latency, last minute over first", "times"),
    "operators_fallen_back": Word("Operators that fell back from the accelerator"),
    "paragon_recall_at_1": Word("Recall@1, gallery model on both sides (paragon)", "percent"),
    "paragon_map": Word("mAP, gallery model on both sides (paragon)", "percent"),
    "paragon_gap_recall_at_1": Word("Recall@1, distance to the paragon", "points"),
    "paragon_gap_map": Word("mAP, distance to the paragon", "points"),
    "heterogeneous_map_at_r": Word("mAP@R, query model in the gallery's index", "percent"),
    "tpr_at_fpr_1_percent": Word("Verification: TPR at 1 % FPR", "percent"),
    "score_scale_same_class_shift": Word("Same-class cosine, against gallery with gallery"),
    "score_scale_other_class_shift": Word("Other-class cosine, against gallery with gallery"),
    "fpr_at_gallery_threshold": Word("FPR at the gallery model's 1 % threshold", "percent"),
    "hubness_skewness": Word("Hubness: skewness of how often a picture is found"),
    "worst_class_recall_at_1": Word("Recall@1 of the class served worst", "percent"),
    "worst_group_recall_at_1": Word("Recall@1 of the group served worst", "percent"),
    "worst_brightness_recall_at_1": Word("Recall@1 of the brightness served worst", "percent"),
    "control_recall_at_1": Word("Recall@1, negative control", "percent"),
    "control_map": Word("mAP, negative control", "percent"),
    "independent_recall_at_1": Word(
        "Recall@1, independent query model in its own index", "percent"
    ),
    "independent_map": Word("mAP, independent query model in its own index", "percent"),
    "pixels_recall_at_1": Word("Recall@1, raw pixels", "percent"),
    "chance_recall_at_1": Word("Recall@1, chance", "percent"),
    "compute_ratio": Word("Compute of the gallery model over the query model", "times"),
}

_RATIO_NAME = re.compile(r"(_recall_at_\d+|_map|_rate|_overlap_at_\d+|_precision_at_\d+)$")


def word(name: str) -> Word:
    """How a measurement of this name is presented, guessed from the name where it is not ours."""
    if name in WORDS:
        return WORDS[name]
    label = name.replace("_", " ")
    label = label[:1].upper() + label[1:]
    if _RATIO_NAME.search(name):
        return Word(label, "percent")
    return Word(label, "cosine" if name.startswith("cosine_") else "plain")


def _kind(m: Measurement) -> Kind:
    # A number that brings a unit is shown in that unit, whatever its name suggests.
    if m.unit:
        return "count" if m.unit == "count" else "plain"
    return word(m.name).kind


def _scaled(value: float, kind: Kind) -> float:
    return value * 100 if kind in ("percent", "points") else value


def _decimals(value: float, kind: Kind) -> int:
    """Digits after the point that are enough for a reader, before any limit is considered."""
    if kind in ("percent", "points"):
        return 1
    if kind == "times":
        return 1 if value >= 2 else 3
    if kind == "count":
        return 0
    if kind == "cosine":
        short = 1 - value
        return min(7, math.ceil(-math.log10(short))) if 0 < short < 1e-4 else 4
    if value == 0 or abs(value) >= 100:
        return 0
    return min(6, 2 - math.floor(math.log10(abs(value))))


def _written(value: float, kind: Kind, extra: int = 0) -> str:
    scaled = _scaled(value, kind)
    text = f"{scaled:.{_decimals(value, kind) + extra}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def bare(m: Measurement) -> str:
    """The number without its unit, never rounded across the limit that it was held to."""
    if not math.isfinite(m.value):
        return "not a number"
    kind = _kind(m)
    bounds = [b for b in (m.limit.at_least, m.limit.at_most) if b is not None] if m.limit else []
    for extra in range(9):
        text = _written(m.value, kind, extra)
        if all(
            (float(text) < _scaled(b, kind)) == (m.value < b)
            and (float(text) > _scaled(b, kind)) == (m.value > b)
            for b in bounds
        ):
            return text
    return _written(m.value, kind)


def unit(m: Measurement) -> str:
    """The unit as shown: "%", "points", "ms"; empty for a cosine."""
    kind = _kind(m)
    if kind in _UNITS:
        return _UNITS[kind]
    return _SPOKEN_UNITS.get(m.unit, one_line(m.unit))


def _with_unit(text: str, u: str) -> str:
    if (text, u) == ("1", "points"):
        return "1 point"
    return f"{text}{u}" if u == _TIMES else f"{text} {u}".rstrip()


def number(m: Measurement) -> str:
    """The number with its unit: "71.2 %", "0.4 points", "3.21 ms"; and "3.21 ms (noisy)"."""
    text = bare(m) if not math.isfinite(m.value) else _with_unit(bare(m), unit(m))
    return f"{text}{mark(m)}"


def mark(m: Measurement) -> str:
    """What follows a number that is not to be believed: " (noisy)"; else empty."""
    return f" ({one_line(m.doubt.partition(':')[0])})" if m.doubt else ""


def interval(m: Measurement) -> str:
    """The 95 % interval in the unit of the number, as "69.0 to 73.4"; empty if there is none."""
    if m.ci is None or not all(math.isfinite(end) for end in m.ci):
        return ""
    return " to ".join(_written(end, _kind(m)) for end in m.ci)


def bound(m: Measurement) -> str:
    """The limit in the unit of the number, as "≥ 70 %"; empty if it was held to none."""
    if m.limit is None:
        return ""
    kind = _kind(m)
    low, high = (
        f"{_scaled(b, kind):g}" if b is not None else ""
        for b in (m.limit.at_least, m.limit.at_most)
    )
    text = f"{low} to {high}" if low and high else (f"≥ {low}" if low else f"≤ {high}")
    return _with_unit(text, unit(m))


def spread(measurements: Iterable[Measurement]) -> str:
    """The range over several files, "70.8 to 71.3 %", or one number where all read the same.

    Numbers that are not finite are left out; empty if none remains.
    """
    ordered = sorted((m for m in measurements if math.isfinite(m.value)), key=lambda m: m.value)
    if not ordered:
        return ""
    first, last = ordered[0], ordered[-1]
    low, high = (_written(m.value, _kind(m)) for m in (first, last))
    return _with_unit(low if low == high else f"{low} to {high}", unit(last))


def place(device: str, format: str, precision: str) -> str:
    """A file and where it ran: "TFLite int8 on local", "PyTorch fp32", "the models"."""
    if not (device or format or precision):
        return "the models"
    named = " ".join(x for x in (_FORMATS.get(format, format), precision) if x) or "any file"
    return f"{named} on {device}" if device else named


def why_undecided(m: Measurement) -> str:
    """In a clause, why a judged measurement is inconclusive."""
    limit: Limit | None = m.limit
    if m.doubt.startswith("invalid"):
        return one_line(m.doubt)
    if limit is not None and m.n is not None and m.n < limit.min_n:
        return f"{m.n} observations, {limit.min_n} asked for"
    if m.decision is not None:
        return _more(m)
    return "the limit lies inside the 95 % interval"


def _more(m: Measurement) -> str:
    """How much more would decide."""
    decision = m.decision
    if decision is None or decision.more_queries is None or decision.more_classes is None:
        if m.evidence is not None and m.evidence.design == "sequence":
            return "asking stopped when an earlier limit was decided; check again with this one"
        return "the loss is too close to the margin for any number of queries in reach"
    queries = count(_rounded(decision.more_queries), "more query", "more queries")
    classes = count(_rounded(decision.more_classes), "more class", "more classes")
    return f"about {queries} would decide, of about {classes}"


def _rounded(n: int) -> int:
    """To two digits, upwards: more would be a pretence."""
    step = int(10 ** max(0, len(str(n)) - 2))
    return -(-n // step) * step


def rates(m: Measurement) -> str:
    """The margin and error rates of a test: "margin 2 points (alpha 5 %, beta 5 %)"."""
    limit = m.limit
    if limit is None or limit.at_most is None:
        return ""
    margin = _with_unit(f"{_scaled(limit.at_most, _kind(m)):g}", unit(m))
    return f"margin {margin} (alpha {100 * limit.alpha:g} %, beta {100 * limit.beta:g} %)"


def bounds(m: Measurement) -> str:
    """The one-sided bounds of a test, "-0.75 to 0.85 points"; empty if there was none."""
    if m.decision is None:
        return ""
    low, high = (_bound_text(m, end) for end in (m.decision.low, m.decision.high))
    return _with_unit(f"{low} to {high}", unit(m))


def _bound_text(m: Measurement, end: float) -> str:
    """A bound with as many digits as show on which side of the margin it lies."""
    kind, margin = _kind(m), m.limit.at_most if m.limit and m.limit.at_most is not None else 0.0
    for extra in range(1, 9):
        text = _written(end, kind, extra)
        seen = float(text)
        edge = _scaled(margin, kind)
        if (seen < edge) == (end < margin) and (seen > edge) == (end > margin):
            return text
    return _written(end, kind, 8)


def count(n: int, thing: str, things: str = "") -> str:
    """A count with its noun: "1 file", "6 files"."""
    return f"{n} {thing if n == 1 else things or thing + 's'}"


# What neither XML 1.0 nor a terminal may be given: control characters, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """The text with every character that could steer a terminal or break XML made visible."""
    return _UNPRINTABLE.sub("\ufffd", text)


def one_line(text: str) -> str:
    """The cleaned text on one line."""
    return " ".join(clean(text).split())
