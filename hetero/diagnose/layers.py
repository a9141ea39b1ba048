"""The first layer whose output departs: a file's inner tensors held against PyTorch's operations.

Nothing is kept whole. Of each tensor a fixed draw of its numbers stays for a handful of pictures,
so that memory does not grow with the model's maps or the number of pictures, and that is enough to
tell which PyTorch operation it equals: equal shape, equal numbers. A file's tensor that equals no
operation is innocent if something computed from it does (fused and rewritten operators leave such
tensors); the first one for which that is not so is where the fault is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hetero.diagnose._diagnosis import Layer
from hetero.diagnose._pipeline import Array
from hetero.preprocess import Preprocess

#: Numbers kept of each picture's tensor.
DRAW = 512

#: Relative difference up to which two tensors are equal, by precision of the file; and how many
#: times the difference of what it is computed from an innocent tensor's may be.
_EQUAL = MappingProxyType({"fp32": 1e-3, "fp16": 2e-2, "int8": 0.12})
_GROWTH = 2.5

#: Operators that move numbers and do not change them.
_MOVES = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "clone"),
        *("as_strided", "as_strided_", "detach", "contiguous", "alias", "unsqueeze", "squeeze"),
        *("_to_copy", "lift_fresh", "flatten"),
    }
)

_WEIGHTY = frozenset({"convolution", "addmm", "mm", "bmm", "linear"})
_POOLS = frozenset(
    {"mean", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "amax", "avg_pool2d", "max_pool2d"}
)


@dataclass(frozen=True, eq=False)
class Sketch:
    """A tensor, by a draw of its numbers.

    Attributes:
        name: In the file; of PyTorch's, the number of the operation.
        op: Operator.
        module: Path of the PyTorch module; "" in a file.
        shape: Of one picture, channels first, without sides of 1.
        draw: float32 (pictures, at most DRAW).
        inputs: Names of the tensors it is computed from, constants left out.
        low, high: Smallest and largest number of all pictures.
    """

    name: str
    op: str
    module: str
    shape: tuple[int, ...]
    draw: Float32[np.ndarray, "n k"]
    inputs: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0


def sketch(
    name: str,
    op: str,
    values: Array,
    *,
    module: str = "",
    inputs: Sequence[str] = (),
    channels_last: bool = False,
) -> Sketch:
    """The sketch of a tensor (pictures, ...).

    Args:
        name: See `Sketch`.
        op: See `Sketch`.
        values: All numbers, of any real type.
        module: See `Sketch`.
        inputs: See `Sketch`.
        channels_last: (n, h, w, c) rather than (n, c, h, w).
    """
    first = np.moveaxis(values, -1, 1) if channels_last and values.ndim >= 3 else values
    flat = np.asarray(first, dtype=np.float32).reshape(len(values), -1)
    size = flat.shape[1]
    where: Any = slice(None)
    if size > DRAW:
        where = np.sort(np.random.default_rng(size).choice(size, DRAW, replace=False))
    draw = np.ascontiguousarray(flat[:, where])
    shape = tuple(int(s) for s in first.shape[1:] if s != 1)
    return Sketch(
        name, op, module, shape, draw, tuple(inputs), float(flat.min()), float(flat.max())
    )


def torch_layers(
    net: Any, preprocess: Preprocess, pixels: UInt8[np.ndarray, "n s s 3"]
) -> list[Sketch]:
    """The result of every PyTorch operation of a net, with the module it belongs to, in order.

    Args:
        net: Takes normalised pictures.
        preprocess: What is done to pixels before it; its operations come first, module "".
        pixels: A handful of pictures.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from hetero.models import FromPixels

    whole = FromPixels(net, preprocess).eval()
    stack: list[str] = []
    found: list[Sketch] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            first = out[0] if isinstance(out, (tuple, list)) and out else out
            op = func.overloadpacket.__name__
            if (
                isinstance(first, torch.Tensor)
                and first.is_floating_point()
                and first.ndim >= 1
                and first.shape[0] == len(pixels)
                and op not in _MOVES
            ):
                module = (stack[-1] if stack else "").removeprefix("net").removeprefix(".")
                # The pixels' own arithmetic is NHWC.
                found.append(
                    sketch(
                        str(len(found)),
                        op,
                        first.detach().numpy(),
                        module=module if stack and stack[-1] != "" else "",
                        channels_last=not stack and first.ndim == 4,
                    )
                )
            return out

    handles = []
    for name, part in whole.named_modules():
        if name:
            handles.append(part.register_forward_pre_hook(_push(stack, name)))
            handles.append(part.register_forward_hook(_pop(stack)))
    try:
        with torch.no_grad(), Watch():  # type: ignore[no-untyped-call]
            whole(torch.from_numpy(np.ascontiguousarray(pixels)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _push(stack: list[str], name: str) -> Any:
    def before(_module: Any, _inputs: Any) -> None:
        stack.append(name)

    return before


def _pop(stack: list[str]) -> Any:
    def after(_module: Any, _inputs: Any, _out: Any) -> None:
        stack.pop()

    return after


def difference(a: Array, b: Array) -> float:
    """Length of the difference of two draws over the length of the second; 0 is equal."""
    whole = float(np.linalg.norm(b.astype(np.float64)))
    gap = float(np.linalg.norm(a.astype(np.float64) - b.astype(np.float64)))
    if not np.isfinite(gap):
        return float("inf")
    return gap / whole if whole > 1e-12 else (0.0 if gap < 1e-6 else float("inf"))


def first_departure(
    ours: Sequence[Sketch], theirs: Sequence[Sketch], precision: str
) -> Layer | None:
    """The first tensor of a file that departs, and the PyTorch operation it should equal.

    Args:
        ours: From `torch_layers`.
        theirs: Of the file, in the order in which it computes them.
        precision: Of the file.

    Returns:
        None if nothing departs, or nothing can be compared.
    """
    equal = _EQUAL[precision]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for at, one in enumerate(ours):
        by_shape.setdefault(one.shape, []).append(at)
    error: dict[str, float] = {}  # of each tensor of the file, carried along where it has no equal
    place: dict[str, int] = {}  # the last PyTorch operation that is known to lie before it
    own: dict[str, tuple[float, int]] = {}
    for tensor in theirs:
        before = max([0.0, *(error.get(i, 0.0) for i in tensor.inputs)])
        reached = max([-1, *(place.get(i, -1) for i in tensor.inputs)])
        same = [
            (difference(tensor.draw, ours[at].draw), at) for at in by_shape.get(tensor.shape, [])
        ]
        if same:
            # Of equal operations (a clamp that cuts nothing) the first not yet passed.
            best = min(same, key=lambda x: (round(x[0], 6), x[1] <= reached, x[1]))
            own[tensor.name] = best
        good = tensor.name in own and own[tensor.name][0] <= max(equal, _GROWTH * before)
        error[tensor.name] = own[tensor.name][0] if good else before
        place[tensor.name] = own[tensor.name][1] if good else reached
    redeemed = _redeemed(theirs, own, error, equal)
    matched = sum(gap <= equal for gap, _ in own.values())
    for tensor in theirs:
        if tensor.name not in own or tensor.name in redeemed:
            continue
        before = max([0.0, *(error.get(i, 0.0) for i in tensor.inputs)])
        gap, nearest = own[tensor.name]
        if gap <= max(equal, _GROWTH * before):
            continue
        reached = max([-1, *(place.get(i, -1) for i in tensor.inputs)])
        at, how, sure = _counterpart(ours, tensor, by_shape[tensor.shape], reached, nearest)
        return Layer(
            tensor.name,
            tensor.op,
            ours[at].module,
            _stage(ours, at),
            ours[at].op,
            difference(tensor.draw, ours[at].draw),
            before,
            how,
            sure,
            len(own),
            matched,
        )
    return None


def _redeemed(
    theirs: Sequence[Sketch],
    own: dict[str, tuple[float, int]],
    error: dict[str, float],
    equal: float,
) -> set[str]:
    """Tensors from which something is computed that is right."""
    out: set[str] = set()
    for tensor in reversed(theirs):
        right = tensor.name in own and own[tensor.name][0] <= max(
            equal, _GROWTH * max([0.0, *(min(error.get(i, 0.0), equal) for i in tensor.inputs)])
        )
        if right or tensor.name in out:
            out.update(tensor.inputs)
    return out


def _counterpart(
    ours: Sequence[Sketch], tensor: Sketch, same: Sequence[int], reached: int, nearest: int
) -> tuple[int, str, float]:
    """The PyTorch operation that a departing tensor should equal, how it was found, how surely."""
    later = [at for at in same if at > reached] or list(same)
    alike = [(_correlation(tensor.draw, ours[at].draw), -at) for at in later]
    best, at = max(alike)
    # A bias or scale that is wrong leaves the numbers correlated; weights that are wrong do not.
    if best >= 0.8 and (-at == nearest or best >= 0.9):
        return -at, "values", best
    return later[0], "order and shape", 0.6 if len(later) > 1 else 0.8


def _correlation(a: Array, b: Array) -> float:
    x, y = a.ravel() - a.mean(), b.ravel() - b.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    found = float(x @ y) / size if size > 1e-12 else 0.0
    return found if np.isfinite(found) else 0.0


def _stage(ours: Sequence[Sketch], at: int) -> str:
    """The stage that a PyTorch operation is by itself; "" for a layer like others."""
    op, module = ours[at].op, ours[at].module
    weighty = [i for i, x in enumerate(ours) if x.op in _WEIGHTY]
    if weighty and at < weighty[0]:
        return "normalise"
    if weighty and at > weighty[-1] and not module:
        return "l2"
    return "pooling" if op in _POOLS else ""


def groups(names: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """The names, `size` at a time."""
    for at in range(0, len(names), size):
        yield tuple(names[at : at + size])
