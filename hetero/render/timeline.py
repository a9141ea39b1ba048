"""Runs over time as a page, for a terminal, and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hetero.errors import require
from hetero.render import _drawing as draw
from hetero.render import _page
from hetero.render import _words as words
from hetero.render.plots import Plot
from hetero.timeline import FOLLOWED, Change, Line, Point, Remark, Story, exit_code

if TYPE_CHECKING:
    from rich.console import Console

#: Runs of a file in a terminal's table; the page has all.
SHOWN = 5

SCHEMA = "hetero.timeline/1"

_HEADS = {
    "heterogeneous_recall_at_1": "Recall@1",
    "recall_at_1_lost": "Lost to PyTorch",
    "latency_p50": "Latency p50",
    "size": "Size",
    "outcome": "Outcome",
}
#: In a terminal, where room is dear.
_SHORT = {
    "heterogeneous_recall_at_1": "R@1",
    "recall_at_1_lost": "lost\npoints",
    "latency_p50": "p50",
    "size": "size",
}
_SIGNS: dict[Change, str] = {"worse": "▼", "better": "▲", "same": "=", "undecided": "?"}
_WORDS: dict[Change, str] = {
    "worse": "regression",
    "better": "better",
    "same": "no change",
    "undecided": "undecided",
}
_COLOURS: dict[Change, str] = {
    "worse": "bold red",
    "better": "green",
    "same": "",
    "undecided": "yellow",
}
#: As the pills of the report are dyed.
_TONES: dict[Change, str] = {
    "worse": "fail",
    "better": "pass",
    "same": "pass",
    "undecided": "inconclusive",
}


def page(stories: Sequence[Story]) -> str:
    """The runs as a page that needs nothing else.

    Raises:
        MissingExtraError: Jinja or matplotlib is not installed.
    """
    return _page.page(
        "timeline.html.jinja",
        sentence=sentence(stories),
        tone={0: "pass", 1: "fail", 3: "inconclusive"}[exit_code(stories)],
        word={0: "no regression", 1: "regression", 3: "undecided"}[exit_code(stories)],
        stories=[_shown(number, x) for number, x in enumerate(stories, 1)],
        heads=[_HEADS[name] for name in FOLLOWED],
        dated=all(run.dated for x in stories for run in x.runs),
    )


def sentence(stories: Sequence[Story]) -> str:
    """What the last runs say, in one sentence."""
    worse = [(s, line, r) for s in stories for line, r in _newest(s) if r.change == "worse"]
    worse.sort(key=lambda x: x[2].was is None)  # numbers say more than outcomes
    runs = words.count(sum(len(s.runs) for s in stories), "run")
    if worse:
        s, line, first = worse[0]
        more = f"; {len(worse) - 1} more" if len(worse) > 1 else ""
        return f"Over {runs}, the last is worse than before: {_name(s, line)}: {said(first)}{more}."
    if exit_code(stories) == 3:
        if not any(s.newest for s in stories):
            return f"Over {runs}, nothing can be compared yet: a subject needs two."
        left = sum(r.change == "undecided" for s in stories for r in s.newest)
        gone = sum(len(s.gone) for s in stories)
        parts = [f"{words.count(left, 'number')} undecided"] if left else []
        parts += [f"{words.count(gone, 'file')} missing"] if gone else []
        return f"Over {runs}, no regression was found in the last, but {' and '.join(parts)}."
    return f"Over {runs}, no regression was found in the last."


def said(x: Remark) -> str:
    """A remark as a clause: "Recall@1 51.2 %, was 71.2 % in run 2 (the intervals are apart)"."""
    why = f" ({words.one_line(x.why)})" if x.why else ""
    if x.was is None or x.now is None:
        return f"{_HEADS[x.name]} {words.one_line(x.why)}, since run {x.against}"
    a, b = (
        words.number(m) + (f" ({words.interval(m)})" if m.ci and words.interval(m) else "")
        for m in (x.was, x.now)
    )
    return f"{_HEADS[x.name]} {b}, was {a} in run {x.against}{why}"


def told(stories: Sequence[Story]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "schema": SCHEMA,
        "stories": [
            {
                "subject": s.subject,
                "change": s.change,
                "runs": [
                    {"name": r.name, "at": r.at, "dated": r.dated, "verdict": r.report.verdict}
                    for r in s.runs
                ],
                "files": [
                    {
                        "device": line.device,
                        "format": line.format,
                        "precision": line.precision,
                        "points": [_told(p) for p in line.points],
                    }
                    for line in s.lines
                ],
                "gone": [list(x) for x in s.gone],
            }
            for s in stories
        ],
    }


def _told(p: Point) -> dict[str, Any]:
    return {
        "run": p.number,
        "outcome": p.outcome,
        "measured": [m.to_json() for m in p.measured.values()],
        "remarks": [
            {"name": x.name, "change": x.change, "against": x.against, "why": x.why}
            for x in p.remarks
        ],
    }


def show(stories: Sequence[Story], console: Console) -> None:
    """Print it: a table for each subject on a terminal, as `plain` lines anywhere else."""
    if not console.is_terminal:
        text = plain(stories).encode(console.encoding, "replace").decode(console.encoding)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for s in stories:
        out = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(words.one_line(s.subject)))
        out.add_column("File", overflow="fold")
        out.add_column("run", justify="right", no_wrap=True)
        for name in FOLLOWED:
            out.add_column(_SHORT[name], justify="right", no_wrap=True)
        for line in s.lines:
            for at, p in enumerate(line.points[-SHOWN:]):
                cells = []
                for text, change in (_cell(p, name) for name in FOLLOWED):
                    sign = "" if change == "same" else f" {_SIGNS[change]}"
                    short = text.removesuffix(" points")  # which the heading says
                    cells.append(Text(f"{short}{sign}", style=_COLOURS[change]))
                out.add_row(Text("" if at else _name(s, line)), str(p.number), *cells)
        console.print(out)
        for change, text in _grouped(s):
            console.print(Text(f"{_SIGNS[change]} {text}", style=_COLOURS[change]), highlight=False)
    console.print(Text(sentence(stories)))


def plain(stories: Sequence[Story]) -> str:
    """A line for each file in each run, then what changed, then the sentence."""
    lines = []
    for s in stories:
        lines.append(f"subject: {words.one_line(s.subject)}")
        lines += [
            words.one_line(f"run {n}: {r.at} {r.report.verdict} {r.name}")
            for n, r in enumerate(s.runs, 1)
        ]
        for line in s.lines:
            for p in line.points:
                pairs = [f"{k}={words.number(m)}" for k, m in p.measured.items()]
                lines.append("; ".join([f"{_place(line)}: run {p.number}: {p.outcome}", *pairs]))
        lines += [text for _, text in _remarks(s)]
    return "\n".join([*lines, sentence(stories)])


def _remarks(s: Story) -> list[tuple[Change, str]]:
    """Everything but "no change" of the last run, the worst first."""
    order: dict[Change, int] = {"worse": 0, "undecided": 1, "better": 2, "same": 3}
    found = [(r.change, f"{_WORDS[r.change]}: {_place(x)}: {said(r)}") for x, r in _newest(s)]
    found += [
        ("undecided", f"missing: {words.one_line(words.place(*x))}: not in the last run")
        for x in s.gone
    ]
    return sorted((x for x in found if x[0] != "same"), key=lambda x: order[x[0]])


def _grouped(s: Story) -> list[tuple[Change, str]]:
    """The same, one for each file and change, for people."""
    order: tuple[Change, ...] = ("worse", "undecided", "better")
    out: list[tuple[Change, str]] = []
    for change in order:
        for line in s.lines:
            found = [said(r) for x, r in _newest(s) if x is line and r.change == change]
            if found:
                out.append((change, f"{_WORDS[change]}: {_name(s, line)}: {'; '.join(found)}"))
        if change == "undecided":
            out += [
                (change, f"missing: {words.one_line(words.place(*x))}: not in the last run")
                for x in s.gone
            ]
    return out


def _name(s: Story, line: Line) -> str:
    """What calls a file; the only device there is goes unsaid."""
    alone = len({x.device for x in s.lines}) == 1
    return words.one_line(words.place("" if alone else line.device, line.format, line.precision))


def _newest(s: Story) -> list[tuple[Line, Remark]]:
    last = len(s.runs)
    return [(x, r) for x in s.lines for p in x.points if p.number == last for r in p.remarks]


def _place(line: Line) -> str:
    return words.one_line(words.place(line.device, line.format, line.precision))


def _cell(p: Point, name: str) -> tuple[str, Change]:
    m = p.measured.get(name)
    changes = [x.change for x in p.remarks if x.name == name]
    order: tuple[Change, ...] = ("worse", "undecided", "better", "same")
    change: Change = min(changes, key=order.index, default="same")
    return (words.number(m) if m else words.ABSENT), change


@dataclass(frozen=True)
class _Row:
    """A file in a run; a cell is text, interval, sign with words, tone; the first the outcome."""

    number: int
    outcome: str
    cells: list[tuple[str, str, str, str]]


def _shown(number: int, s: Story) -> dict[str, Any]:
    return {
        "number": number,
        "subject": s.subject,
        "tone": _TONES[s.change],
        "change": _WORDS[s.change],
        "device": s.lines[0].device if len({x.device for x in s.lines}) == 1 else "",
        "remarks": [(_TONES[change], text) for change, text in _grouped(s)],
        "runs": [
            (n, r.name, r.at.replace("T", " ").removesuffix("+00:00"), r.dated, r.link,
             r.report.verdict)
            for n, r in enumerate(s.runs, 1)
        ],
        "files": [(_name(s, x), [_row(p) for p in reversed(x.points)]) for x in s.lines],
        "plots": plots(s, number),
    }  # fmt: skip


def _row(p: Point) -> _Row:
    cells = []
    for name in ("outcome", *FOLLOWED):
        text, change = _cell(p, name)
        m = p.measured.get(name)
        marks = [
            f"{_SIGNS[change]} {_WORDS[change]} since run {x.against}"
            for x in p.remarks
            if (x.name, x.change) == (name, change) and change != "same"
        ]
        mark = marks[0] if marks else ""
        cells.append((text, words.interval(m) if m else "", mark, _TONES[change]))
    return _Row(p.number, p.outcome, cells)


def plots(s: Story, number: int = 1) -> list[Plot]:
    """Each followed number of each file over the runs; a cross marks a regression.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with require("matplotlib", "report").rc_context(draw.STYLE):
        return [made for name in FOLLOWED if (made := _plot(s, name, number)) is not None]


