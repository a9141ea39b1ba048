"""A report as one HTML page that needs nothing else: no network, no script, no second file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hetero.errors import ConfigError
from hetero.render import _agreement, _baseline, _plane, _verdict, _view, _words, plots
from hetero.render._beside import diagnosed as _diagnosed
from hetero.render._page import page
from hetero.report import Measurement, Report

if TYPE_CHECKING:
    from hetero.plane import Plane

Namer = Callable[[str, str, str], str]

_EMBEDDED = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


def render(
    report: Report, plane: Plane | None = None, diagnosis: Mapping[str, Any] | None = None
) -> str:
    """The report as a page; every string that came from outside is escaped.

    Args:
        report: Judged or not.
        plane: Query and gallery vectors to be drawn.
        diagnosis: What `hetero diagnose` wrote about the same query model.

    Raises:
        MissingExtraError: Jinja or matplotlib is not installed.
        ConfigError: An example holds something else than an embedded picture.
    """
    name = _view.namer(report)
    return page(
        "report.html.jinja",
        report=report,
        sentence=_verdict.sentence(report),
        tiles=_tiles(report),
        device=_view.sole_device(report),
        problems=_problems(report, name),
        judged=any(m.outcome != "unjudged" for m in report.measurements),
        table=_view.table(report),
        matrices=_agreement.matrices(report),
        corners=_corners(report),
        corner_rows=_corner_rows(report),
        baselines=_baselines(report),
        earlier=_baseline.rows(report),
        plots=plots.plots(report),
        examples=[_example(x, at, name) for at, x in enumerate(report.examples, 1)],
        not_run=[(name(x.device, x.format, x.precision), x.reason) for x in report.not_run],
        details=[
            (name(*x.place), [_detail(m) for m in _at(report, x)]) for x in _view.subjects(report)
        ],
        plane=plane and _plane.drawn(plane, name),
        diagnosis=diagnosis and _diagnosed(diagnosis),
        suspect=_suspect(report),
    )


@dataclass(frozen=True)
class _Tile:
    """A number for the head of the page, and what to hold it against."""

    label: str
    value: str
    note: str


def _tiles(report: Report) -> list[_Tile]:
    tiles = []
    recall = _view.finite(report, "heterogeneous_recall_at_1")
    reference = _view.whole(report, "heterogeneous_recall_at_1")
    paragon = _view.whole(report, "paragon_recall_at_1")
    notes = [
        f"{name} {_words.number(m)}"
        for name, m in (("PyTorch", reference), ("gallery model", paragon))
        if m is not None
    ]
    if recall:
        tiles.append(_Tile("Right image first", _words.spread(recall), ", ".join(notes)))
    elif reference is not None:
        tiles.append(_Tile("Right image first", _words.number(reference), "in PyTorch"))
    lost = _view.finite(report, "recall_at_1_lost")
    if lost:
        worst = max(lost, key=lambda m: m.value)
        at = _view.namer(report)(worst.device, worst.format, worst.precision)
        tiles.append(_Tile("Lost by export, at worst", _words.number(worst), at))
    for label, name, note in (
        ("Latency, median", "latency_p50", "latency_p99"),
        ("File size", "size", ""),
    ):
        found = _view.finite(report, name)
        if found:
            tail = _view.finite(report, note)
            most = max(tail, key=lambda m: m.value) if tail else None
            said = f"p99 up to {_words.number(most)}" if most else "smallest to largest"
            tiles.append(_Tile(label, _words.spread(found), said if len(found) > 1 or most else ""))
    ran = len([x for x in _view.files(report) if not x.by_reference])
    if ran or report.not_run:
        read = len([x for x in _view.files(report) if x.by_reference])
        parts = [f"{read} by a reference interpreter only"] if read else []
        if len(report.not_run) > read:
            parts.append(f"{len(report.not_run) - read} not executed")
        left = ", ".join(parts) or "none left out"
        tiles.append(_Tile("Files executed", str(ran), left))
    return tiles


@dataclass(frozen=True)
class _Problem:
    """What failed, or could not be decided, by one limit: one line for each file."""

    outcome: str
    label: str
    asked: str
    why: str
    lines: list[tuple[str, str]]


def _problems(report: Report, name: Namer) -> list[_Problem]:
    grouped: dict[tuple[str, str, str, str], list[tuple[str, str]]] = {}
    for m in _view.problems(report):
        why = m.limit.why if m.limit else ""
        text = _view.measured(m) + _view.tested(m)
        if m.outcome == "inconclusive":
            text += f"; {_words.why_undecided(m)}"
        key = (m.outcome, _words.word(m.name).label, _view.asked(m), why)
        grouped.setdefault(key, []).append((name(m.device, m.format, m.precision), text))
    return [_Problem(*key, lines) for key, lines in grouped.items()]


def _pair(report: Report, recall: str, map_: str) -> tuple[str, str, str] | None:
    """Recall@1, its interval and mAP of the models as a whole; None without the first."""
    first, second = _view.whole(report, recall), _view.whole(report, map_)
    if first is None:
        return None
    return _words.number(first), _words.interval(first), _words.number(second) if second else ""


def _corners(report: Report) -> dict[str, tuple[str, str, str] | None] | None:
    """The four corners in PyTorch, by "queries by, index by"; None if there are none."""
    names = {
        "gallery,gallery": "paragon",
        "gallery,query": "reverse",
        "query,gallery": "heterogeneous",
        "query,query": "homogeneous_query",
    }
    found = {at: _pair(report, f"{x}_recall_at_1", f"{x}_map") for at, x in names.items()}
    return found if any(found.values()) else None


def _corner_rows(report: Report) -> list[tuple[str, list[str]]]:
    """The three corners in which an exported file takes part, Recall@1, for each file."""
    names = ("heterogeneous_recall_at_1", "homogeneous_query_recall_at_1", "reverse_recall_at_1")
    rows = []
    for x in _view.files(report):
        found = [x.get(name) for name in names]
        if found[1] is not None or found[2] is not None:
            rows.append(
                (
                    _view.namer(report)(*x.place),
                    [_words.number(m) if m else _words.ABSENT for m in found],
                )
            )
    return rows


def _baselines(report: Report) -> list[tuple[str, str, tuple[str, str, str]]]:
    """What the result is held against: name, what it is, numbers."""
    rows = (
        ("paragon", "Paragon", "The gallery model embeds queries and index: what is aimed at."),
        (
            "heterogeneous",
            "This query model",
            "In the gallery model's index, in PyTorch, before any export.",
        ),
        (
            "independent",
            "Independent query model",
            "Trained alone, with an index of its own: what would be had without compatibility.",
        ),
        ("pixels", "Raw pixels", "The images compared as they are, without a model."),
        (
            "control",
            "Negative control",
            "The independent query model in the gallery model's index: has to be near chance.",
        ),
        ("chance", "Chance", "An image drawn by lot."),
    )
    found = [(t, x, _pair(report, f"{key}_recall_at_1", f"{key}_map")) for key, t, x in rows]
    present = [(t, x, pair) for t, x, pair in found if pair is not None]
    return present if any(title != "This query model" for title, _, _ in present) else []


def _suspect(report: Report) -> str:
    """The file to diagnose, as `hetero diagnose` wants it named: "tflite:int8"; "" for none."""
    moved = [
        (m.value, f"{x.place[1]}:{x.place[2]}")
        for x in _view.files(report)
        if (m := x.get("cosine_worst")) is not None and math.isfinite(m.value)
    ]
    return min(moved)[1] if moved else ""


def _at(report: Report, subject: _view.Subject) -> list[Measurement]:
    return [m for m in report.measurements if (m.device, m.format, m.precision) == subject.place]


def _detail(m: Measurement) -> dict[str, str]:
    return {
        "label": _words.word(m.name).label,
        "name": m.name,
        "value": _words.number(m),
        "interval": _words.interval(m),
        "limit": _words.bound(m),
        "rates": _words.rates(m) if m.decision else "",
        "bounds": _words.bounds(m),
        "why": m.limit.why if m.limit else "",
        "outcome": m.outcome,
        "n": "" if m.n is None else str(m.n),
    }


def _example(example: Mapping[str, Any], number: int, name: Namer) -> dict[str, Any]:
    """An example as the template wants it.

    Raises:
        ConfigError: A key is missing, or an image is not embedded in the report.
    """
    try:
        query = {key: str(example["query"][key]) for key in ("id", "label", "image")}
        before, after = ([_found(x) for x in example[side]] for side in ("before", "after"))
        images = [query["image"], *(x["image"] for x in (*before, *after))]
        place = name(example["device"], example["format"], example["precision"])
        change = _change(before, after)
        rows = [("PyTorch", before), (place, after)]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"report: example {number} is incomplete ({error!r}); the class Report says what "
            "belongs in one"
        ) from error
    for image in images:
        if not _EMBEDDED.fullmatch(image):
            raise ConfigError(
                f"report: example {number} has an image that is not embedded "
                f"({image[:40]!r}); expected data:image/png;base64,…"
            )
    return {"query": query, "place": place, "change": change, "rows": rows}


def _found(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": str(answer["id"]),
        "label": str(answer["label"]),
        "image": str(answer["image"]),
        "similarity": float(answer["similarity"]),
        "right": bool(answer["right"]),
    }


def _change(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """What became of the first answer: "right before, wrong now"."""
    was, now = (bool(x and x[0]["right"]) for x in (before, after))
    if was == now:
        return "right both times" if now else "wrong both times"
    return "wrong before, right now" if now else "right before, wrong now"
