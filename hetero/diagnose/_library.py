"""What can be worked out before a trace is seen; one library serves any number of traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array, Engine, States, reference, run, unit
from hetero.diagnose.canary import Canary
from hetero.diagnose.hypotheses import Family, Variant, families, variants
from hetero.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class Library:
    """The reference's states for the canaries, and what every hypothesis gives for them.

    Attributes:
        pictures: The canaries.
        spec: How they are prepared.
        engine: What embeds.
        states: From the files' bytes on; its rows are those to hold a device against: the exported
            file's where there is one, else PyTorch's.
        torch_rows: PyTorch's, of length 1.
        variants: All hypotheses.
        families: Those with a number in them.
        known: What they gave, by stage, text and point; filled as they are tried.
    """

    pictures: tuple[Canary, ...]
    spec: Preprocess
    engine: Engine
    states: States
    torch_rows: Array
    variants: tuple[Variant, ...]
    families: tuple[Family, ...]
    known: dict[tuple[str, str, str], Any] = field(default_factory=dict)

    @property
    def screen(self) -> Array:
        """Places of two pictures of every kind, and of one of each that is turned."""
        kinds: dict[str, list[int]] = {}
        for place, picture in enumerate(self.pictures):
            kinds.setdefault(picture.kind, []).append(place)
        most = {kind: 1 if kind.startswith("exif") else 2 for kind in kinds}
        return np.asarray([i for kind, places in kinds.items() for i in places[: most[kind]]])

    @property
    def home(self) -> Array:
        """The rows that a healthy device gives."""
        return self.states.rows


def library(
    pictures: Sequence[Canary],
    spec: Preprocess,
    engine: Engine,
    more: tuple[str, ...] = (),
) -> Library:
    """What can be worked out before a trace is seen; one serves any number of traces.

    Args:
        pictures: From `canaries`.
        spec: How pictures should be prepared.
        engine: What embeds.
        more: Dotted paths of hypotheses of one's own.
    """
    files = [p.data for p in pictures]
    states = run(reference(), spec, engine, "decode", files)
    every = tuple(variants(spec, more))
    fitted = tuple(families(spec, more))
    rows = unit(states.rows)
    home = with_file(states, engine)
    return Library(tuple(pictures), spec, engine, home, rows, every, fitted)


def with_file(states: States, engine: Engine) -> States:
    """The states with the exported file's rows in place of PyTorch's, where it can be asked."""
    pixels = states.before.get("normalise")
    answer = None
    if pixels is not None and pixels.dtype == np.uint8:
        answer = engine.file_rows(pixels)
    raw = states.before["l2"] if answer is None else answer
    return replace(states, before={**states.before, "l2": raw, "output": unit(raw)}, rows=unit(raw))
