"""Ways to train a query model into a space: one module, one paper.

A method is a module of this folder (or a dotted path to one's own) with a frozen dataclass
``Method``: its fields are the hyper-parameters, ``needs`` names what it wants besides the gallery
vectors, ``own(setup)`` makes what it keeps beside the model, and ``loss(step, own)`` gives a
scalar. Methods add up: ``csd+regression`` is the sum of two.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from hetero import _plugins
from hetero._processes import joined
from hetero._settings import fill
from hetero.errors import ConfigError
from hetero.methods._auto import Choice, choose

__all__ = [
    "Choice",
    "Method",
    "Setup",
    "Step",
    "Sum",
    "choose",
    "is_control",
    "loss_of",
    "make",
    "settings_of",
]


@dataclass(frozen=True, eq=False)
class Setup:
    """What a method can build on, once, before the first step.

    Attributes:
        gallery: The gallery model's stored unit vectors of all training pictures: (views, pictures,
            dim), memory-mapped. View 0 of a picture stands for the picture.
        labels: Class number of each picture, or None without labels.
        classes: How many classes; 0 without labels.
        head: The gallery model's frozen class rows, lengths and scale as it was trained with them,
            or None.
        head_labels: For each picture, its row in `head`, -1 where the gallery model never saw the
            class; None without a head.
        seed: For whatever a method draws.
        length: Numbers in the query model's whole vector where that is longer than the gallery's;
            0 where it is not.
        independent: Stored unit vectors, as `gallery`, of a model like the query model that was
            trained without being held to anything, or None.
    """

    gallery: Float32[np.ndarray, "v n d"]
    labels: Int64[Tensor, " n"] | None = None
    classes: int = 0
    head: Float[Tensor, "c d"] | None = None
    head_labels: Int64[Tensor, " n"] | None = None
    seed: int = 0
    length: int = 0
    independent: Float32[np.ndarray, "v n i"] | None = None

    def __deepcopy__(self, memo: object) -> Setup:
        """Itself: nobody writes to it, and stored vectors may be larger than memory."""
        return self

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.gallery.shape[2])


@dataclass(frozen=True, eq=False)
class Step:
    """What a method sees of one training batch.

    Attributes:
        query: Unit rows by the query model, with gradient; where its vectors are longer than the
            gallery's, their beginning, normalised.
        gallery: Stored unit rows by the gallery model, for the same pictures.
        rows: Row numbers of the pictures in `Setup`, for banks and anchors looked up by picture.
        labels: Class numbers of the query model's training set, or None without labels.
        progress: 0 at the start of training, 1 at its end.
        whole: Unit rows by the query model at their whole length, or None where `query` is that.
        independent: Rows of `Setup.independent` for the same pictures, or None.
    """

    query: Float[Tensor, "b d"]
    gallery: Float[Tensor, "b d"]
    rows: Int64[Tensor, " b"]
    labels: Int64[Tensor, " b"] | None = None
    progress: float = 0.0
    whole: Float[Tensor, "b w"] | None = None
    independent: Float[Tensor, "b i"] | None = None

    def joined(self) -> Step:
        """The step of the whole batch, of which each process has a part; see `_processes.joined`.

        Where there is one process, this very step.
        """
        names = ("query", "gallery", "rows", "labels", "whole", "independent")
        mine: dict[str, Any] = {n: r for n in names if (r := getattr(self, n)) is not None}
        every = joined(*mine.values())
        if every[0] is self.query:
            return self
        return replace(self, **dict[str, Any](zip(mine, every, strict=True)))


@runtime_checkable
class Method(Protocol):
    """What a module of this folder offers under the name ``Method``.

    A class may also say ``control = True``: a negative control, which is known to leave the query
    model outside the gallery's space.

    And it should say ``whole_batch = False`` where its loss is a mean over all rows of a batch of
    what each row costs by itself: then each of several processes computes it of its own rows, and
    the mean over processes is the loss of the whole batch. Any other loss (one that compares rows,
    or averages over some of them) is computed of the rows of all processes in each of them.
    """

    needs: ClassVar[frozenset[str]]
    """Among "labels", "head" and "independent"; without them the method refuses to start."""

    def own(self, setup: Setup) -> nn.Module:
        """What the method keeps beside the model, and throws away after training.

        Parameters are learnt with the model (a classifier), buffers are not (a bank, anchors).
        An empty module if nothing.
        """
        ...

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """The loss of one batch."""
        ...


@dataclass(frozen=True)
class Sum:
    """Methods added up, made by a name such as ``csd+regression``.

    Attributes:
        parts: Name and method of each.
    """

    parts: tuple[tuple[str, Method], ...]

    @property
    def needs(self) -> frozenset[str]:
        """What any of them needs."""
        return frozenset().union(*(method.needs for _, method in self.parts))

    #: Each part sees to itself.
    whole_batch: ClassVar[bool] = False

    def own(self, setup: Setup) -> nn.Module:
        """What each of them keeps, in order."""
        return nn.ModuleList([method.own(setup) for _, method in self.parts])

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """The sum of their losses."""
        total = step.query.new_zeros(())
        for (_, method), part in zip(self.parts, own.children(), strict=True):
            total = total + loss_of(method, step, part)
        return total


def make(name: str, settings: dict[str, Any] | None = None) -> Method:
    """A method with these hyper-parameters over its defaults.

    Args:
        name: A module of this folder or a dotted path, or several joined by "+".
        settings: Field name to value; text is converted to the field's type. With several methods,
            "METHOD.FIELD".

    Raises:
        ConfigError: Unknown method or hyper-parameter, or a value of the wrong kind.
    """
    names = name.split("+")
    if len(names) == 1:
        return _one(name, settings or {})
    if len(set(names)) < len(names):
        raise ConfigError(f"method {name!r}: each part once; weigh it by its settings")
    given: dict[str, dict[str, Any]] = {part: {} for part in names}
    for key, value in (settings or {}).items():
        part, _, field = key.rpartition(".")
        if part not in given:
            raise ConfigError(
                f"method {name}: setting {key!r} names none of its parts; write "
                f"{' or '.join(f'{p}.SETTING' for p in names)}"
            )
        given[part][field] = value
    made: Method = Sum(tuple((part, _one(part, given[part])) for part in names))  # type: ignore[assignment]
    return made


def _one(name: str, settings: dict[str, Any]) -> Method:
    made: Method = fill(_plugins.load(__name__, name), "Method", name, settings)
    return made


def settings_of(method: Method) -> dict[str, Any]:
    """The hyper-parameters of a method, for the record and for `make`."""
    if isinstance(method, Sum):
        return {f"{n}.{k}": v for n, part in method.parts for k, v in settings_of(part).items()}
    return {f.name: getattr(method, f.name) for f in fields(method)}  # type: ignore[arg-type]


def loss_of(method: Method, step: Step, own: nn.Module) -> Float[Tensor, ""]:
    """The method's loss of a batch; several processes together get that of all their rows.

    The mean of what the processes get, and of its gradients, is what one process gets of the joined
    batch.
    """
    return method.loss(step.joined() if getattr(method, "whole_batch", True) else step, own)


def is_control(method: Method) -> bool:
    """Whether this is a negative control, expected to stay at chance in the gallery's index."""
    return bool(getattr(method, "control", False))
