"""Core ML's operations on neighbourhoods, in PyTorch: convolution, pooling, resizing.

Parameters carry Core ML's own names and defaults; see `_mil_ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hetero.export._mil_file import MAX_ELEMENTS


def ints(value: Tensor | None, default: Sequence[int]) -> list[int]:
    """The whole numbers in a tensor, or the default where there is none."""
    return list(default) if value is None else [int(x) for x in value.flatten().tolist()]


def bounded(*sizes: int) -> None:
    """Nothing, if a tensor of these sizes can be meant; asked before one is made.

    Raises:
        ValueError: It would fill the memory.
    """
    if math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError(f"a tensor of shape {sizes} is larger than any phone's memory")


def _around(
    x: Tensor, window: Sequence[int], step: Sequence[int], pad_type: str, pad: Tensor | None
) -> list[tuple[int, int]]:
    """Padding (before, after) of each spatial axis.

    Args:
        x: (n, c, *spatial).
        window: Size of the window, dilation included.
        step: Strides.
        pad_type: "valid", "custom", "same" (odd padding goes after) or "same_lower" (before).
        pad: For "custom": before and after, axis by axis.
    """
    axes = range(x.ndim - 2)
    if pad_type == "valid":
        return [(0, 0) for _ in axes]
    if pad_type == "custom":
        flat = ints(pad, [0] * 2 * len(axes))
        return [(flat[2 * i], flat[2 * i + 1]) for i in axes]
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"unknown pad_type {pad_type!r}")
    found = []
    for i, size in enumerate(x.shape[2:]):
        total = max(0, (math.ceil(size / step[i]) - 1) * step[i] + window[i] - size)
        less, more = total // 2, total - total // 2
        found.append((less, more) if pad_type == "same" else (more, less))
    return found


def _pad(x: Tensor, around: Sequence[tuple[int, int]], value: float) -> Tensor:
    flat = [n for pair in reversed(around) for n in pair]
    bounded(*x.shape[:2], *(n + sum(p) for n, p in zip(x.shape[2:], around, strict=True)))
    return functional.pad(x, flat, value=value) if any(flat) else x


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """Convolution in one or two dimensions."""
    n = x.ndim - 2
    step, dilation = ints(strides, [1] * n), ints(dilations, [1] * n)
    window = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    run = functional.conv1d if n == 1 else functional.conv2d
    around = _around(x, window, step, pad_type, pad)
    even = all(a == b for a, b in around)  # then the convolution pads by itself, without a copy
    padding = [a for a, _ in around] if even else [0] * n
    y: Tensor = run(
        x if even else _pad(x, around, 0.0), weight, bias, step, padding, dilation, int(groups)
    )
    return y


def _windows(
    x: Tensor, kernel: list[int], step: list[int], around: list[tuple[int, int]], ceil: bool
) -> tuple[list[tuple[int, int]], list[int]]:
    """Padding so far after that all windows are whole, and the number of windows, per axis."""
    out, whole = [], []
    for size, k, s, (before, after) in zip(x.shape[2:], kernel, step, around, strict=True):
        total = size + before + after
        count = (total - k + (s - 1 if ceil else 0)) // s + 1
        # A window that would begin in the padding after the picture is dropped.
        if ceil and (count - 1) * s >= size + before and before + after > 0:
            count -= 1
        if (count - 1) * s >= size + before:
            raise ValueError("a window that begins behind the picture is not specified")
        out.append(count)
        whole.append((before, after + max(0, (count - 1) * s + k - total)))
    return whole, out


def _pool(
    run: Callable[..., Tensor], x: Tensor, kernel: list[int], step: list[int], out: list[int]
) -> Tensor:
    y = run(x, kernel, step)
    for axis, count in enumerate(out, start=2):
        y = y.narrow(axis, 0, count)
    return y


def max_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """The largest element of each window."""
    n = x.ndim - 2
    kernel, step = ints(kernel_sizes, ()), ints(strides, [1] * n)
    around = _around(x, kernel, step, pad_type, pad)
    whole, out = _windows(x, kernel, step, around, bool(ceil_mode))
    run = functional.max_pool1d if n == 1 else functional.max_pool2d
    return _pool(run, _pad(x, whole, -math.inf), kernel, step, out)


def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | bool = False,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """The mean of each window."""
    n = x.ndim - 2
    kernel, step = ints(kernel_sizes, ()), ints(strides, [1] * n)
    around = _around(x, kernel, step, pad_type, pad)
    whole, out = _windows(x, kernel, step, around, bool(ceil_mode))
    exclude = bool(exclude_padding_from_average)
    if whole != around and not exclude:
        raise ValueError("whether windows that reach over the end count whole is not specified")
    run = functional.avg_pool1d if n == 1 else functional.avg_pool2d
    y = _pool(run, _pad(x, whole, 0.0), kernel, step, out)
    if exclude and any(a or b for a, b in whole):
        y = y / _pool(run, _pad(torch.ones_like(x), whole, 0.0), kernel, step, out)
    return y


# -- resizing ------------------------------------------------------------------------------------


def _scaled(size: int, factor: Tensor | int) -> int:
    """The size after scaling, as coremltools computes it: a product in float32, rounded down."""
    scale = factor.item() if isinstance(factor, Tensor) else factor
    return math.floor(np.float32(scale) * np.float32(size))


def _blend(x: Tensor, axis: int, at: NDArray[Any]) -> Tensor:
    """Linear interpolation along an axis, at these positions."""
    size = x.shape[axis]
    bounded(x.numel() // size, len(at))
    at = np.clip(at, 0, size - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    part = torch.from_numpy((at - low).astype(np.float32))
    part = part.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    left = x.index_select(axis, torch.from_numpy(low))
    return left + (x.index_select(axis, torch.from_numpy(high)) - left) * part


def _grid(size: int, out: int, mode: str) -> NDArray[Any]:
    """Where the `out` samples of an axis lie, in units of its own elements."""
    bounded(out)
    i = np.arange(out, dtype=np.float64)
    if mode == "ALIGN_CORNERS" and out == 1:
        return np.array([(size - 1) / 2])
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        return i * ((size - 1) / max(1, out - 1))
    if mode == "UNALIGN_CORNERS":
        return (i + 0.5) * (size / out) - 0.5
    if mode == "DEFAULT":
        return i * (size / out)
    raise ValueError(f"sampling mode {mode!r} is not implemented")


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Tensor | int = 1,
    scale_factor_width: Tensor | int = 1,
    align_corners: Tensor | bool = True,
    half_pixel_centers: Tensor | bool | None = None,
) -> Tensor:
    """The last two axes scaled, bilinear."""
    aligned = bool(align_corners)
    half = not aligned if half_pixel_centers is None else bool(half_pixel_centers)
    if aligned and half:
        raise ValueError("align_corners and half_pixel_centers exclude each other")
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if half else "DEFAULT"
    height = _scaled(x.shape[-2], scale_factor_height)
    width = _scaled(x.shape[-1], scale_factor_width)
    x = _blend(x, -2, _grid(x.shape[-2], height, mode))
    return _blend(x, -1, _grid(x.shape[-1], width, mode))


def resize_bilinear(
    x: Tensor,
    target_size_height: Tensor | int = 1,
    target_size_width: Tensor | int = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last two axes brought to a size, bilinear."""
    x = _blend(x, -2, _grid(x.shape[-2], int(target_size_height), sampling_mode))
    return _blend(x, -1, _grid(x.shape[-1], int(target_size_width), sampling_mode))


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Tensor | int = 1, scale_factor_width: Tensor | int = 1
) -> Tensor:
    """The last two axes scaled, nearest neighbour."""
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        size = x.shape[axis]
        out = _scaled(size, factor)
        if abs(float(factor) * size - out) > 1e-3:
            raise ValueError(f"{size} scaled by {float(factor):g} is no whole number")
        bounded(x.numel() // size, out)
        x = x.index_select(axis, torch.arange(out) * size // out)
    return x
