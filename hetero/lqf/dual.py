"""A net and its derivative in one graph: every value travels with its change.

Where a layer maps u to W·u + b, the pair (u, u') is mapped to (W·u + b, W·u' + dW·u + db): two or
three ordinary layers. A leaky ReLU passes a change on with the slope it has at u. What comes out is
f(x; w) + J(x)·dw, the first-order expansion of the net in its weights.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hetero.errors import ConfigError
from hetero.models import first_line

#: A change of a net's weights: parameter name -> tensor of its shape.
Delta = Mapping[str, Tensor]
#: A value and its change; None where nothing before it can change.
_Pair = tuple[Any, Tensor | None]
_aten = torch.ops.aten
_SILENT = (_aten.relu, _aten.relu_, _aten.hardtanh, _aten.hardtanh_)


class DualStream(nn.Module):
    """A net's first-order expansion in its weights: f(x; w) + J(x)·delta, of plain layers.

    Linear in its parameters, the changes of the weights and biases of convolutions and linear
    layers, which start at zero: two of them add, subtract and average exactly. The net itself is
    in evaluation mode, its batch norms are fixed scales, and it never changes.

    Args:
        net: Maps (n, 3, h, w) to (n, k). Taken over: its parameters no longer want a gradient.
        example: Pictures that it takes, at least two.

    Raises:
        ConfigError: The net cannot be traced, or an operator has no rule here; it is named.
    """

    def __init__(self, net: nn.Module, example: Float[Tensor, "n ..."]) -> None:
        """See the class."""
        super().__init__()
        self.net = net.eval()
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        weighted = [
            f"{name}.{leaf}"
            for name, module in net.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
            for leaf, _ in module.named_parameters(recurse=False)
        ]
        self._keys = {name: name.replace(".", "/") for name in weighted}
        self.changes = nn.ParameterDict()
        for name, key in self._keys.items():
            self.changes[key] = nn.Parameter(torch.zeros_like(net.get_parameter(name)))
        try:
            batch = {0: torch.export.Dim("batch", min=1)}
            traced = torch.export.export(net, (example,), dynamic_shapes=(batch,), strict=False)
        except Exception as error:
            raise ConfigError(
                f"LQF: the net cannot be traced ({type(error).__name__}: {first_line(error)}); its "
                "forward may not depend on values"
            ) from error
        given = traced.graph_signature
        self._stored = {**given.inputs_to_parameters, **given.inputs_to_buffers}
        constants = given.inputs_to_lifted_tensor_constants
        self._constants = {k: traced.constants[v] for k, v in constants.items()}
        self._graph = traced.graph
        with torch.no_grad():
            self(example)  # every operator is met once, so that a missing rule is told now

    @property
    def silent(self) -> int:
        """Activations that pass nothing on of what is off; see `hetero.models.leaky`."""
        return sum(getattr(n.target, "overloadpacket", None) in _SILENT for n in self._graph.nodes)

    @property
    def delta(self) -> dict[str, Tensor]:
        """A copy of the change of each parameter, by the parameter's name in the net."""
        return {name: self.changes[key].detach().clone() for name, key in self._keys.items()}

    @torch.no_grad()
    def add(self, delta: Delta, share: float = 1.0) -> None:
        """Add a change, or this share of it; -1 takes it away again.

        Raises:
            ConfigError: It is not a change of this net.
        """
        if {n: d.shape for n, d in delta.items()} != {
            n: self.changes[k].shape for n, k in self._keys.items()
        }:
            raise ConfigError("LQF: the change belongs to a net with other parameters")
        for name, key in self._keys.items():
            self.changes[key] += share * delta[name]

    @torch.no_grad()
    def forget(self) -> None:
        """Back to the net as it was."""
        for change in self.changes.values():
            change.zero_()

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """What the net gives, plus what its change gives."""
        value, change = self._pair(x, self.changes)
        whole: Tensor = value if change is None else value + change
        return whole

    def product(
        self, x: Float[Tensor, "n ..."], direction: Sequence[Tensor]
    ) -> Float[Tensor, "n k"]:
        """J(x)·direction, in the order of `changes`; what is in `changes` has no say in it."""
        _, change = self._pair(x, dict(zip(self.changes.keys(), direction, strict=True)))
        assert change is not None, "the output depends on a layer"
        return change

    def _pair(self, x: Tensor, changes: Mapping[str, Tensor] | nn.ParameterDict) -> _Pair:
        """Value and change of the output, for these changes of the weights."""
        pairs: dict[torch.fx.Node, _Pair] = {}
        for node in self._graph.nodes:
            if node.op == "placeholder":
                pairs[node] = self._given(node.name, x, changes)
            elif node.op == "call_function":
                pairs[node] = _apply(node, pairs)
        given: Any = next(n for n in self._graph.nodes if n.op == "output").args[0]
        return pairs[given[0]]

    def _given(
        self, name: str, x: Tensor, changes: Mapping[str, Tensor] | nn.ParameterDict
    ) -> _Pair:
        if name in self._constants:
            return self._constants[name].to(x.device), None
        if name not in self._stored:
            return x, None
        stored = self._stored[name]
        path, _, leaf = stored.rpartition(".")
        value = getattr(self.net.get_submodule(path), leaf)
        key = self._keys.get(stored)
        return value, None if key is None else changes[key]


