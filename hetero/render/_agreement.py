"""How far devices agree, as one table for each format and precision that several of them ran."""

from __future__ import annotations

from dataclasses import dataclass

from hetero.cells import Pair
from hetero.render import _words as words
from hetero.report import Measurement, Report

#: What PyTorch is called in a matrix.
PYTORCH = "PyTorch"
#: Nearer to 1 than this, a cosine is written by what it lacks.
_ROUNDS_TO_1 = 5e-8


@dataclass(frozen=True)
class Meeting:
    """Two devices in a matrix.

    Attributes:
        cosine: Worst cosine, as text.
        same: Share of queries with the same first answer, as text.
        apart: Whether they differ by more than rounding explains.
    """

    cosine: str
    same: str
    apart: bool


@dataclass(frozen=True)
class Matrix:
    """How far the devices agree that ran a file of one format and precision.

    Attributes:
        title: "ONNX int8".
        rows: The devices, and how each agrees with each of the columns; None from itself on.
        columns: PyTorch, then all devices but the last.
        findings: A sentence on each pair of devices that is apart.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Meeting | None, ...]], ...]
    findings: tuple[str, ...]


def matrices(report: Report) -> tuple[Matrix, ...]:
    """A matrix for each format and precision that at least two devices ran."""
    kinds = dict.fromkeys((x.format, x.precision) for x in report.agreement)
    made = (
        _matrix(*kind, [x for x in report.agreement if (x.format, x.precision) == kind])
        for kind in kinds
    )
    return tuple(x for x in made if len(x.rows) > 1)


def _matrix(format: str, precision: str, pairs: list[Pair]) -> Matrix:
    devices = list(dict.fromkeys(x.b for x in pairs))
    met = {(x.b, x.a): _meeting(x) for x in pairs}
    columns = ["", *devices[:-1]]
    return Matrix(
        words.one_line(words.place("", format, precision)),
        tuple(words.one_line(x) or PYTORCH for x in columns),
        tuple((words.one_line(b), tuple(met.get((b, a)) for a in columns)) for b in devices),
        tuple(_finding(x) for x in pairs if x.apart),
    )


def _meeting(pair: Pair) -> Meeting:
    return Meeting(_cosine(pair), _share(pair), pair.apart)


def _cosine(pair: Pair) -> str:
    """The worst cosine; one that is below 1 never reads as 1, and 1 as no less."""
    away = 1 - pair.cosine_worst
    if away <= 0:
        return "1"
    if away < _ROUNDS_TO_1:
        return f"1 \N{MINUS SIGN} {away:.0e}"
    return words.number(Measurement("cosine_worst", pair.cosine_worst))


def _share(pair: Pair) -> str:
    # A share that is not whole never reads as 100 %.
    if pair.top1_same == 1:
        return "100 %"
    return f"{min(99.99, 100 * pair.top1_same):.{2 if pair.top1_same > 0.999 else 1}f} %"


def _finding(pair: Pair) -> str:
    cause = pair.cause or "nothing that is known to matter differs; hetero diagnose looks further"
    return words.one_line(
        f"{pair.a} and {pair.b} are apart: worst cosine {_cosine(pair)} at {pair.worst_id}, "
        f"the same first answer for {_share(pair)} of {words.count(pair.n, 'query', 'queries')}; "
        f"likely because: {cause}"
    )
