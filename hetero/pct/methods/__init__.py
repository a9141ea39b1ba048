"""Ways to train a new classifier after an old one: one module, one method.

A method is a module of this folder (or a dotted path to one's own) with a frozen dataclass
``Method``: its fields are the hyper-parameters, ``needs`` names what it wants of the old model, and
``loss(step)`` gives a scalar, cross-entropy included.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from hetero import _plugins
from hetero._processes import joined
from hetero._settings import fill
from hetero.errors import ConfigError

__all__ = ["Method", "OldHead", "Step", "at_least", "loss_of", "make", "settings_of"]


@dataclass(frozen=True, eq=False)
class OldHead:
    """The old classifier's last layer, frozen: logits are features @ weight.T + bias."""

    weight: Float[Tensor, "k g"]
    bias: Float[Tensor, " k"]


@dataclass(frozen=True, eq=False)
class Step:
    """What a method sees of one training batch.

    Attributes:
        logits: By the new model, with gradient.
        features: What its backbone gave for them, with gradient.
        labels: Class numbers of the new model.
        old: Stored logits by the old model for the same views, one column a class it knows; None
            if the method does not need them.
        columns: For each class that the old model knows, the new model's number of it.
        head: The old model's last layer, or None.
        progress: 0 at the start of training, 1 at its end.
    """

    logits: Float[Tensor, "b c"]
    features: Float[Tensor, "b f"]
    labels: Int64[Tensor, " b"]
    old: Float32[Tensor, "b k"] | None = None
    columns: Int64[Tensor, " k"] | None = None
    head: OldHead | None = None
    progress: float = 0.0

    @property
    def theirs(self) -> Float32[Tensor, "b k"]:
        """The old model's logits, where a method needs them."""
        assert self.old is not None
        return self.old

    @property
    def shared(self) -> Float[Tensor, "b k"]:
        """The new model's logits of the classes that the old one knows, in the old one's order."""
        assert self.columns is not None
        return self.logits[:, self.columns]

    @property
    def old_right(self) -> Bool[Tensor, " b"]:
        """Whether the old model gives the right class; never where it does not know it."""
        assert self.columns is not None
        return self.columns[self.theirs.argmax(1)] == self.labels

    def entropy(self) -> Float[Tensor, " b"]:
        """Cross-entropy of each picture."""
        return nn.functional.cross_entropy(self.logits, self.labels, reduction="none")

    def joined(self) -> Step:
        """The step of the whole batch, of which each process has a part; see `_processes.joined`.

        Where there is one process, this very step.
        """
        names = ("logits", "features", "labels", "old")
        mine: dict[str, Any] = {n: r for n in names if (r := getattr(self, n)) is not None}
        every = joined(*mine.values())
        if every[0] is self.logits:
            return self
        return replace(self, **dict[str, Any](zip(mine, every, strict=True)))


@runtime_checkable
class Method(Protocol):
    """What a module of this folder offers under the name ``Method``.

    ``whole_batch`` is as for `hetero.methods.Method`.
    """

    needs: ClassVar[frozenset[str]]
    """Among "old" (its logits) and "head" (its last layer, of a single old model)."""

    def loss(self, step: Step) -> Float[Tensor, ""]:
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
    made: Method = fill(_plugins.load(__name__, name), "Method", name, settings or {})
    return made


def loss_of(method: Method, step: Step) -> Float[Tensor, ""]:
    """The method's loss of a batch; several processes together get that of all their rows."""
    return method.loss(step.joined() if getattr(method, "whole_batch", True) else step)


def settings_of(method: Method) -> dict[str, Any]:
    """The hyper-parameters of a method, for the record and for `make`."""
    return {f.name: getattr(method, f.name) for f in fields(method)}  # type: ignore[arg-type]


def at_least(least: float, **values: float) -> None:
    """Nothing, if every value is finite and at least `least`.

    Raises:
        ConfigError: One is not.
    """
    for name, value in values.items():
        if not least <= value < float("inf"):
            raise ConfigError(f"{name} has to be a number of at least {least:g}, got {value}")
