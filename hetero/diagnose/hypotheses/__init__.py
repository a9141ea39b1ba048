"""Wrong versions of one step, one a file, found by name.

A hypothesis is a module of this folder (or a dotted path to one's own) with

    STAGE           the guilty stage, one of `hetero.diagnose.STAGES`
    FIX             what to do, in a line
    variants(spec)  (what is wrong, the step that does it wrong), one after another

The step replaces the one of that stage in `hetero.diagnose.Pipeline`, or the one that STEP names; a
stage of the model (conversion, runtime, pooling) replaces the network: (tensor, engine) -> rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hetero import _plugins
from hetero.diagnose._pipeline import STAGES, STEP_OF
from hetero.errors import ConfigError
from hetero.preprocess import Preprocess


@dataclass(frozen=True)
class Variant:
    """One way of being wrong.

    Attributes:
        name: The hypothesis it is of.
        stage: Guilty, if this is the cause.
        what: What is wrong, for people.
        fix: What to do.
        step: Replaces the reference's step.
        at: Name of that step; the stage's own unless said.
    """

    name: str
    stage: str
    what: str
    fix: str
    step: Callable[..., Any]
    at: str = ""

    def __post_init__(self) -> None:
        if not self.at:
            object.__setattr__(self, "at", STEP_OF[self.stage])


def names() -> tuple[str, ...]:
    """The hypotheses of this folder."""
    return _plugins.names(__name__)


def variants(spec: Preprocess, more: tuple[str, ...] = ()) -> Iterator[Variant]:
    """Every variant of every hypothesis.

    Args:
        spec: How pictures should be prepared.
        more: Dotted paths of hypotheses of one's own.

    Raises:
        ConfigError: One of them is not a hypothesis.
    """
    for name in (*names(), *more):
        module = _plugins.load(__name__, name)
        stage = getattr(module, "STAGE", None)
        if stage not in STAGES:
            raise ConfigError(
                f"hypothesis {name!r}: STAGE is {stage!r}; it has to be one of {', '.join(STAGES)}"
            )
        for what, step in module.variants(spec):
            yield Variant(name, stage, what, module.FIX, step, getattr(module, "STEP", ""))
