"""The reference interpreter, op by op, against coremltools' own value inference or PyTorch."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
ct = pytest.importorskip("coremltools")

import torch  # noqa: E402
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.mil import types  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from hetero.errors import BundleError, ExportError  # noqa: E402
from hetero.export import _mil, _mil_store  # noqa: E402

Build = Callable[[Any], Any]

# What the libraries warn of is theirs; coremltools leaves its folders to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_not_garbage() -> Iterator[None]:
    """coremltools collects garbage in every conversion; nine tenths of the time went there."""
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()


def _random(*shape: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _model(build: Build, x: NDArray[Any], precision: str = "fp32", target: Any = None) -> Any:
    """coremltools' model of a program with the input x, made without any optimising pass."""
    target = target or ct.target.iOS17
    dtype = types.fp16 if precision == "fp16" else types.fp32
    spec = mb.TensorSpec(shape=x.shape, dtype=dtype)

    @mb.program(input_specs=[spec], opset_version=target)
    def program(x: Any) -> Any:
        return build(x)

    return ct.convert(
        program,
        convert_to="mlprogram",
        pass_pipeline=ct.PassPipeline.EMPTY,
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=target,
        skip_model_load=True,
    )


def _execute(
    build: Build, x: NDArray[Any], precision: str = "fp32", target: Any = None
) -> list[NDArray[Any]]:
    """What the interpreter gives for the program, one array per output."""
    model = _model(build, x, precision, target)
    program = _mil.load(Path(model.package_path))
    out = _mil.run(program, {"x": x})
    return [out[name] for name in program.package.results]


def _inferred(
    build: Build, x: NDArray[Any], attribute: str = "val", target: Any = None
) -> list[NDArray[Any]]:
    """What coremltools itself computes for the program when x is a constant."""
    found: list[NDArray[Any]] = []

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=target or ct.target.iOS17)
    def program(dummy: Any) -> Any:
        result = build(mb.const(val=x))
        for one in result if isinstance(result, (list, tuple)) else [result]:
            value = one.val if attribute == "val" else one.op.materialized_val_inference()
            assert value is not None, "coremltools has no value inference for this"
            found.append(np.asarray(value))
        return dummy

    return found


X4 = _random(2, 4, 5, 6)
X3 = _random(2, 3, 8)
POSITIVE = np.abs(_random(2, 3, 4)) + 0.1