def by_jvp(net: nn.Module, delta: Delta, images: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
    """f(x; w) + J(x)·delta by PyTorch's forward mode in float64: what every file is held to.

    Nothing of it is shared with `DualStream`.

    Args:
        net: In evaluation mode.
        delta: Of its parameters.
        images: As it takes them.
    """
    exact = copy.deepcopy(net).double()
    changes = {name: tensor.detach().double() for name, tensor in delta.items()}
    weights = {name: exact.get_parameter(name).detach() for name in changes}
    batch = images.double()

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        rows: Tensor = torch.func.functional_call(exact, parameters, (batch,))
        return rows

    with warnings.catch_warnings():
        # Forward mode compiles by what PyTorch calls deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        found: Any = torch.func.jvp(outputs, (weights,), (changes,))
    whole: Tensor = (found[0] + found[1]).detach()
    return whole


def _apply(node: torch.fx.Node, pairs: dict[torch.fx.Node, _Pair]) -> _Pair:
    """A node's value and change from those of its arguments."""

    def each(argument: Any, place: int) -> Any:
        if isinstance(argument, torch.fx.Node):
            return pairs[argument][place]
        if isinstance(argument, list | tuple):
            return type(argument)(each(a, place) for a in argument)
        return argument if place == 0 else None

    target: Any = node.target
    args = [each(a, 0) for a in node.args]
    changes = [each(a, 1) for a in node.args]
    kwargs = {k: each(v, 0) for k, v in node.kwargs.items()}
    moves = any(c is not None for c in _flat(changes))
    rule = _RULES.get(getattr(target, "overloadpacket", target))
    if not moves:
        return target(*args, **kwargs), None
    if rule is None:
        raise ConfigError(f"LQF: operator {target} ({node.name}) has no rule here")
    return rule(target, args, changes, kwargs)


def _flat(changes: Any) -> list[Any]:
    if isinstance(changes, list | tuple):
        return [x for c in changes for x in _flat(c)]
    return [changes]


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


# -- rules: (operator, values, changes, keywords) -> value and change ------------------------------

_Rule = Callable[[Any, list[Any], list[Any], dict[str, Any]], _Pair]


def _same(target: Any, args: list[Any], changes: list[Any], kwargs: dict[str, Any]) -> _Pair:
    """Linear in its first argument: a change is treated as a value is."""
    return target(*args, **kwargs), target(changes[0], *args[1:], **kwargs)


def _layer(target: Any, args: list[Any], changes: list[Any], kwargs: dict[str, Any]) -> _Pair:
    """A convolution or linear layer: value, weight, bias, and how."""
    value, weight = args[:2]
    dvalue, dweight = changes[:2]
    dbias = changes[2] if len(changes) > 2 else None
    how = args[3:]
    out: Tensor | None = None
    if dvalue is not None:
        out = target(dvalue, weight, None, *how, **kwargs)
    if dweight is not None:
        # A layer's bias has a change wherever its weight has one.
        out = _plus(out, target(value, dweight, dbias, *how, **kwargs))
    return target(*args, **kwargs), out


def _norm(target: Any, args: list[Any], changes: list[Any], kwargs: dict[str, Any]) -> _Pair:
    """A batch norm in evaluation mode: value, scale, shift, mean, variance, training, ..., eps."""
    value, scale, _, _, variance = args[:5]
    factor = (variance + args[7]).rsqrt()
    factor = factor if scale is None else factor * scale
    return target(*args, **kwargs), changes[0] * factor.reshape(-1, *[1] * (value.ndim - 2))


def _add(target: Any, args: list[Any], changes: list[Any], kwargs: dict[str, Any]) -> _Pair:
    a, b = changes[:2]
    if b is not None:
        b = b * kwargs.get("alpha", 1)
        b = -b if target.overloadpacket is _aten.sub else b
    return target(*args, **kwargs), _plus(a, b)


def _mul(target: Any, args: list[Any], changes: list[Any], kwargs: dict[str, Any]) -> _Pair:
    left = None if changes[0] is None else changes[0] * args[1]
    right = None if changes[1] is None else args[0] * changes[1]
    return target(*args, **kwargs), _plus(left, right)


def _cat(target: Any, args: list[Any], changes: list[Any], kwargs: dict[str, Any]) -> _Pair:
    parts = [
        torch.zeros_like(v) if c is None else c for v, c in zip(args[0], changes[0], strict=True)
    ]
    return target(*args, **kwargs), target(parts, *args[1:], **kwargs)


def _leaky(slope: float | None = None) -> _Rule:
    """A ReLU with this slope below zero, or with the one that its second argument says."""

    def rule(target: Any, args: list[Any], changes: list[Any], kwargs: dict[str, Any]) -> _Pair:
        below = slope if slope is not None else args[1] if len(args) > 1 else 0.01
        # A choice between two streams; a stream times a mask would need the mask as a tensor.
        change = torch.where(args[0] > 0, changes[0], below * changes[0])
        return target(*args, **kwargs), change

    return rule


def _clamp(low: float | None = None, high: float | None = None) -> _Rule:
    """A clamp, whose bounds are its further arguments; these where it has none."""

    def rule(target: Any, args: list[Any], changes: list[Any], kwargs: dict[str, Any]) -> _Pair:
        value, change = args[0], changes[0]
        least = args[1] if len(args) > 1 else low
        most = args[2] if len(args) > 2 else high
        nothing = torch.zeros_like(change)
        if least is not None:
            change = torch.where(value > least, change, nothing)
        if most is not None:
            change = torch.where(value < most, change, nothing)
        return target(*args, **kwargs), change

    return rule


def _max_pool(target: Any, args: list[Any], changes: list[Any], kwargs: dict[str, Any]) -> _Pair:
    """A maximum over windows: the change of the pixel that is the maximum, the first if several.

    Written as a race of the window's places, because no format but ONNX can gather by the place
    that a pooling found.
    """
    value, change = args[0], changes[0]
    size, stride, padding, dilation, ceil = (*args[1:], *(None,) * 5)[:5]
    size, padding = _two(size), _two(padding or 0)
    stride, dilation = _two(stride or size), _two(dilation or 1)
    if ceil or dilation != (1, 1):
        raise ConfigError("LQF: a max pooling with ceil_mode or dilation has no rule here")
    out = target(*args, **kwargs)
    sides = (padding[1], padding[1], padding[0], padding[0])
    value = nn.functional.pad(value, sides, value=torch.finfo(value.dtype).min)
    change = nn.functional.pad(change, sides)
    ends = [(n - 1) * s + 1 for n, s in zip(out.shape[2:], stride, strict=True)]
    best: Tensor | None = None
    won: Tensor | None = None
    for i in range(size[0]):
        for j in range(size[1]):
            here = (..., slice(i, i + ends[0], stride[0]), slice(j, j + ends[1], stride[1]))
            if best is None or won is None:
                best, won = value[here], change[here]
            else:
                won = torch.where(value[here] > best, change[here], won)
                best = torch.maximum(best, value[here])
    return out, won


def _two(of: Any) -> tuple[int, int]:
    """A number of both directions, or one for each."""
    both = (of, of) if isinstance(of, int) else tuple(of) * (2 // len(of))
    return both[0], both[1]


_RULES: dict[Any, _Rule] = {
    **dict.fromkeys((_aten.conv2d, _aten.linear), _layer),
    **dict.fromkeys((_aten.add, _aten.add_, _aten.sub), _add),
    **dict.fromkeys((_aten.relu, _aten.relu_), _leaky(0.0)),
    **dict.fromkeys((_aten.leaky_relu, _aten.leaky_relu_), _leaky()),
    **dict.fromkeys((_aten.clamp, _aten.clamp_), _clamp()),
    **dict.fromkeys((_aten.hardtanh, _aten.hardtanh_), _clamp(-1.0, 1.0)),
    _aten.max_pool2d: _max_pool,
    **dict.fromkeys(
        (
            _aten.adaptive_avg_pool2d,
            _aten.avg_pool2d,
            _aten.mean,
            _aten.flatten,
            _aten.view,
            _aten.reshape,
            _aten.permute,
            _aten.slice,
            _aten.select,
            _aten.contiguous,
            _aten.dropout,
            _aten.upsample_bilinear2d,
        ),
        _same,
    ),
    _aten.batch_norm: _norm,
    _aten.mul: _mul,
    _aten.cat: _cat,
}
