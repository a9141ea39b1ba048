"""What ``--method auto`` takes, and why; the study behind it is `benchmarks/tuning`."""

from __future__ import annotations

from typing import NamedTuple


class Choice(NamedTuple):
    """A method's name and the reason for it, one sentence."""

    method: str
    reason: str


def choose(pictures: int) -> Choice:
    """The method for a training set.

    Args:
        pictures: How many there are to train on.
    """
    if pictures <= 512:
        return Choice(
            "regression",
            f"{pictures} pictures are too few for a bank of neighbours; regression needs nothing "
            "but the gallery model's vectors",
        )
    return Choice(
        "csd+regression",
        "level with d3still as the best of our study on unseen classes, and it needs no labels",
    )
