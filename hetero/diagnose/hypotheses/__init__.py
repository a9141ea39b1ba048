"""Wrong versions of one step, one a file, found by name.

A hypothesis is a module of this folder (or a dotted path to one's own) with

    STAGE           the guilty stage, one of `hetero.diagnose.STAGES`
    FIX             what to do, in a line
    variants(spec)  (what is wrong, the step that does it wrong), one after another
    families(spec)  optional: (number -> what is wrong, number -> the step, numbers to begin with),
                    for mistakes with a number in them that no list can hold; it is fitted

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


@dataclass(frozen=True)
class Family:
    """Ways of being wrong that differ in one number.

    Attributes:
        stage: Guilty, if one of them is the cause.
        fix: What to do.
        what: Number -> what is wrong, for people.
        step: Number -> the step that replaces the reference's.
        numbers: Those tried first, ascending; between the best one's neighbours it is looked
            closer. Only whole numbers are tried if all of these are.
        at: Name of the step.
    """

    stage: str
    fix: str
    what: Callable[[float], str]
    step: Callable[[float], Callable[..., Any]]
    numbers: tuple[float, ...]
    at: str

    def __call__(self, number: float) -> Variant:
        """The one with this number."""
        whole = all(isinstance(n, int) for n in self.numbers)
        kept = round(number) if whole else number
        return Variant("fit", self.stage, self.what(kept), self.fix, self.step(kept), self.at)


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
    for name, module in _modules(more):
        for what, step in module.variants(spec):
            yield Variant(name, module.STAGE, what, module.FIX, step, getattr(module, "STEP", ""))


def families(spec: Preprocess, more: tuple[str, ...] = ()) -> Iterator[Family]:
    """Every family of every hypothesis that has some; arguments and errors as of `variants`."""
    for _, module in _modules(more):
        at = getattr(module, "STEP", "") or STEP_OF[module.STAGE]
        for what, step, numbers in getattr(module, "families", lambda _: ())(spec):
            yield Family(module.STAGE, module.FIX, what, step, tuple(numbers), at)


def _modules(more: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name in (*names(), *more):
        module = _plugins.load(__name__, name)
        stage = getattr(module, "STAGE", None)
        if stage not in STAGES:
            raise ConfigError(
                f"hypothesis {name!r}: STAGE is {stage!r}; it has to be one of {', '.join(STAGES)}"
            )
        yield name, module
