"""The operations of Core ML's intermediate language, each in PyTorch.

A function's parameters are the operation's inputs, with Core ML's own names and defaults. What an
operation can be given and a function does not take is thereby refused. Floats arrive as float32 and
are computed with as float32; the caller rounds the result to the type that the program declares.

Imports PyTorch, so it is imported where a program is run only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hetero.export import _mil_packed as packed
from hetero.export import _mil_spatial as spatial
from hetero.export._mil_spatial import bounded, ints


def _flags(value: Tensor | None, rank: int) -> list[bool]:
    return [False] * rank if value is None else [bool(x) for x in value.flatten().tolist()]


# -- linear algebra and normalisation ------------------------------------------------------------


def _matmul(
    x: Tensor, y: Tensor, transpose_x: Tensor | bool = False, transpose_y: Tensor | bool = False
) -> Tensor:
    return torch.matmul(x.mT if bool(transpose_x) else x, y.mT if bool(transpose_y) else y)


def _layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    over = sorted(a % x.ndim for a in ints(axes, range(x.ndim)))
    shape = [n if i in over else 1 for i, n in enumerate(x.shape)]
    centred = x - x.mean(over, keepdim=True)
    y = centred / (centred.square().mean(over, keepdim=True) + float(epsilon)).sqrt()
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, float(epsilon))


def _instance_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    y: Tensor = functional.instance_norm(x, weight=gamma, bias=beta, eps=float(epsilon))
    return y


def _reduction(run: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
        return run(x, ints(axes, range(x.ndim)), bool(keep_dims))

    return reduce


# -- element by element --------------------------------------------------------------------------


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    kinds = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}
    if mode not in kinds:
        raise ValueError(f"unknown mode {mode!r}")
    return functional.gelu(x, approximate=kinds[mode])


def _clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return x.clamp(float(alpha), float(beta))


def _sigmoid_hard(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return (alpha * x + beta).clamp(0.0, 1.0)


def _prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * alpha.reshape([-1] + [1] * (x.ndim - 2)))


def _float_div(x: Tensor, y: Tensor) -> Tensor:
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError("how whole numbers are divided is not specified")
    return x / y


def _cast(x: Tensor, dtype: str) -> Tensor:
    types = {
        "fp16": torch.float32,
        "fp32": torch.float32,
        "int32": torch.int32,
        "int16": torch.int32,
        "uint16": torch.int32,
        "int8": torch.int8,
        "uint8": torch.uint8,
        "bool": torch.bool,
    }
    if dtype not in types:
        raise ValueError(f"unknown dtype {dtype!r}")
    return x.to(types[dtype])  # towards zero, as Core ML has it


# -- shape ---------------------------------------------------------------------------------------


def _reshape(x: Tensor, shape: Tensor) -> Tensor:
    to = ints(shape, ())
    for back in range(1, len(to) + 1):
        # A zero keeps the axis of the same number, counted from the end.
        if to[-back] == 0:
            to[-back] = x.shape[-back] if back <= x.ndim else 1
    return x.reshape(to)


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(ints(axes, ()))


def _expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    at = ints(axes, ())
    rank = x.ndim + len(at)
    for axis in sorted(a % rank for a in at):
        x = x.unsqueeze(axis)
    return x


def _concat(values: list[Tensor], axis: Tensor, interleave: Tensor | bool = False) -> Tensor:
    if values[0].ndim == 0:
        return torch.stack(values)
    at = int(axis) % values[0].ndim
    if bool(interleave):
        return torch.stack(values, at + 1).flatten(at, at + 1)
    return torch.cat(values, at)


def _split(
    x: Tensor,
    axis: Tensor,
    num_splits: Tensor | None = None,
    split_sizes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    length = x.shape[int(axis)]
    if split_sizes is None:
        if num_splits is None or length % int(num_splits):
            raise ValueError(f"{length} cannot be split evenly into {num_splits}")
        sizes = [length // int(num_splits)] * int(num_splits)
    else:
        sizes = ints(split_sizes, ())
    return torch.split(x, sizes, int(axis))


def _tile(x: Tensor, reps: Tensor) -> Tensor:
    times = ints(reps, ())
    bounded(*x.shape, *times)
    return x.repeat(times)


def _slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    first, last = ints(begin, ()), ints(end, ())
    step = ints(stride, [1] * x.ndim)
    whole_begin, whole_end = _flags(begin_mask, x.ndim), _flags(end_mask, x.ndim)
    picks = _flags(squeeze_mask, x.ndim)
    index: list[int | slice] = []
    for i in range(x.ndim):
        low = None if whole_begin[i] else first[i]
        if picks[i]:
            index.append(low or 0)
        else:
            index.append(slice(low, None if whole_end[i] else last[i], step[i]))
    # Through NumPy, whose slices may run backwards.
    return torch.from_numpy(np.array(x.numpy()[tuple(index)], order="C"))


def _slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    for axis, (low, count) in enumerate(zip(ints(begin, ()), ints(size, ()), strict=True)):
        low = low % x.shape[axis]
        x = x.narrow(axis, low, x.shape[axis] - low if count == -1 else count)
    return x


def _gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    if int(batch_dims):
        raise ValueError(f"batch_dims {int(batch_dims)} is not implemented")
    del validate_indices  # an index out of range is an error in any case
    at = int(axis) % x.ndim
    picked = x.index_select(at, indices.flatten().long())
    return picked.reshape((*x.shape[:at], *indices.shape, *x.shape[at + 1 :]))


def _fill(
    x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0
) -> Tensor:
    flat = ints(pad, ())
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    bounded(*(n + sum(p) for n, p in zip(x.shape, pairs, strict=True)))
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if mode not in modes:
        raise ValueError(f"unknown mode {mode!r}")
    value: dict[str, Any] = {"constant_values": float(constant_val)} if mode == "constant" else {}
    return torch.from_numpy(np.pad(x.numpy(), pairs, modes[mode], **value))  # type: ignore[call-overload]


#: Operation -> what it does.
OPS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = MappingProxyType(
    {
        "conv": spatial.conv,
        "linear": lambda x, weight, bias=None: functional.linear(x, weight, bias),
        "matmul": _matmul,
        "max_pool": spatial.max_pool,
        "avg_pool": spatial.avg_pool,
        "layer_norm": _layer_norm,
        "batch_norm": _batch_norm,
        "instance_norm": _instance_norm,
        "reduce_mean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
        "reduce_sum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
        "reduce_max": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
        "reduce_min": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
        "reduce_sum_square": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
        "reduce_l2_norm": _reduction(
            lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()
        ),
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "real_div": _float_div,
        "pow": lambda x, y: x**y,
        "maximum": lambda x, y: torch.maximum(x, y),
        "minimum": lambda x, y: torch.minimum(x, y),
        "greater": lambda x, y: x > y,
        "less": lambda x, y: x < y,
        "select": lambda cond, a, b: torch.where(cond, a, b),
        "abs": lambda x: x.abs(),
        "square": lambda x: x * x,
        "sqrt": lambda x: x.sqrt(),
        "rsqrt": lambda x, epsilon=1e-12: 1 / (x + float(epsilon)).sqrt(),
        "inverse": lambda x, epsilon=1e-4: 1 / (x + float(epsilon)),
        "exp": lambda x: x.exp(),
        "log": lambda x, epsilon=1e-45: (x + float(epsilon)).log(),
        "erf": lambda x: x.erf(),
        "tanh": lambda x: x.tanh(),
        "clip": _clip,
        "relu": lambda x: x.relu(),
        "relu6": lambda x: x.clamp(0.0, 6.0),
        "leaky_relu": lambda x, alpha: torch.where(x >= 0, x, x * alpha),
        "prelu": _prelu,
        "elu": lambda x, alpha: torch.where(x > 0, x, alpha * torch.expm1(x)),
        "sigmoid": lambda x: x.sigmoid(),
        "sigmoid_hard": _sigmoid_hard,
        "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, torch.zeros_like(x)),
        "linear_activation": lambda x, alpha, beta: alpha * x + beta,
        "silu": lambda x: functional.silu(x),
        "softplus": lambda x: functional.softplus(x, threshold=1e9),
        "gelu": _gelu,
        "softmax": lambda x, axis=-1: x.softmax(int(axis)),
        "cast": _cast,
        "identity": lambda x: x,
        "reshape": _reshape,
        "transpose": lambda x, perm: x.permute(ints(perm, ())),
        "squeeze": _squeeze,
        "expand_dims": _expand_dims,
        "concat": _concat,
        "split": _split,
        "stack": lambda values, axis: torch.stack(values, int(axis)),
        "slice_by_index": _slice_by_index,
        "slice_by_size": _slice_by_size,
        "gather": _gather,
        "tile": _tile,
        "pad": _fill,
        "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
        "upsample_bilinear": spatial.upsample_bilinear,
        "upsample_nearest_neighbor": spatial.upsample_nearest_neighbor,
        "resize_bilinear": spatial.resize_bilinear,
        "quantize": packed.quantize,
        "dequantize": packed.dequantize,
        "const": lambda val: val,
        "constexpr_affine_dequantize": packed.affine_dequantize,
        "constexpr_blockwise_shift_scale": packed.blockwise_shift_scale,
        "constexpr_cast": lambda source_val, output_dtype: _cast(source_val, output_dtype),
        "constexpr_lut_to_dense": packed.lut_to_dense,
        "constexpr_sparse_to_dense": packed.sparse_to_dense,
    }
)