#: Name -> program, input. The oracle is coremltools' value inference.
INFERRED: dict[str, tuple[Build, NDArray[Any]]] = {
    "matmul": (lambda x: mb.matmul(x=x, y=_random(6, 3)), X4),
    "matmul transposed x": (lambda x: mb.matmul(x=x, y=_random(5, 3), transpose_x=True), X4),
    "matmul transposed y": (lambda x: mb.matmul(x=x, y=_random(3, 6), transpose_y=True), X4),
    "linear": (lambda x: mb.linear(x=x, weight=_random(5, 8), bias=_random(5)), X3),
    "linear without bias": (lambda x: mb.linear(x=x, weight=_random(5, 8)), X3),
    "layer_norm last": (
        lambda x: mb.layer_norm(
            x=x, axes=[-1], gamma=_random(6), beta=_random(6, seed=1), epsilon=1e-3
        ),
        X4,
    ),
    "layer_norm middle": (lambda x: mb.layer_norm(x=x, axes=[1], gamma=_random(4)), X4),
    "layer_norm two axes": (
        lambda x: mb.layer_norm(x=x, axes=[1, 3], gamma=_random(4, 6), beta=_random(4, 6, seed=1)),
        X4,
    ),
    "reduce_mean": (lambda x: mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True), X4),
    "reduce_mean flat": (lambda x: mb.reduce_mean(x=x, axes=[-1], keep_dims=False), X4),
    "reduce_sum": (lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=True), X4),
    "reduce_sum all": (lambda x: mb.reduce_sum(x=x), X4),
    "reduce_max": (lambda x: mb.reduce_max(x=x, axes=[1, 2]), X4),
    "reduce_min": (lambda x: mb.reduce_min(x=x, axes=[3]), X4),
    "reduce_l2_norm": (lambda x: mb.reduce_l2_norm(x=x, axes=[1], keep_dims=True), X4),
    "reduce_sum_square": (lambda x: mb.reduce_sum_square(x=x, axes=[1], keep_dims=True), X4),
    "add": (lambda x: mb.add(x=x, y=_random(4, 1, 1)), X4),
    "sub": (lambda x: mb.sub(x=_random(4, 1, 1), y=x), X4),
    "mul": (lambda x: mb.mul(x=x, y=np.float32(3)), X4),
    "real_div": (lambda x: mb.real_div(x=_random(6), y=x), X4),
    "pow": (lambda x: mb.pow(x=x, y=np.float32(1.5)), POSITIVE),
    "maximum": (lambda x: mb.maximum(x=x, y=np.float32(0.25)), X4),
    "minimum": (lambda x: mb.minimum(x=x, y=_random(5, 6)), X4),
    "select greater": (
        lambda x: mb.select(
            cond=mb.greater(x=x, y=np.float32(0.25)), a=x, b=mb.mul(x=x, y=np.float32(0.5))
        ),
        X4,
    ),
    "select less": (
        lambda x: mb.select(
            cond=mb.less(x=x, y=_random(5, 6)), a=mb.mul(x=x, y=np.float32(0.5)), b=x
        ),
        X4,
    ),
    "abs": (lambda x: mb.abs(x=x), X4),
    "square": (lambda x: mb.square(x=x), X4),
    "sqrt": (lambda x: mb.sqrt(x=x), POSITIVE),
    "rsqrt": (lambda x: mb.rsqrt(x=x, epsilon=0.5), POSITIVE),
    "inverse": (lambda x: mb.inverse(x=x, epsilon=0.5), POSITIVE),
    "exp": (lambda x: mb.exp(x=x), X4),
    "log": (lambda x: mb.log(x=x, epsilon=0.5), POSITIVE),
    "erf": (lambda x: mb.erf(x=x), X4),
    "tanh": (lambda x: mb.tanh(x=x), X4),
    "clip": (lambda x: mb.clip(x=x, alpha=-0.5, beta=0.75), X4),
    "relu": (lambda x: mb.relu(x=x), X4),
    "relu6": (lambda x: mb.relu6(x=x), X4 * 8),
    "leaky_relu": (lambda x: mb.leaky_relu(x=x, alpha=0.2), X4),
    "prelu": (lambda x: mb.prelu(x=x, alpha=_random(4)), X4),
    "elu": (lambda x: mb.elu(x=x, alpha=0.7), X4),
    "sigmoid": (lambda x: mb.sigmoid(x=x), X4),
    "sigmoid_hard": (lambda x: mb.sigmoid_hard(x=x, alpha=0.4, beta=0.3), X4),
    "thresholded_relu": (lambda x: mb.thresholded_relu(x=x, alpha=0.3), X4),
    "linear_activation": (lambda x: mb.linear_activation(x=x, alpha=0.4, beta=-2.0), X4),
    "softplus": (lambda x: mb.softplus(x=x), X4 * 8),
    "softmax": (lambda x: mb.softmax(x=x, axis=1), X4),
    "softmax default": (lambda x: mb.softmax(x=x), X4),
    "gelu exact": (lambda x: mb.gelu(x=x, mode="EXACT"), X4),
    "gelu default": (lambda x: mb.gelu(x=x), X4),
    "gelu tanh": (lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"), X4),
    "gelu sigmoid": (lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), X4),
    "cast towards zero": (lambda x: mb.cast(x=mb.cast(x=x, dtype="int32"), dtype="fp32"), X4 * 3),
    "reshape": (lambda x: mb.reshape(x=x, shape=[2, -1, 3]), X4),
    "reshape zero": (lambda x: mb.reshape(x=x, shape=[1, 0, -1, 0, 0]), X4),
    "reshape zero without an axis": (
        lambda x: mb.reshape(x=x, shape=[1, 0, -1, 0]),
        _random(2, 50),
    ),
    "transpose": (lambda x: mb.transpose(x=x, perm=[0, 2, 3, 1]), X4),
    "squeeze": (lambda x: mb.squeeze(x=x, axes=[1, -1]), X4[:, :1, :, :1]),
    "squeeze all": (lambda x: mb.squeeze(x=x), X4[:, :1, :, :1]),
    "expand_dims": (lambda x: mb.expand_dims(x=x, axes=[0, -1]), X3),
    "concat": (lambda x: mb.concat(values=[x, _random(2, 1, 8)], axis=-2), X3),
    "concat scalars": (
        lambda x: mb.concat(values=[mb.reduce_sum(x=x), mb.reduce_max(x=x)], axis=0),
        X3,
    ),
    "stack": (lambda x: mb.stack(values=[x, _random(2, 3, 8)], axis=1), X3),
    "split evenly": (lambda x: mb.split(x=x, num_splits=4, axis=-1), X3),
    "split unevenly": (lambda x: mb.split(x=x, split_sizes=[1, 5, 2], axis=2), X3),
    "tile": (lambda x: mb.tile(x=x, reps=[2, 1, 3]), X3),
    "slice_by_index": (
        lambda x: mb.slice_by_index(x=x, begin=[0, 1, 2, -3], end=[2, 4, -1, 6]),
        X4,
    ),
    "slice_by_index strided": (
        lambda x: mb.slice_by_index(
            x=x, begin=[0, 0, 1, 5], end=[2, 4, 5, 0], stride=[1, 2, 3, -2]
        ),
        X4,
    ),
    "slice_by_index masks": (
        lambda x: mb.slice_by_index(
            x=x,
            begin=[1, 3, 2, 1],
            end=[1, 1, 3, 2],
            begin_mask=[False, True, False, True],
            end_mask=[False, False, True, False],
            squeeze_mask=[True, False, False, True],
        ),
        X4,
    ),
    "slice_by_index backwards": (
        lambda x: mb.slice_by_index(
            x=x,
            begin=[0, 0, 0],
            end=[0, 0, 0],
            stride=[1, 1, -1],
            begin_mask=[True, True, True],
            end_mask=[True, True, True],
        ),
        X3,
    ),
    "slice_by_index last": (
        lambda x: mb.slice_by_index(
            x=x, begin=[0, 0, -1], end=[2, 3, 0], squeeze_mask=[False, False, True]
        ),
        X3,
    ),
    "slice_by_size": (lambda x: mb.slice_by_size(x=x, begin=[0, 1, 3], size=[2, -1, 4]), X3),
    "gather": (lambda x: mb.gather(x=x, indices=[[2, 0], [1, 1]], axis=1), X3),
    "quantize": (
        lambda x: mb.cast(
            x=mb.quantize(input=x, scale=0.05, zero_point=np.int8(3), output_dtype="int8"),
            dtype="fp32",
        ),
        X4 * 4,
    ),
    "quantize per axis": (
        lambda x: mb.cast(
            x=mb.quantize(
                input=x,
                scale=np.array([0.5, 0.1, 0.02, 0.25], np.float32),
                zero_point=np.array([100, 128, 0, 255], np.uint8),
                axis=1,
                output_dtype="uint8",
            ),
            dtype="fp32",
        ),
        X4,
    ),
    "quantize halves to even": (
        lambda x: mb.cast(x=mb.quantize(input=x, scale=1.0, output_dtype="int8"), dtype="fp32"),
        np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 200, -200]], np.float32),
    ),
}


