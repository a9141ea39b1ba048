"""What an architecture costs: one file each, with ``UNIT`` and ``cost(options)``.

``cost(options)`` gives a function from a network and the side of its pictures to a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hetero import _plugins, models
from hetero.errors import ConfigError
from hetero.models import EmbeddingNet
from hetero.nas.space import Architecture, SearchSpace


@dataclass(frozen=True)
class Cost:
    """A cost by name.

    Attributes:
        name: As it was asked for.
        unit: Of the number.
        of: From a network and the side of its pictures in pixels to the number.
    """

    name: str
    unit: str
    of: Callable[[EmbeddingNet, int], float]


def load_cost(name: str) -> Cost:
    """The cost ``NAME`` or ``NAME:OPTIONS``, or the dotted path of one's own.

    Raises:
        ConfigError: There is none of this name, or its module lacks UNIT or cost(options).
    """
    which, _, options = name.partition(":")
    module = _plugins.load(__name__, which)
    if not (hasattr(module, "UNIT") and hasattr(module, "cost")):
        raise ConfigError(f"cost {name!r}: {module.__name__} needs UNIT and cost(options)")
    return Cost(name, module.UNIT, module.cost(options))


def priced(
    space: SearchSpace, cost: Cost, dim: int, size_px: int, inner: int = 0
) -> Callable[[Architecture], float]:
    """What an architecture of a space costs.

    Args:
        space: Of the architectures.
        cost: See `load_cost`.
        dim: Length of the embedding.
        size_px: Side of the pictures.
        inner: See `hetero.models.EmbeddingNet`.
    """

    def price(architecture: Architecture) -> float:
        return cost.of(models.build(space.backbone(architecture), dim, size_px, inner), size_px)

    return price


def without_options(name: str, options: str) -> None:
    """Refuse options of a cost that has none.

    Raises:
        ConfigError: There are some.
    """
    if options:
        raise ConfigError(f"cost {name}: takes no options, got {options!r}")
