"""Adaptation: the change that training made to a linearised model, as a file.

    customer.safetensors   a tensor of each changed parameter, and the head that was there before

A linearised model is a bundle's backbone with a linear head behind it, the *base*, and a change of
its weights. The base never changes, and its outputs are f(x) + J(x)·change: the outputs of a sum of
changes are the sum of what each adds. So changes of one base add, subtract and average, and this
module refuses those of two.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hetero import models
from hetero._files import canonical_json, write_atomically
from hetero._tensors import read_tensors
from hetero.bundle import Bundle
from hetero.errors import ConfigError
from hetero.lqf.dual import DualStream

SCHEMA = "hetero.adaptation/1"

#: Before the names of the two kinds of tensors in a file.
_HEAD, _CHANGE = "head/", "change/"

Value = str | int | float | bool


@dataclass(frozen=True, eq=False)
class Adaptation:
    """A change of a base's weights, and what it belongs to.

    Attributes:
        bundle: Digest of the bundle whose backbone it is of, see `hetero.bundle.Bundle.digest`.
        base: Digest of the base, see `digest_of`.
        classes: What the outputs stand for, in their order.
        head: "weight" (classes, features) and "bias" (classes,), float32: the head of the base.
        change: Parameter name -> float32 change, of the parameter's shape.
        recipe: How it came about, JSON values.
    """

    bundle: str
    base: str
    classes: tuple[str, ...]
    head: Mapping[str, Tensor]
    change: Mapping[str, Tensor]
    recipe: Mapping[str, Value]

    def __post_init__(self) -> None:
        """Refuse what does not hold together."""
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ConfigError(
                f"adaptation: at least two classes, each once, are needed; got {self.classes[:5]}"
            )
        if set(self.head) != {"weight", "bias"} or not self.change:
            raise ConfigError(
                "adaptation: a head of weight and bias and at least one change are needed; got a "
                f"head of {', '.join(self.head) or 'nothing'} and {len(self.change)} changes"
            )
        for name, tensor in (*self.head.items(), *self.change.items()):
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise ConfigError(
                    f"adaptation: {name} is {tensor.dtype} or not finite; finite float32 expected"
                )
            if name in self.head and len(tensor) != len(self.classes):
                raise ConfigError(
                    f"adaptation: the head's {name} is for {len(tensor)} classes, there are "
                    f"{len(self.classes)}"
                )

    def save(self, path: Path) -> None:
        """Write it to a safetensors file, atomically; equal adaptations give equal bytes."""
        from safetensors.torch import save

        tensors = {f"{_HEAD}{k}": v for k, v in self.head.items()}
        tensors |= {f"{_CHANGE}{k}": v for k, v in self.change.items()}
        meta = {
            "hetero.schema": SCHEMA,
            "hetero.bundle": self.bundle,
            "hetero.base": self.base,
            "hetero.classes": canonical_json(list(self.classes)),
            "hetero.recipe": canonical_json(dict(self.recipe)),
        }
        # safetensors writes its metadata in an order that differs from run to run.
        write_atomically(path, _in_order(save({k: tensors[k].contiguous() for k in tensors}, meta)))

    def facts(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        return {
            "bundle": self.bundle,
            "base": self.base,
            "classes": list(self.classes),
            "parameters": sum(t.numel() for t in self.change.values()),
            "recipe": dict(self.recipe),
        }

    @classmethod
    def load(cls, path: Path) -> Adaptation:
        """The adaptation in a file.

        Raises:
            BundleError: It is missing, torn, or not an adaptation that this program reads.
        """

        def build(
            tensors: Mapping[str, np.ndarray[Any, Any]], texts: Mapping[str, str]
        ) -> Adaptation:
            def named(kind: str) -> dict[str, Tensor]:
                some = {k: v for k, v in tensors.items() if k.startswith(kind)}
                return {k.removeprefix(kind): torch.from_numpy(v) for k, v in some.items()}

            return cls(
                texts["hetero.bundle"],
                texts["hetero.base"],
                tuple(json.loads(texts["hetero.classes"])),
                named(_HEAD),
                named(_CHANGE),
                json.loads(texts["hetero.recipe"]),
            )

        return read_tensors(path, SCHEMA, "an adaptation", "hetero lqf train", build)


def _in_order(raw: bytes) -> bytes:
    """The same safetensors file, its header's keys sorted."""
    length = int.from_bytes(raw[:8], "little")
    header = canonical_json(json.loads(raw[8 : 8 + length])).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