@pytest.mark.parametrize("name", INFERRED)
def test_an_op_gives_what_coremltools_infers(name: str) -> None:
    build, x = INFERRED[name]
    expected = _inferred(build, x.copy())
    got = _execute(build, x)
    assert len(got) == len(expected)
    for one, right in zip(got, expected, strict=True):
        assert one.shape == right.shape
        np.testing.assert_allclose(one, right, rtol=2e-5, atol=2e-6)


def _torch(x: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def _grid_tf(x: NDArray[Any], out: tuple[int, int]) -> NDArray[Any]:
    """Bilinear with sample i at i·in/out, written out with np.interp."""
    for axis, size in zip((-2, -1), out, strict=True):
        n = x.shape[axis]
        at = np.arange(size) * n / size
        x = np.apply_along_axis(lambda v, a=at, k=n: np.interp(a, np.arange(k), v), axis, x)
    return x


X = _random(1, 4, 9, 11)
W = _random(6, 4, 3, 3, seed=1)
DEEP = _random(8, 1, 3, 3, seed=2)
BIAS = _random(6, seed=3)

#: Name -> program, input, and what PyTorch or NumPy gives. coremltools infers none of these.
REFERENCED: dict[str, tuple[Build, NDArray[Any], Callable[[torch.Tensor], Any]]] = {
    "conv valid": (
        lambda x: mb.conv(x=x, weight=W, bias=BIAS, pad_type="valid"),
        X,
        lambda x: F.conv2d(x, _torch(W), _torch(BIAS)),
    ),
    "conv default": (lambda x: mb.conv(x=x, weight=W), X, lambda x: F.conv2d(x, _torch(W))),
    "conv strided, dilated, unequal padding": (
        lambda x: mb.conv(
            x=x,
            weight=W,
            pad_type="custom",
            pad=[1, 2, 0, 3],
            strides=[2, 1],
            dilations=[1, 2],
        ),
        X,
        lambda x: F.conv2d(F.pad(x, (0, 3, 1, 2)), _torch(W), stride=(2, 1), dilation=(1, 2)),
    ),
    "conv same, odd padding after": (
        lambda x: mb.conv(x=x, weight=_random(6, 4, 2, 2), pad_type="same", strides=[1, 2]),
        X,
        # 9 rows by stride 1 need 1 more, 11 columns by stride 2 need 1 more: below and right.
        lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), _torch(_random(6, 4, 2, 2)), stride=(1, 2)),
    ),
    "conv same_lower, odd padding before": (
        lambda x: mb.conv(x=x, weight=_random(6, 4, 2, 2), pad_type="same_lower"),
        X,
        lambda x: F.conv2d(F.pad(x, (1, 0, 1, 0)), _torch(_random(6, 4, 2, 2))),
    ),
    "conv same keeps the size": (
        lambda x: mb.conv(x=x, weight=W, pad_type="same"),
        X,
        lambda x: F.conv2d(x, _torch(W), padding=1),
    ),
    "conv same where nothing is missing": (
        lambda x: mb.conv(x=x, weight=_random(6, 4, 1, 1), pad_type="same"),
        X,
        lambda x: F.conv2d(x, _torch(_random(6, 4, 1, 1))),
    ),
    "conv in groups": (
        lambda x: mb.conv(x=x, weight=_random(6, 2, 3, 3), groups=2),
        X,
        lambda x: F.conv2d(x, _torch(_random(6, 2, 3, 3)), groups=2),
    ),
    "conv depthwise, two each": (
        lambda x: mb.conv(x=x, weight=DEEP, groups=4, pad_type="custom", pad=[1, 1, 1, 1]),
        X,
        lambda x: F.conv2d(x, _torch(DEEP), groups=4, padding=1),
    ),
    "conv in one dimension": (
        lambda x: mb.conv(x=x, weight=_random(5, 3, 2), strides=[2]),
        X3,
        lambda x: F.conv1d(x, _torch(_random(5, 3, 2)), stride=2),
    ),
    "max_pool": (
        lambda x: mb.max_pool(
            x=x, kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        X,
        lambda x: F.max_pool2d(x, (3, 2), 2, (1, 1)),
    ),
    "max_pool in one dimension": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[3], strides=[2], pad_type="valid"),
        X3,
        lambda x: F.max_pool1d(x, 3, 2),
    ),
    "max_pool default stride is 1": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2], pad_type="valid"),
        X,
        lambda x: F.max_pool2d(x, 2, 1),
    ),
    "max_pool same": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="same"),
        X,
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 2, 2),
    ),
    "max_pool ceil": (
        lambda x: mb.max_pool(
            x=x, kernel_sizes=[2, 3], strides=[2, 3], pad_type="valid", ceil_mode=True
        ),
        X,
        lambda x: F.max_pool2d(x, (2, 3), (2, 3), ceil_mode=True),
    ),
    "max_pool ceil drops a window in the padding": (
        lambda x: mb.max_pool(
            x=x,
            kernel_sizes=[2, 2],
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            ceil_mode=True,
        ),
        X,
        lambda x: F.max_pool2d(x, 2, 2, 1, ceil_mode=True),
    ),
    "max_pool ceil keeps a window that begins in the picture": (
        lambda x: mb.max_pool(
            x=x,
            kernel_sizes=[3, 3],
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            ceil_mode=True,
        ),
        _random(1, 2, 10, 12),
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    ),
    "avg_pool in one dimension": (
        lambda x: mb.avg_pool(x=x, kernel_sizes=[3], strides=[2], pad_type="valid"),
        X3,
        lambda x: F.avg_pool1d(x, 3, 2),
    ),
    "avg_pool counts padding": (
        lambda x: mb.avg_pool(
            x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        X,
        lambda x: F.avg_pool2d(x, 3, 2, 1),
    ),
    "avg_pool without padding": (
        lambda x: mb.avg_pool(
            x=x,
            kernel_sizes=[3, 3],
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            exclude_padding_from_average=True,
        ),
        X,
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    "avg_pool ceil": (
        lambda x: mb.avg_pool(
            x=x,
            kernel_sizes=[2, 2],
            strides=[2, 2],
            pad_type="valid",
            ceil_mode=True,
            exclude_padding_from_average=True,
        ),
        X,
        lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False),
    ),
    "batch_norm": (
        lambda x: mb.batch_norm(
            x=x,
            mean=_random(4),
            variance=np.abs(_random(4, seed=1)),
            gamma=_random(4, seed=2),
            beta=_random(4, seed=3),
            epsilon=1e-2,
        ),
        X,
        lambda x: F.batch_norm(
            x,
            _torch(_random(4)),
            _torch(np.abs(_random(4, seed=1))),
            _torch(_random(4, seed=2)),
            _torch(_random(4, seed=3)),
            eps=1e-2,
        ),
    ),
    "batch_norm default": (
        lambda x: mb.batch_norm(x=x, mean=_random(4), variance=np.abs(_random(4, seed=1))),
        X,
        lambda x: F.batch_norm(x, _torch(_random(4)), _torch(np.abs(_random(4, seed=1)))),
    ),
    "instance_norm": (
        lambda x: mb.instance_norm(x=x, gamma=_random(4), beta=_random(4, seed=1), epsilon=1e-3),
        X,
        lambda x: F.instance_norm(
            x, weight=_torch(_random(4)), bias=_torch(_random(4, seed=1)), eps=1e-3
        ),
    ),
    "silu": (lambda x: mb.silu(x=x), X, F.silu),
    "identity": (lambda x: mb.identity(x=x), X, lambda x: x),
    "concat interleaved": (
        lambda x: mb.concat(values=[x, mb.mul(x=x, y=np.float32(2))], axis=1, interleave=True),
        X,
        # A channel shuffle in two groups: 0 4 1 5 2 6 3 7.
        lambda x: torch.cat([x, 2 * x], 1)[:, [0, 4, 1, 5, 2, 6, 3, 7]],
    ),
    "concat interleaved, last axis": (
        lambda x: mb.concat(values=[x, mb.mul(x=x, y=np.float32(2))], axis=-1, interleave=True),
        X3,
        lambda x: torch.stack([x, 2 * x], -1).reshape(2, 3, 16),
    ),
    "pad constant": (
        lambda x: mb.pad(x=x, pad=[1, 2, 3, 0], mode="constant", constant_val=7.0),
        X,
        lambda x: F.pad(x, (3, 0, 1, 2), value=7.0),
    ),
    "pad reflect": (
        lambda x: mb.pad(x=x, pad=[1, 2, 3, 0], mode="reflect"),
        X,
        lambda x: F.pad(x, (3, 0, 1, 2), mode="reflect"),
    ),
    "pad replicate": (
        lambda x: mb.pad(x=x, pad=[1, 2, 3, 0], mode="replicate"),
        X,
        lambda x: F.pad(x, (3, 0, 1, 2), mode="replicate"),
    ),
    "upsample_bilinear aligned": (
        lambda x: mb.upsample_bilinear(
            x=x, scale_factor_height=2, scale_factor_width=3, align_corners=True
        ),
        X,
        lambda x: F.interpolate(x, (18, 33), mode="bilinear", align_corners=True),
    ),
    "upsample_bilinear default is aligned": (
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=2),
        X,
        lambda x: F.interpolate(x, (18, 22), mode="bilinear", align_corners=True),
    ),
    "upsample_bilinear half pixel": (
        lambda x: mb.upsample_bilinear(
            x=x, scale_factor_height=2, scale_factor_width=3, align_corners=False
        ),
        X,
        lambda x: F.interpolate(x, (18, 33), mode="bilinear", align_corners=False),
    ),
    "upsample_bilinear by a fraction": (
        lambda x: mb.upsample_bilinear(
            x=x,
            scale_factor_height=1.5,
            scale_factor_width=2.25,
            align_corners=False,
            half_pixel_centers=True,
        ),
        X,
        lambda x: F.interpolate(x, (13, 24), mode="bilinear", align_corners=False),
    ),
    "upsample_bilinear neither": (
        lambda x: mb.upsample_bilinear(
            x=x,
            scale_factor_height=2,
            scale_factor_width=2,
            align_corners=False,
            half_pixel_centers=False,
        ),
        X,
        lambda x: _grid_tf(x.numpy(), (18, 22)),
    ),
    "resize_bilinear half pixel": (
        lambda x: mb.resize_bilinear(
            x=x, target_size_height=5, target_size_width=17, sampling_mode="UNALIGN_CORNERS"
        ),
        X,
        lambda x: F.interpolate(x, (5, 17), mode="bilinear", align_corners=False),
    ),
    "resize_bilinear aligned": (
        lambda x: mb.resize_bilinear(
            x=x, target_size_height=5, target_size_width=17, sampling_mode="ALIGN_CORNERS"
        ),
        X,
        lambda x: F.interpolate(x, (5, 17), mode="bilinear", align_corners=True),
    ),
    "resize_bilinear to two rows takes first and last": (
        lambda x: mb.resize_bilinear(
            x=x, target_size_height=2, target_size_width=11, sampling_mode="STRICT_ALIGN_CORNERS"
        ),
        X,
        lambda x: x[:, :, [0, -1]],
    ),
    "resize_bilinear to one row takes the middle": (
        lambda x: mb.resize_bilinear(
            x=x, target_size_height=1, target_size_width=11, sampling_mode="ALIGN_CORNERS"
        ),
        X[:, :, :8],
        lambda x: (x[:, :, 3:4] + x[:, :, 4:5]) / 2,
    ),
    "resize_bilinear to one row, strictly, takes the first": (
        lambda x: mb.resize_bilinear(
            x=x, target_size_height=1, target_size_width=11, sampling_mode="STRICT_ALIGN_CORNERS"
        ),
        X,
        lambda x: x[:, :, :1],
    ),
    "dequantize": (
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, scale=0.1, output_dtype="uint8"), scale=0.3
        ),
        np.abs(X),
        lambda x: (x / 0.1).round() * 0.3,
    ),
    "dequantize per axis": (
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, scale=0.1, output_dtype="int8"),
            scale=np.array([0.1, 0.2, 0.3, 0.4], np.float32),
            zero_point=np.array([1, -2, 3, -4], np.int8),
            axis=1,
        ),
        X,
        lambda x: (
            ((x / 0.1).round() - torch.tensor([1, -2, 3, -4]).reshape(4, 1, 1))
            * torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1)
        ),
    ),
    "upsample_nearest_neighbor": (
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        X,
        lambda x: F.interpolate(x, (18, 33), mode="nearest"),
    ),
    "upsample_nearest_neighbor by a fraction": (
        lambda x: mb.upsample_nearest_neighbor(
            x=x, scale_factor_height=2.5, scale_factor_width=1.5
        ),
        X[:, :, :2, :10],
        lambda x: F.interpolate(x, (5, 15), mode="nearest"),
    ),
    "a chain with values used twice": (
        lambda x: mb.add(x=mb.relu(x=x), y=mb.mul(x=x, y=mb.sigmoid(x=x))),
        X,
        lambda x: F.relu(x) + x * x.sigmoid(),
    ),
}


