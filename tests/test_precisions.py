from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")

import exporting  # noqa: E402

from hetero import export as exports  # noqa: E402
from hetero.errors import ConfigError, MissingExtraError  # noqa: E402
from hetero.export import _onnx_weight_only as weight_only  # noqa: E402
from hetero.export import _parity  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("format", exports.formats())
def test_a_format_declares_precisions_that_all_have_gates(format):
    found = exports.precisions(format)
    assert found[:3] == exports.PRECISIONS
    assert "int8w" in found
    assert set(found) <= set(_parity.GATES)
    assert ("palette6" in found) == (format == "coreml")


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_palette_is_refused_where_there_is_none(format, tmp_path):
    bundle = exporting.copy_of_bundle(tmp_path / "bundle")
    with pytest.raises(ConfigError, match=f"{format} has no precision 'palette6'; there are fp32"):
        exports.export(bundle, format, "palette6")


@pytest.mark.parametrize(
    ("format", "precision", "worst"),
    [
        ("onnx", "int8w", 0.99),
        ("tflite", "int8w", 0.98),
        ("coreml", "int8w", 0.99),
        ("coreml", "palette6", 0.95),
    ],
)
def test_weights_alone_need_no_calibration_and_change_vectors_little(
    format, precision, worst, tmp_path: Path
):
    bundle = exporting.copy_of_bundle(tmp_path / "bundle")
    try:
        made = exports.export(bundle, format, precision)
    except MissingExtraError as error:
        pytest.skip(str(error))
    item = made.artifact(format, precision)
    assert worst < item.facts["cosine_worst"] < 1
    assert "not quantised" in item.facts["activations"]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_code_is_within_half_a_step_of_its_weight(axis):
    weight = np.random.default_rng(0).normal(size=(6, 5, 3, 3)).astype(np.float32)
    weight.swapaxes(0, axis)[2] = 0
    codes, scale = weight_only.rounded(weight, axis)
    shape = [-1 if i == axis else 1 for i in range(4)]
    assert codes.dtype == np.int8
    assert np.abs(codes).max() == 127
    error = np.abs(codes * scale.reshape(shape) - weight)
    assert (error <= scale.reshape(shape) * 0.5001).all()
    assert scale[2] == 1
