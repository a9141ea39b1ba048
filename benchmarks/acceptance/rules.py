"""The rules: from raw scores of several seeds to what holds and what does not.

A rule passes if its sign holds for every seed and its threshold for the mean, unless its text says
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.acceptance.jobs import CONTROLS, NESTED, WIDTHS, query_name

#: The query model that the claims about the system as a whole are held to.
BEST = query_name("csd+regression")
#: The methods that claim A3 is about.
CLAIMED = ("regression", "raml", "csd", "d3still", "ssp", "bct")


@dataclass(frozen=True)
class Outcome:
    """What became of one claim.

    Attributes:
        id: As in the list of acceptance experiments.
        claim: The claim in words.
        rule: What has to hold.
        seen: The numbers, in words.
        passed: Whether it holds.
    """

    id: str
    claim: str
    rule: str
    seen: str
    passed: bool


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """The lines of a Markdown table of claims."""
    return [
        "| | claim | rule | seen | |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {o.id} | {o.claim} | {o.rule} | {o.seen} | "
            f"{'holds' if o.passed else '**does not**'} |"
            for o in outcomes
        ),
    ]


def told(outcomes: Sequence[Outcome]) -> int:
    """Print what became of every claim; the exit code, 1 if one does not hold."""
    for o in outcomes:
        print(f"{o.id} {'holds' if o.passed else 'DOES NOT HOLD'}: {o.claim}\n    {o.seen}")
    return 0 if all(o.passed for o in outcomes) else 1


class Seed:
    """The raw results of one seed, by short names. All scores in points, 0..100."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def score(self, name: str, corner: str = "heterogeneous", metric: str = "map") -> float:
        """Of a job with one bundle, or "JOB/width-W" of one with several."""
        job, _, width = name.partition("/")
        scores = self.raw["jobs"][job]["scores"]
        return 100 * float(scores[f"{job}/{width}" if width else job][corner][metric])

    def chance(self, metric: str = "map") -> float:
        """What random vectors score."""
        return 100 * float(self.raw["chance"][metric])


def judge(seeds: Sequence[dict[str, Any]]) -> list[Outcome]:
    """The outcome of every claim, in order.

    Args:
        seeds: Raw results, one of each seed.
    """
    each = [Seed(raw) for raw in seeds]
    return [rule(each) for rule in (_a1, _a2, _a3, _a4, _a5, _a6, _a10, _a11, _a14, _a27, _a30)]


def _over(each: Sequence[Seed], value: Callable[[Seed], float]) -> np.ndarray[Any, Any]:
    return np.asarray([value(s) for s in each])


def _score(
    each: Sequence[Seed], name: str, corner: str = "heterogeneous", metric: str = "map"
) -> np.ndarray[Any, Any]:
    return _over(each, lambda s: s.score(name, corner, metric))


def _chance(each: Sequence[Seed], metric: str = "map") -> np.ndarray[Any, Any]:
    return _over(each, lambda s: s.chance(metric))


def _list(values: np.ndarray[Any, Any]) -> str:
    return " / ".join(f"{v:.1f}" for v in values)


def _at_chance(each: Sequence[Seed], name: str) -> tuple[bool, str]:
    recall = _score(each, name, metric="recall_at_1") / _chance(each, "recall_at_1")
    found = _score(each, name) / _chance(each)
    passed = bool(recall.max() <= 3 and found.max() <= 2)
    return passed, f"R@1 {recall.max():.1f}x, mAP {found.max():.1f}x chance at most"


def _a1(each: Sequence[Seed]) -> Outcome:
    passed, seen = _at_chance(each, "independent")
    return Outcome(
        "A1",
        "an independently trained query model is at chance in the gallery's index",
        "R@1 ≤ 3x chance and mAP ≤ 2x chance, every seed",
        seen,
        passed,
    )


def _a2(each: Sequence[Seed]) -> Outcome:
    passed, seen = True, []
    for method in CONTROLS:
        name = query_name(method)
        low, text = _at_chance(each, name)
        own = _score(each, name, "own") / _chance(each)
        passed &= low and bool(own.min() >= 10)
        seen.append(f"{method}: {text}, own index {own.min():.0f}x or more")
    return Outcome(
        "A2",
        "symmetric distillation stays at chance across models, though good alone",
        "as A1 in the gallery's index; own index ≥ 10x chance mAP",
        "; ".join(seen),
        passed,
    )


def _a3(each: Sequence[Seed]) -> Outcome:
    times = {m: _score(each, query_name(m)) / _chance(each) for m in CLAIMED}
    return Outcome(
        "A3",
        "each compatibility loss lifts cross mAP far above chance",
        "≥ 15x chance, every seed",
        ", ".join(f"{m} {v.min():.0f}x" for m, v in times.items()),
        all(bool(v.min() >= 15) for v in times.values()),
    )


def _a4(each: Sequence[Seed]) -> Outcome:
    gain = _score(each, BEST) - _score(each, "independent", "own")
    return Outcome(
        "A4",
        "searching the gallery's index beats the same small model trained and searched alone",
        "mAP, every seed",
        f"gain in mAP {_list(gain)}",
        bool((gain > 0).all()),
    )