@pytest.mark.parametrize("name", REFERENCED)
def test_an_op_gives_what_the_reference_gives(name: str) -> None:
    build, x, reference = REFERENCED[name]
    (got,) = _execute(build, x)
    right = np.asarray(reference(_torch(x)))
    assert got.shape == right.shape
    np.testing.assert_allclose(got, right, rtol=2e-5, atol=5e-6)


def _table(bits: int) -> Build:
    lut = np.sort(_random(2**bits, seed=bits))
    which = np.random.default_rng(bits).integers(0, 2**bits, 5 * 7)
    flat = (which[:, None] >> np.arange(bits)) & 1
    packed = np.packbits(flat.astype(np.uint8).ravel(), bitorder="little")
    return lambda x: mb.constexpr_lut_to_dense(
        lut=lut, indices=packed, shape=np.array([5, 7], np.uint32)
    )


def _sparse(x: Any) -> Any:
    mask = np.random.default_rng(0).integers(0, 2, 21).astype(np.uint8)
    return mb.constexpr_sparse_to_dense(
        nonzero_data=_random(int(mask.sum())),
        mask=np.packbits(mask, bitorder="little"),
        shape=np.array([3, 7], np.uint32),
    )


CODES = np.random.default_rng(1).integers(-128, 128, (4, 6)).astype(np.int8)
CONSTANTS: dict[str, Build] = {
    "affine per channel": lambda x: mb.constexpr_affine_dequantize(
        quantized_data=CODES,
        zero_point=np.array([0, 3, -7, 127], np.int8),
        scale=np.abs(_random(4)),
        axis=0,
    ),
    "affine per last axis": lambda x: mb.constexpr_affine_dequantize(
        quantized_data=CODES, zero_point=np.int8(5), scale=np.abs(_random(6)), axis=-1
    ),
    "affine scalar, unsigned": lambda x: mb.constexpr_affine_dequantize(
        quantized_data=CODES.view(np.uint8), zero_point=np.uint8(128), scale=np.float32(0.1), axis=0
    ),
    "cast": lambda x: mb.constexpr_cast(
        source_val=_random(3, 4).astype(np.float16), output_dtype="fp32"
    ),
    "table of 2": _table(1),
    "table of 4": _table(2),
    "table of 16": _table(4),
    "table of 64": _table(6),
    "table of 256": _table(8),
    "sparse": _sparse,
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_compressed_constant_unpacks_as_coremltools_unpacks_it(name: str) -> None:
    build = CONSTANTS[name]
    (right,) = _inferred(build, X3, "materialized")
    zero = np.zeros(right.shape, np.float32)
    (got,) = _execute(lambda x: mb.add(x=x, y=build(x)), zero)
    np.testing.assert_array_equal(got, right)


def test_a_constant_in_blocks_unpacks_as_coremltools_unpacks_it() -> None:
    def build(x: Any) -> Any:
        return mb.constexpr_blockwise_shift_scale(
            data=CODES,
            scale=np.abs(_random(2, 3)) + 0.1,
            offset=np.array([[1, 2, 3], [4, 5, 6]], np.int8),
        )

    (right,) = _inferred(build, X3, "materialized", ct.target.iOS18)
    zero = np.zeros(right.shape, np.float32)
    (got,) = _execute(lambda x: mb.add(x=x, y=build(x)), zero, target=ct.target.iOS18)
    np.testing.assert_array_equal(got, right)


#: Program, input, and the inputs that a file may leave out.
DEFAULTS: dict[str, tuple[Build, NDArray[Any], str]] = {
    "conv": (lambda x: mb.conv(x=x, weight=W), X, "strides pad_type pad dilations groups"),
    "conv with custom padding": (
        lambda x: mb.conv(x=x, weight=W, pad_type="custom"),
        X,
        "pad",
    ),
    "max_pool": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2], pad_type="valid"),
        X,
        "strides pad ceil_mode",
    ),
    "avg_pool": (
        lambda x: mb.avg_pool(x=x, kernel_sizes=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]),
        X,
        "strides exclude_padding_from_average ceil_mode",
    ),
    "max_pool over the end": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
        X,
        "ceil_mode",
    ),
    "avg_pool over the end": (
        lambda x: mb.avg_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
        X,
        "ceil_mode",
    ),
    "matmul": (
        lambda x: mb.matmul(x=x, y=_random(11, 11)),
        X[..., :11, :],
        "transpose_x transpose_y",
    ),
    "layer_norm": (lambda x: mb.layer_norm(x=x, axes=[0, 1, 2, 3]), X / 100, "axes epsilon"),
    "batch_norm": (
        lambda x: mb.batch_norm(x=x, mean=_random(4), variance=np.full(4, 1e-4, np.float32)),
        X,
        "epsilon",
    ),
    "instance_norm": (lambda x: mb.instance_norm(x=x), X / 100, "epsilon"),
    "reduce_mean": (lambda x: mb.reduce_mean(x=x, axes=[1]), X, "keep_dims"),
    "concat": (lambda x: mb.concat(values=[x, mb.relu(x=x)], axis=1), X, "interleave"),
    "gather": (
        lambda x: mb.gather(x=x, indices=[1, 0]),
        _random(3, 4),
        "axis batch_dims validate_indices",
    ),
    "pad": (lambda x: mb.pad(x=x, pad=[1, 2]), X, "mode constant_val"),
    "upsample_bilinear": (
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2),
        X,
        "scale_factor_width align_corners",
    ),
    "upsample_bilinear in width": (
        lambda x: mb.upsample_bilinear(x=x, scale_factor_width=2),
        X,
        "scale_factor_height",
    ),
    "upsample_nearest_neighbor": (
        lambda x: mb.upsample_nearest_neighbor(x=x),
        X,
        "scale_factor_height scale_factor_width",
    ),
    "resize_bilinear": (
        lambda x: mb.resize_bilinear(x=x),
        X,
        "target_size_height target_size_width sampling_mode",
    ),
    "rsqrt": (lambda x: mb.rsqrt(x=x), POSITIVE * 1e-6, "epsilon"),
    "inverse": (lambda x: mb.inverse(x=x), POSITIVE * 1e-3, "epsilon"),
    "log": (lambda x: mb.log(x=x), np.append(POSITIVE, 0).astype(np.float32), "epsilon"),
    "softmax": (lambda x: mb.softmax(x=x), X, "axis"),
    "gelu": (lambda x: mb.gelu(x=x), X, "mode"),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_input_that_is_left_out_has_the_default_of_coremltools(
    name: str, tmp_path: Path
) -> None:
    build, x, left_out = DEFAULTS[name]
    (full,) = _execute(build, x)
    taken = []

    def edit(operations: Any) -> None:
        for op in operations:
            if op.type == name.split()[0]:
                for one in left_out.split():
                    # coremltools writes its own defaults into the file.
                    taken.append(op.inputs.pop(one, None) is not None)

    program = _mil.load(_edited(tmp_path, build, x, edit))
    (got,) = _mil.run(program, {"x": x}).values()
    assert any(taken)
    np.testing.assert_array_equal(got, full)