def _plot(s: Story, name: str, number: int) -> Plot | None:
    rows = [(x, [p for p in x.points if name in p.measured]) for x in s.lines]
    rows = [(x, points) for x, points in rows if points]
    if not rows or len(s.runs) < 2:
        return None
    figure, axes = draw.chart(len(rows))
    unit = ""
    for at, (line, points) in enumerate(rows):
        colour, dashes = draw.line_style(at)
        # Lines of equal numbers lie beside each other.
        aside = (at - (len(rows) - 1) / 2) * min(0.05, 0.3 / len(rows))
        numbers = [p.number + aside for p in points]
        measured = [p.measured[name] for p in points]
        unit = words.unit(measured[-1])
        scale = 100 if unit in ("%", "points") else 1
        values = [scale * m.value for m in measured]
        axes.plot(
            numbers, values, dashes, color=colour, marker="o", markersize=4, label=_name(s, line)
        )
        for n, m in zip(numbers, measured, strict=True):
            if m.ci is not None:
                axes.plot([n, n], [scale * end for end in m.ci], color=colour, linewidth=1.2)
        bad = [
            (n, v)
            for n, p, v in zip(numbers, points, values, strict=True)
            if any(x.name == name for x in p.worse)
        ]
        axes.plot(
            [n for n, _ in bad], [v for _, v in bad], "X", color=draw.FAIL, markersize=9,
            markeredgewidth=0,
        )  # fmt: skip
    axes.set_xticks(_few(len(s.runs)))
    axes.set_xlim(0.7, len(s.runs) + 0.3)
    axes.set_xlabel("run")
    axes.set_ylabel(unit, color=draw.MUTED)
    draw.legend(axes)
    described = "; ".join(
        f"{_name(s, x)} {words.number(p[0].measured[name])} to {words.number(p[-1].measured[name])}"
        for x, p in rows
    )
    return Plot(
        _HEADS[name],
        "Upright bars are 95 % intervals; a cross marks a regression.",
        draw.inline_svg(figure, f"time{number}{name}", f"{_HEADS[name]} over runs: {described}."),
    )


def _few(runs: int) -> list[int]:
    """At most ten numbers of runs, the last among them."""
    step = -(-runs // 10)
    return list(range(runs, 0, -step))[::-1]
