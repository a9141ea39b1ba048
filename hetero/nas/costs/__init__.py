"""What an architecture costs: one file each, with ``UNIT`` and ``cost(options)``.

``cost(options)`` gives a function from a network and the side of its pictures to a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hetero import _plugins
from hetero.errors import ConfigError
from hetero.models import EmbeddingNet


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


def without_options(name: str, options: str) -> None:
    """Refuse options of a cost that has none.

    Raises:
        ConfigError: There are some.
    """
    if options:
        raise ConfigError(f"cost {name}: takes no options, got {options!r}")
