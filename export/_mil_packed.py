"""Core ML's compressed constants, and its quantised activations, in PyTorch.

Parameters carry Core ML's own names and defaults; see `_mil_ops`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hetero.export._mil_spatial import bounded, ints


def _along(value: Tensor, x: Tensor, axis: Tensor | int | None) -> Tensor:
    """A scalar as it is; a vector shaped so that it varies along an axis of `x`."""
    if value.ndim == 0:
        return value
    at = int(axis or 0) % x.ndim
    return value.reshape([-1 if i == at else 1 for i in range(x.ndim)])


def affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor
) -> Tensor:
    """Floats: scale · (data - zero point), each one number or one per index of an axis."""
    zero = _along(zero_point.float(), quantized_data, axis)
    return _along(scale, quantized_data, axis) * (quantized_data.float() - zero)


def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Floats: scale · (data - offset), one of each per block of the data."""

    def blown_up(value: Tensor) -> Tensor:
        for axis, (n, size) in enumerate(zip(value.shape, data.shape, strict=True)):
            if size % n:
                raise ValueError(f"{n} blocks do not divide axis {axis} of length {size}")
            value = value.repeat_interleave(size // n, axis)
        return value

    shifted = data.float() if offset is None else data.float() - blown_up(offset.float())
    return blown_up(scale) * shifted


def lut_to_dense(indices: Tensor, lut: Tensor, shape: Tensor) -> Tensor:
    """The table's entries that packed indices name, lowest bits first."""
    size = ints(shape, ())
    bounded(*size)
    bits = len(lut).bit_length() - 1
    if len(lut) not in (2, 4, 16, 64, 256):
        raise ValueError(f"a table of {len(lut)} entries")
    flat = np.unpackbits(indices.numpy(), bitorder="little")[: math.prod(size) * bits]
    which = flat.reshape(-1, bits) @ (1 << np.arange(bits))
    return lut[torch.from_numpy(which)].reshape(size)


def sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Tensor) -> Tensor:
    """The values at the places whose bit is set, lowest bits first, and zeros."""
    size = ints(shape, ())
    bounded(*size)
    where = np.unpackbits(mask.numpy(), bitorder="little")[: math.prod(size)].astype(bool)
    if where.sum() != len(nonzero_data):
        raise ValueError(f"{len(nonzero_data)} values for {where.sum()} places")
    dense = torch.zeros(math.prod(size), dtype=nonzero_data.dtype)
    dense[torch.from_numpy(where)] = nonzero_data
    return dense.reshape(size)


def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    """Integers: round(input / scale) + zero point, within the type's range."""
    limits = {"int8": (torch.int8, -128, 127), "uint8": (torch.uint8, 0, 255)}
    if output_dtype not in limits:
        raise ValueError(f"unknown output_dtype {output_dtype!r}")
    dtype, low, high = limits[output_dtype]
    y = (input / _along(scale, input, axis)).round()  # halves to even, as NumPy and coremltools
    y = y if zero_point is None else y + _along(zero_point.float(), input, axis)
    return y.clamp(low, high).to(dtype)


def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    """Floats: scale · (input - zero point)."""
    y = input.float()
    y = y if zero_point is None else y - _along(zero_point.float(), input, axis)
    return y * _along(scale, input, axis)
