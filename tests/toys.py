"""A collection of coloured shapes that trains in a second, and what the tests of training share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hetero.data import Images
from hetero.preprocess import Preprocess
from hetero.progress import Bar, Reporter

SIZE = 16
PREPROCESS = Preprocess(SIZE)
GALLERY = "resnet:width=4"
QUERY = "mobilenet:width=0.25,depth=0.3"

#: Class number -> colour and shape; 4 x 4 of them, taken in an order that mixes both.
COLOURS = ((220, 40, 40), (40, 200, 60), (50, 70, 230), (230, 200, 30))
SHAPES = ("disc", "square", "cross", "stripes")


def picture(number: int, which: int, seed: int = 0) -> np.ndarray:
    """One picture of a class: its shape in its colour, somewhere, on noise. uint8 (16, 16, 3)."""
    rng = np.random.default_rng([seed, number, which])
    out = rng.integers(0, 60, (SIZE, SIZE, 3))
    y, x = np.mgrid[:SIZE, :SIZE]
    y, x = y - rng.integers(6, 10), x - rng.integers(6, 10)
    shape = SHAPES[(number // 4 + number) % 4]
    inside = {
        "disc": x**2 + y**2 <= 20,
        "square": np.maximum(abs(x), abs(y)) <= 4,
        "cross": (np.minimum(abs(x), abs(y)) <= 1) & (np.maximum(abs(x), abs(y)) <= 6),
        "stripes": (x % 4 < 2) & (abs(y) <= 5),
    }[shape]
    out[inside] = np.asarray(COLOURS[number % 4]) + rng.integers(-20, 20, 3)
    return np.clip(out, 0, 255).astype(np.uint8)


def toy_images(
    train: int = 8, val: int = 3, test: int = 3, per_class: int = 6, seed: int = 0
) -> Images:
    """Coloured shapes: at most 16 classes, each in one split, each picture its own group.

    Args:
        train, val, test: Classes in each split.
        per_class: Pictures of a class.
        seed: Of the pictures; ids and labels do not depend on it.
    """
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    table = [(number, which) for number in range(len(splits)) for which in range(per_class)]
    ids = tuple(f"class{number:02}/{which}" for number, which in table)
    return Images(
        name="toy",
        ids=ids,
        labels=tuple(f"class{number:02}" for number, _ in table),
        groups=ids,
        splits=tuple(splits[number] for number, _ in table),
        roles=("both",) * len(ids),
        read=lambda row: picture(*table[row], seed),
    )


class Tripwire(Reporter):
    """Says nothing, and calls `action` after so many steps of the job whose name begins so."""

    def __init__(self, what: str, steps: int, action: Callable[[], Any]) -> None:
        super().__init__(quiet=True)
        self._what, self._left, self._action = what, steps, action

    @contextlib.contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Bar]:
        with super().bar(what, total, done) as bar:
            yield self if what.startswith(self._what) else bar

    def advance(self, steps: int = 1, note: str = "") -> None:
        del note
        for _ in range(steps):
            self._left -= 1
            if self._left == 0:
                self._action()


class Listener(Reporter):
    """Keeps the lines said and, by job, how many steps were announced and done."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self.jobs: dict[str, list[int]] = {}

    def line(self, text: str) -> None:
        self.lines.append(text)

    @contextlib.contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Bar]:
        job = self.jobs[what] = [total, done]

        class Counting:
            def advance(self, steps: int = 1, note: str = "") -> None:
                del note
                job[1] += steps

        yield Counting()


def quiet() -> Reporter:
    return Reporter(quiet=True)


def weights(folder: Path) -> dict[str, bytes]:
    """Name to bytes of every parameter and buffer of a bundle, to compare bit by bit."""
    from hetero.bundle import Bundle

    return {k: v.tobytes() for k, v in Bundle.load(folder).tensors("weights").items()}


def backbone_with_dropout() -> Any:
    """A backbone of a user's own that draws random numbers in training."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )


def small_backbone() -> Any:
    """A backbone of a user's own that costs next to nothing."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 12, 5, 2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
    )