def test_every_result_is_rounded_to_float16_where_the_program_says_so() -> None:
    x = _random(1, 64) * 100
    (got,) = _execute(lambda x: mb.mul(x=mb.square(x=x), y=np.float16(0.1)), x, "fp16")
    half = x.astype(np.float16)
    # Each step in float32, each result stored in float16.
    squared = np.square(half.astype(np.float32)).astype(np.float16)
    right = (squared.astype(np.float32) * np.float32(np.float16(0.1))).astype(np.float16)
    np.testing.assert_array_equal(got, right.astype(np.float32))
    assert not np.array_equal(got, np.square(half.astype(np.float32)) * np.float32(0.1))


def test_float16_overflows_to_infinity_as_it_does_on_a_device() -> None:
    (got,) = _execute(lambda x: mb.square(x=x), np.full((1, 2), 300, np.float32), "fp16")
    assert np.isinf(got).all()


def test_an_unknown_op_is_named() -> None:
    model = _model(lambda x: mb.cumsum(x=x, axis=-1), X3)
    with pytest.raises(ExportError, match=r"Core ML op 'cumsum' is not known to the reference"):
        _mil.load(Path(model.package_path))


def _edited(tmp_path: Path, build: Build, x: NDArray[Any], edit: Callable[[Any], None]) -> Path:
    """A package whose message was changed after it was made."""
    path = tmp_path / "edited.mlpackage"
    shutil.copytree(_model(build, x).package_path, path)
    spec = _mil_store.message(path)
    (function,) = spec.mlProgram.functions.values()
    edit(function.block_specializations[function.opset].operations)
    _mil_store.model_file(path).write_bytes(spec.SerializeToString())
    return path


