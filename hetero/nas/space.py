"""A search space as data: what can be chosen, and the backbone that a choice names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hetero import _plugins
from hetero.errors import ConfigError

#: The value taken of each choice, in the order of `SearchSpace.choices`.
Architecture = tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """One thing to choose.

    Attributes:
        name: Unique in its space.
        values: In ascending order of cost.
    """

    name: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be chosen from."""
        if not self.values or len(set(self.values)) != len(self.values):
            raise ConfigError(f"choice {self.name!r}: needs values, each once; got {self.values}")


@dataclass(frozen=True)
class SearchSpace:
    """All architectures that a search may find.

    Attributes:
        name: Of the space.
        choices: What there is to choose.
        spec: From choice name -> value to the backbone's name, see `hetero.models.backbone`. Equal
            nets have equal names.
        kinds: Beginnings of the names of choices that pick a kind and not a size: of these every
            value has weights of its own, where of a size the smaller is part of the larger.
    """

    name: str
    choices: tuple[Choice, ...]
    spec: Callable[[dict[str, float]], str]
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an empty space and names that come twice."""
        names = [c.name for c in self.choices]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"search space {self.name!r}: needs choices, each name once")

    def backbone(self, architecture: Architecture) -> str:
        """The backbone's name.

        Raises:
            ConfigError: A value that is not among its choice's.
        """
        if len(architecture) != len(self.choices) or any(
            v not in c.values for c, v in zip(self.choices, architecture, strict=False)
        ):
            raise ConfigError(
                f"search space {self.name!r}: {architecture} is none of its architectures"
            )
        return self.spec({c.name: v for c, v in zip(self.choices, architecture, strict=True)})

    def smallest(self) -> Architecture:
        """The first value of each choice."""
        return tuple(c.values[0] for c in self.choices)

    def largest(self) -> Architecture:
        """The last value of each choice."""
        return tuple(c.values[-1] for c in self.choices)

    def draw(self, rng: np.random.Generator) -> Architecture:
        """Each value of each choice alike."""
        return tuple(c.values[int(rng.integers(len(c.values)))] for c in self.choices)

    def corners(self) -> Iterator[Architecture]:
        """Architectures that together have every weight there is, each as large as it gets.

        The largest one, and for each kind the largest with that kind wherever there is a choice.
        """
        largest = self.largest()
        yield largest
        kind = [c.name.startswith(self.kinds) for c in self.choices]
        kinds = [len(c.values) for c, k in zip(self.choices, kind, strict=True) if k]
        for at in range(max(kinds, default=1) - 1):
            yield tuple(
                c.values[min(at, len(c.values) - 1)] if k else v
                for c, k, v in zip(self.choices, kind, largest, strict=True)
            )


def load(name: str) -> SearchSpace:
    """The space ``NAME`` or ``NAME:OPTIONS`` of `hetero.nas.spaces`, or a dotted path to one's own.

    Raises:
        ConfigError: There is no such space, or its module has no function `space`.
    """
    which, _, options = name.partition(":")
    module = _plugins.load("hetero.nas.spaces", which)
    make = getattr(module, "space", None)
    if make is None:
        raise ConfigError(f"search space {name!r}: {module.__name__} has no space(options)")
    made: SearchSpace = make(options)
    return made