def _a5(each: Sequence[Seed]) -> Outcome:
    names = (BEST, "regression-w0.5", "head-only")
    means = [float(_score(each, n).mean()) for n in names]
    return Outcome(
        "A5",
        "with a strong gallery model: csd+regression ≥ regression > frozen head only",
        "order of the mean mAP",
        ", ".join(f"{n.removesuffix('-w0.5')} {m:.1f}" for n, m in zip(names, means, strict=True)),
        means[0] >= means[1] > means[2],
    )


def _a6(each: Sequence[Seed]) -> Outcome:
    from scipy.stats import spearmanr

    widths = [w for w in WIDTHS if query_name("csd+regression", w) in each[0].raw["jobs"]]
    names = [query_name("csd+regression", w) for w in widths]
    found = np.stack([_score(each, n) for n in names])
    rho = [float(spearmanr(widths, found[:, at]).statistic) for at in range(len(each))]
    paragon = _score(each, "gallery", "own")
    return Outcome(
        "A6",
        "cross accuracy rises with the query model's width towards the paragon",
        "Spearman's rank correlation ≥ 0.8 over the widths, every seed",
        ", ".join(f"width {w:g}: {v.mean():.1f}" for w, v in zip(widths, found, strict=True))
        + f", paragon {paragon.mean():.1f} mAP; correlation {' / '.join(f'{r:.1f}' for r in rho)}",
        min(rho) >= 0.8,
    )


def _sign(
    each: Sequence[Seed], id: str, claim: str, more: str, less: str, words: tuple[str, str]
) -> Outcome:
    gain = _score(each, more) - _score(each, less)
    means = [_score(each, n).mean() for n in (more, less)]
    return Outcome(
        id,
        claim,
        "sign of the difference in mAP, every seed",
        f"{words[0]} {means[0]:.1f}, {words[1]} {means[1]:.1f}; difference {_list(gain)}",
        bool((gain > 0).all()),
    )


def _a10(each: Sequence[Seed]) -> Outcome:
    return _sign(
        each,
        "A10",
        "synthesised rows for classes that the frozen head never saw beat its own rows alone",
        "bct-half-rows",
        "bct-half-none",
        ("with rows", "without"),
    )


def _a11(each: Sequence[Seed]) -> Outcome:
    names = (query_name("bct"), "bct-plain-plain", "bct-plain-normalised")
    normalised, plain, mixed = (_score(each, n) for n in names)
    own = [_score(each, n, "own").mean() for n in ("gallery", "gallery-plain")]
    return Outcome(
        "A11",
        "normalised classifiers beat plain ones, in the gallery model and frozen",
        "sign of the difference in mAP, every seed",
        f"normalised {normalised.mean():.1f}, plain {plain.mean():.1f}; difference "
        f"{_list(normalised - plain)}; the paragons have {own[0]:.1f} and {own[1]:.1f}, so most of "
        f"it is the gallery model's. A head trained plain, frozen normalised: {mixed.mean():.1f}, "
        f"{'better' if mixed.mean() > plain.mean() else 'no better'} than plain",
        bool((normalised > plain).all()),
    )


def _a14(each: Sequence[Seed]) -> Outcome:
    rotated = _over(each, lambda s: 100 * s.raw["procrustes"]["map"])
    chance, trained = _chance(each), _score(each, BEST)
    return Outcome(
        "A14",
        "Procrustes lifts an incompatible pair above chance and stays below trained compatibility",
        "mAP above 3x chance and below csd+regression, every seed",
        f"rotated {_list(rotated)}, trained {_list(trained)}, chance {chance.mean():.2f}",
        bool((rotated > 3 * chance).all() and (rotated < trained).all()),
    )


def _a27(each: Sequence[Seed]) -> Outcome:
    lost = {
        w: _score(each, query_name("csd+regression", w)) - _score(each, f"nested/width-{w:g}")
        for w in NESTED
    }
    return Outcome(
        "A27",
        "each width of a nested training is within 2 mAP of the same width trained alone",
        "mean difference ≤ 2 mAP at each width",
        ", ".join(f"width {w:g}: {v.mean():+.1f} lost" for w, v in lost.items()),
        all(float(v.mean()) <= 2 for v in lost.values()),
    )


def _a30(each: Sequence[Seed]) -> Outcome:
    scale = [s.raw["jobs"][BEST]["score_scale"] for s in each]
    apart = np.asarray(
        [abs(x["same_class_query_gallery"] - x["same_class_gallery_gallery"]) for x in scale]
    )
    gain = np.asarray([100 * (x["map_mixed_corrected"] - x["map_mixed"]) for x in scale])
    mixed = np.asarray([100 * x["map_mixed"] for x in scale])
    return Outcome(
        "A30",
        "query-gallery and gallery-gallery scores share a scale, or one monotone correction helps",
        "same-class cosines less than 0.1 apart, or the corrected mixed ranking is at least as "
        "good; every seed",
        f"{' / '.join(f'{a:.2f}' for a in apart)} apart; mixed gallery {_list(mixed)} mAP, "
        f"corrected {' / '.join(f'{g:+.2f}' for g in gain)}",
        bool((apart < 0.1).all() or (gain >= 0).all()),
    )