def _last(operations: Any) -> Any:
    return operations[len(operations) - 1]


def test_an_unknown_input_is_named_with_its_op(tmp_path: Path) -> None:
    def edit(operations: Any) -> None:
        _last(operations).inputs["slope"].CopyFrom(_last(operations).inputs["x"])

    path = _edited(tmp_path, lambda x: mb.relu(x=x), X3, edit)
    with pytest.raises(ExportError, match=r"Core ML op 'relu' \(input 'slope'\) is not known"):
        _mil.load(path)


def test_an_unknown_attribute_is_named_with_its_op(tmp_path: Path) -> None:
    def edit(operations: Any) -> None:
        op = _last(operations)
        op.attributes["fast"].CopyFrom(op.attributes["name"])

    path = _edited(tmp_path, lambda x: mb.relu(x=x), X3, edit)
    with pytest.raises(ExportError, match=r"'relu'.*has an attribute 'fast', which is not known"):
        _mil.load(path)


def test_a_missing_input_is_named_with_its_op(tmp_path: Path) -> None:
    def edit(operations: Any) -> None:
        del _last(operations).inputs["weight"]

    path = _edited(tmp_path, lambda x: mb.conv(x=x, weight=_random(2, 3, 1)), X3, edit)
    with pytest.raises(ExportError, match=r"'conv' lacks its input 'weight'"):
        _mil.load(path)


