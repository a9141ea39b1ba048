"""A forecast of re-embedding for people: a table, plain lines, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hetero.backfill import GONE, Forecast, Outlook
from hetero.errors import require
from hetero.metrics import Score
from hetero.render.upgrades import NAMES, STYLE, text_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_COLOURS = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
_WORDS = {"pass": "holds", "fail": "BREAKS", "inconclusive": "may break"}


def show(done: Forecast, console: Console) -> None:
    """Print the forecast: tables on a terminal, lines anywhere else."""
    if console.is_terminal:
        console.print(_matrix(done))
        console.print(_cohorts(done))
        console.print(_orders(done))
        lines = _remarks(done)
    else:
        lines = plain(done)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def plain(done: Forecast) -> list[str]:
    """The same as lines of text."""
    lines = [f"{NAMES[done.plan.metric]}; cohort in an index of one generation"]
    for (cohort, generation), score in done.cells.items():
        lines.append(f"  {cohort} in {generation}: {_score(score)}")
    lines.append(f"order {done.chosen.name}")
    for c in done.chosen.cohorts:
        now, worst, end = c.points[0], c.worst, c.points[-1]
        lines.append(
            f"  {c.name}: {_WORDS[c.outcome]}; traffic {100 * now.traffic:.0f} to "
            f"{100 * end.traffic:.0f} %; today {_score(now.score)}, lowest {_score(worst.score)} "
            f"in week {worst.week:.3g}, at the end {_score(end.score)}"
        )
    lines += [
        f"  {o.name}: area {_score(o.area)}, {change(o.gain)} against {done.orders[0].name}"
        for o in done.orders
    ]
    return lines + _remarks(done)


def _remarks(done: Forecast) -> list[str]:
    """Cost, time, what breaks and when, and the verdict."""
    plan, days = done.plan, 7 * done.duration_weeks
    how = "as measured here" if done.measured else "as given"
    price = f"{plan.cost:,.2f} {plan.index.currency}" if plan.index.price_per_1000 else "no price"
    lines = [
        f"re-embed {plan.rows:,} of {plan.index.images:,} images: {price}, {_time(days)} at "
        f"{done.images_per_s:,.4g} a second ({how}), from week {plan.index.starts_week:g}",
        f"order: {done.chosen.name}",
    ]
    lines += [f"{_WORDS[c.outcome]}: {told}" for c in done.chosen.cohorts if (told := _breaks(c))]
    return [*lines, f"verdict: {done.outcome}"]


def _breaks(cohort: Outlook) -> str:
    """When and how a cohort breaks, in words; "" where it does not."""
    point = cohort.breaks
    if point is None:
        return ""
    gone = (
        ""
        if cohort.gone_week is None or cohort.gone_week <= point.week
        else f"; below {100 * GONE:g} % of the traffic in week {cohort.gone_week:.1f}"
    )
    found = cohort.reason or (
        f"{_score(point.score)}, {change(point.change)} against today"
        if point.progress
        else f"{_score(point.score)}, against its floor"
    )
    return (
        f"{cohort.name}, week {point.week:.3g}, {100 * point.progress:.3g} % re-embedded, "
        f"{100 * point.traffic:.0f} % of the traffic: {found}{gone}"
    )


def _time(days: float) -> str:
    if days >= 2:
        return f"{days:,.1f} days"
    return f"{24 * days:.1f} hours" if days >= 1 / 12 else f"{24 * 60 * days:.1f} minutes"


def _score(score: Score | None) -> str:
    if score is None:
        return "no common space"
    text = f"{100 * score.value:.1f}"
    return (
        text if score.ci is None else f"{text} ({100 * score.ci[0]:.1f} to {100 * score.ci[1]:.1f})"
    )


def change(score: Score) -> str:
    """A difference in points, with its interval where there is one."""
    text = f"{100 * score.value:+.1f}"
    if score.ci is None:
        return text
    return f"{text} ({100 * score.ci[0]:+.1f} to {100 * score.ci[1]:+.1f})"


def _matrix(done: Forecast) -> Table:
    out = _table(f"{NAMES[done.plan.metric]} in an index of one generation")
    out.add_column("Cohort", no_wrap=True)
    for generation in done.plan.generations:
        out.add_column(generation, justify="right")
    for cohort in done.plan.cohorts:
        out.add_row(cohort, *(_score(done.cells[cohort, g]) for g in done.plan.generations))
    return out


def _cohorts(done: Forecast) -> Table:
    from rich.text import Text

    out = _table(f"Order: {done.chosen.name}")
    for name in ("Cohort", "Traffic, %", "Today", "Lowest", "Week", "At the end", ""):
        out.add_column(name, justify="left" if name in ("Cohort", "") else "right")
    for c in done.chosen.cohorts:
        now, worst, end = c.points[0], c.worst, c.points[-1]
        out.add_row(
            c.name,
            f"{100 * now.traffic:.0f} to {100 * end.traffic:.0f}",
            _score(now.score),
            _score(worst.score),
            f"{worst.week:.3g}",
            _score(end.score),
            Text(_WORDS[c.outcome], style=_COLOURS[c.outcome]),
        )
    return out


def _orders(done: Forecast) -> Table:
    out = _table("All traffic, mean while rows are re-embedded")
    out.add_column("Order", no_wrap=True)
    out.add_column("Area", justify="right")
    out.add_column(f"Against {done.orders[0].name}", justify="right")
    for o in done.orders:
        out.add_row(o.name, _score(o.area), change(o.gain))
    return out


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title))


def _band(axes: Any, at: Sequence[float], scores: Sequence[Score], colour: str) -> None:
    ends = [s.ci or (s.value, s.value) for s in scores]
    axes.fill_between(
        at,
        [100 * low for low, _ in ends],
        [100 * high for _, high in ends],
        color=colour,
        alpha=0.12,
    )


def drawing(done: Forecast) -> str:
    """The chosen order as an SVG: each cohort over the share re-embedded, all traffic over weeks.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with require("matplotlib", "report").rc_context(STYLE):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for at, cohort in enumerate(done.chosen.cohorts):
            points = sorted({p.progress: p for p in cohort.points}.items())
            shares = [100 * x for x, _ in points]
            left.plot(shares, [100 * p.score.value for _, p in points], f"C{at}", label=cohort.name)
            _band(left, shares, [p.score for _, p in points], f"C{at}")
            weeks = [p.week for p in cohort.points]
            right.plot(weeks, [100 * p.score.value for p in cohort.points], f"C{at}", linewidth=0.8)
            if cohort.breaks is not None:
                mark = "x" if cohort.outcome == "fail" else "|"
                where = 100 * cohort.breaks.score.value
                left.plot([100 * cohort.breaks.progress], [where], mark, color=f"C{at}")
                right.plot([cohort.breaks.week], [where], mark, color=f"C{at}")
        weeks = [week for week, _ in done.chosen.everyone]
        scores = [score for _, score in done.chosen.everyone]
        right.plot(weeks, [100 * s.value for s in scores], "black", label="all traffic")
        _band(right, weeks, scores, "black")
        left.set_xlabel("share of the rows to be re-embedded that are, %")
        left.set_ylabel(NAMES[done.plan.metric])
        right.set_xlabel("weeks from now")
        left.legend(fontsize=7)
        right.legend(fontsize=7)
        return text_of(figure)