# -- base -----------------------------------------------------------------------------------------


def base(bundle: Bundle, head: Mapping[str, Tensor]) -> nn.Module:
    """A bundle's backbone with a linear head behind it, in evaluation mode.

    Args:
        bundle: Its weights are those of the backbone; its embedding layer is left away.
        head: "weight" (classes, features) and "bias" (classes,).

    Raises:
        ConfigError: The head is for other features than the backbone gives.
    """
    net = models.load(bundle)
    weight, bias = head["weight"], head["bias"]
    first = net.projection[0]
    assert isinstance(first, nn.Linear)
    features = first.in_features
    if weight.shape != (len(bias), features):
        raise ConfigError(
            f"{bundle.root}: the backbone gives {features} features, and the head is of shape "
            f"{tuple(weight.shape)}; was the adaptation made from another bundle?"
        )
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict(dict(head))
    return nn.Sequential(OrderedDict(backbone=net.backbone, head=layer)).eval()


def digest_of(net: nn.Module) -> str:
    """SHA-256 of a net's parameters and buffers, names and shapes included."""
    whole = hashlib.sha256()
    for name, array in sorted(models.arrays(net).items()):
        whole.update(f"{name} {array.dtype} {array.shape}\n".encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def linearised(bundle: Bundle, adaptation: Adaptation) -> DualStream:
    """The bundle's linearised model with this change in it.

    Raises:
        ConfigError: The adaptation is of another base, or the backbone has an operator for which
            there is no rule.
    """
    if adaptation.bundle != bundle.digest:
        raise ConfigError(
            f"{bundle.root}: the adaptation belongs to the bundle with weights "
            f"{adaptation.bundle[:12]}…, and this one has {bundle.digest[:12]}…"
        )
    net = base(bundle, adaptation.head)
    if digest_of(net) != adaptation.base:
        raise ConfigError(
            f"{bundle.root}: the adaptation is of a base {adaptation.base[:12]}…, and this bundle "
            f"with the adaptation's head is {digest_of(net)[:12]}…; was the file altered?"
        )
    model = DualStream(net, example(bundle))
    model.add(adaptation.change)
    return model


def example(bundle: Bundle) -> Float[Tensor, "2 3 s s"]:
    """Two pictures as the bundle's backbone takes them, for tracing."""
    size = bundle.preprocess.size_px
    return torch.zeros(2, 3, size, size)


# -- arithmetic -----------------------------------------------------------------------------------


def combine(parts: Sequence[tuple[Adaptation, float]]) -> Adaptation:
    """The adaptation whose change is the weighted sum of those of its parts.

    Sums are taken in float64 and rounded to float32 once. A part that occurs several times counts
    with the sum of its shares, so that what is added and taken away again leaves no trace.

    Args:
        parts: Adaptations of one base, each with its share; -1 takes one away.

    Raises:
        ConfigError: None, parts of different bases, or a share that is not finite.
    """
    if not parts:
        raise ConfigError("combine: no adaptation; name at least one")
    first = parts[0][0]
    shares: dict[int, float] = {}
    distinct: list[Adaptation] = []
    for part, share in parts:
        if (part.base, part.classes) != (first.base, first.classes):
            raise ConfigError(
                f"combine: adaptations of base {first.base[:12]}… and {part.base[:12]}… cannot be "
                "added: they change different models; train the second with --base and the first"
            )
        if not math.isfinite(share):
            raise ConfigError(f"combine: a share has to be a finite number, got {share}")
        known = next((at for at, one in enumerate(distinct) if _equal(one, part)), None)
        if known is None:
            known = len(distinct)
            distinct.append(part)
        shares[known] = shares.get(known, 0.0) + share
    change = {
        name: sum(
            (shares[at] * one.change[name].double() for at, one in enumerate(distinct)),
            torch.zeros_like(tensor, dtype=torch.float64),
        ).float()
        for name, tensor in first.change.items()
    }
    recipe: dict[str, Value] = {"method": "lqf:combine"}
    for at, one in enumerate(distinct):
        recipe |= {f"{at}.share": shares[at]}
        recipe |= {f"{at}.{key}": value for key, value in one.recipe.items()}
    return Adaptation(first.bundle, first.base, first.classes, first.head, change, recipe)


def _equal(a: Adaptation, b: Adaptation) -> bool:
    return a is b or all(torch.equal(t, b.change[name]) for name, t in a.change.items())