def test_a_declared_shape_that_is_not_what_the_op_gives_is_refused(tmp_path: Path) -> None:
    def edit(operations: Any) -> None:
        _last(operations).outputs[0].type.tensorType.dimensions[2].constant.size = 9

    path = _edited(tmp_path, lambda x: mb.relu(x=x), X3, edit)
    with pytest.raises(ExportError, match=r"'relu'.*gives shape \(2, 3, 8\) where \(2, 3, 9\)"):
        _mil.run(_mil.load(path), {"x": X3})


def test_an_op_that_cannot_be_executed_is_named(tmp_path: Path) -> None:
    def edit(operations: Any) -> None:
        for op in operations:
            if op.type == "const" and op.outputs[0].name.endswith("perm_0"):
                op.attributes["val"].immediateValue.tensor.ints.values[2] = 7

    path = _edited(tmp_path, lambda x: mb.transpose(x=x, perm=[0, 2, 1]), X3, edit)
    with pytest.raises(
        ExportError, match=r"'transpose' \(output 'transpose_0'\) cannot be executed"
    ):
        _mil.run(_mil.load(path), {"x": X3})


def test_inner_blocks_are_refused() -> None:
    def build(x: Any) -> Any:
        return mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x), y=np.float32(0)),
            _true_fn=lambda: mb.relu(x=x),
            _false_fn=lambda: mb.identity(x=x),
        )

    with pytest.raises(ExportError, match=r"'cond'.*control flow is not known"):
        _mil.load(Path(_model(build, X3).package_path))


