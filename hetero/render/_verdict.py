"""The verdict in one sentence, for someone who has not seen the program before."""

from __future__ import annotations

import math

from hetero.render import _view as view
from hetero.render import _words as words
from hetero.report import Measurement, Report


def _finding(report: Report) -> str:
    ran = view.finite(report, "heterogeneous_recall_at_1")
    reference = view.whole(report, "heterogeneous_recall_at_1")
    protocol = words.one_line(report.facts.get("protocol", ""))
    queries = f"queries {protocol}".rstrip()
    if ran:
        text = (
            "the exported query model finds the right image first for "
            f"{words.spread(ran)} of {queries}"
        )
        return text + _distance(report, ran, reference)
    if reference is not None and math.isfinite(reference.value):
        return (
            "the query model finds the right image first for "
            f"{words.number(reference)} of {queries}, in PyTorch"
        )
    return ""


def _distance(report: Report, ran: list[Measurement], reference: Measurement | None) -> str:
    lost = [m.value for m in view.finite(report, "recall_at_1_lost")]
    if not lost and reference is not None and math.isfinite(reference.value):
        lost = [reference.value - m.value for m in ran]
    if not lost:
        return ""
    points = sorted(round(100 * x, 1) for x in lost)
    if points[0] == points[-1] == 0:
        return ", 0.0 points from PyTorch"
    if points[-1] <= 0:
        return ", nowhere less than PyTorch"
    return f", {'at worst ' if len(points) > 1 else ''}{points[-1]:.1f} points less than PyTorch"


def _judgement(report: Report) -> str:
    judged = [m for m in report.measurements if m.outcome != "unjudged"]
    ran = view.files(report)
    bad = [m for m in judged if m.outcome == "fail"]
    open_ = [m for m in judged if m.outcome == "inconclusive"]
    if not judged:
        return "nothing was held to a limit"
    checks = words.count(len(judged), "check")
    if not bad and not open_:
        passed = f"all {checks} passed" if len(judged) > 1 else "the one check passed"
        if not ran:
            return passed
        return f"{view.executed(report)}, {passed}"
    worst = bad or open_
    verb = "failed" if bad else "could not be decided"
    name = view.namer(report)
    names = list(dict.fromkeys(name(m.device, m.format, m.precision) for m in worst))
    text = f"{len(worst)} of {checks} {verb}"
    if len(names) <= 2:
        text += f" ({' and '.join(names)})"
    else:
        text += f" ({names[0]} and {len(names) - 1} more)"
    if bad and open_:
        text += f", {len(open_)} could not be decided"
    return text


def _left_out(report: Report) -> str:
    """What was not run, those a device left out apart from those that cannot be run here."""
    clauses = []
    expected = [x for x in report.not_run if x.obstacle == "unavailable"]
    if expected:
        formats = list(dict.fromkeys(words.place("", x.format, "") for x in expected))
        what = words.count(len(expected), "file")
        how = ""
        if any(x.by_reference for x in view.files(report)):
            how = " by their own runtime"
        clauses.append(f"{what} not executed{how} ({', '.join(formats)})")
    for obstacle, why in (
        ("device", "because a device failed or stayed away"),
        ("refused", "because a runtime refused it"),
    ):
        lost = [x for x in report.missing if x.obstacle == obstacle]
        if lost:
            devices = ", ".join(dict.fromkeys(x.device for x in lost))
            clauses.append(f"{words.count(len(lost), 'result')} missing {why} ({devices})")
    return "; ".join(clauses)


def sentence(report: Report) -> str:
    """The verdict as one sentence for someone who has not seen the program before.

    Clauses whose measurements are missing are left out.
    """
    clauses = (_finding(report), _judgement(report), _left_out(report))
    text = "; ".join(x for x in clauses if x)
    return words.one_line(f"{text[:1].upper()}{text[1:]}.")


def verdict_line(report: Report) -> str:
    """The verdict in capitals, a colon and the sentence without its own."""
    text = sentence(report)
    return f"{report.verdict.upper()}: {text[:1].lower()}{text[1:]}"
