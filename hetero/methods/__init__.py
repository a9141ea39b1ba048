"""Ways to train a query model into a space: one module, one paper.

A method is a module of this folder (or a dotted path to one's own) with a frozen dataclass
``Method``: its fields are the hyper-parameters with the paper's defaults, ``needs`` names what it
wants besides the gallery vectors, and ``loss(step, own)`` gives a scalar.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor, nn

from hetero import _plugins
from hetero.errors import ConfigError

_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, eq=False)
class Step:
    """What a method sees of one training batch.

    Attributes:
        query: Unit rows by the query model, with gradient.
        gallery: Stored unit rows by the gallery model, for the same pictures.
        labels: Class numbers of the query model's training set, or None without labels.
        head: The gallery model's frozen class rows (unit), or None.
        head_labels: For each row of the batch, its row in `head`, -1 where the gallery model never
            saw the class; None without a head.
        progress: 0 at the start of training, 1 at its end.
    """

    query: Float[Tensor, "b d"]
    gallery: Float[Tensor, "b d"]
    labels: Int64[Tensor, " b"] | None
    head: Float[Tensor, "c d"] | None
    head_labels: Int64[Tensor, " b"] | None
    progress: float


@runtime_checkable
class Method(Protocol):
    """What a module of this folder offers under the name ``Method``."""

    needs: ClassVar[frozenset[str]]
    """Among "labels" and "head"; without them the method refuses to start."""

    def own(self, dim: int, classes: int) -> nn.Module:
        """What the method itself learns and throws away afterwards; an empty module if nothing."""
        ...

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """The loss of one batch."""
        ...


def make(name: str, settings: dict[str, Any] | None = None) -> Method:
    """A method with these hyper-parameters over its defaults.

    Args:
        name: A module of this folder or a dotted path.
        settings: Field name to value; text is converted to the field's type.

    Raises:
        ConfigError: Unknown method or hyper-parameter, or a value of the wrong kind.
    """
    module = _plugins.load(__name__, name)
    kind: Any = getattr(module, "Method", None)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ConfigError(f"method {name!r}: the module has no dataclass Method")
    known: dict[str, object] = {f.name: f.default for f in fields(kind)}
    if MISSING in known.values():
        bare = next(k for k, default in known.items() if default is MISSING)
        raise ConfigError(f"method {name!r}: the setting {bare} has no default")
    given: dict[str, Any] = {}
    for key, value in (settings or {}).items():
        if key not in known:
            raise ConfigError(
                f"method {name}: no setting {key!r}; there are {', '.join(known) or 'none'}"
            )
        wanted: Any = type(known[key])
        try:
            given[key] = _TRUTH[str(value).lower()] if wanted is bool else wanted(value)
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"method {name}: {key} needs a {wanted.__name__}, got {value!r}"
            ) from None
    made: Method = module.Method(**given)
    return made


def settings_of(method: Method) -> dict[str, Any]:
    """The hyper-parameters of a method, for the record."""
    return {f.name: getattr(method, f.name) for f in fields(method)}  # type: ignore[arg-type]