def test_modes_that_nobody_specified_are_refused() -> None:
    unclear = {
        "avg_pool over the end, padding counted": lambda x: mb.avg_pool(
            x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid", ceil_mode=True
        ),
        "nearest by a scale that does not divide": lambda x: mb.upsample_nearest_neighbor(
            x=x, scale_factor_height=1.3, scale_factor_width=1.0
        ),
        "a window behind the picture": lambda x: mb.max_pool(
            x=x, kernel_sizes=[1, 1], strides=[5, 1], pad_type="valid", ceil_mode=True
        ),
        "gather in batches": lambda x: mb.gather(
            x=x, indices=np.zeros((1, 2), np.int32), axis=1, batch_dims=1
        ),
    }
    for build in unclear.values():
        with pytest.raises(ExportError, match="cannot be executed"):
            _execute(build, X)


def test_a_value_that_is_used_before_it_is_there_is_refused(tmp_path: Path) -> None:
    def edit(operations: Any) -> None:
        _last(operations).inputs["x"].arguments[0].name = "nobody"

    path = _edited(tmp_path, lambda x: mb.relu(x=x), X3, edit)
    with pytest.raises(BundleError, match=r"'relu' uses 'nobody' before it is there"):
        _mil.load(path)


def test_the_message_definitions_load_without_coremltools_itself() -> None:
    import subprocess
    import sys

    package = _model(lambda x: mb.relu(x=x), X3).package_path
    code = (
        "import sys; from pathlib import Path; from hetero.export import _mil_file;"
        f"p = _mil_file.read(Path({package!r}));"
        "print([o.type for o in p.operations], {'coremltools', 'torch'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['relu'] set()"
