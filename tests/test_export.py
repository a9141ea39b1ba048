"""ONNX and TFLite files, in every precision, against PyTorch and against each other."""

from __future__ import annotations

import getpass
import os
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
pytest.importorskip("litert_torch", reason="needs the extra 'tflite'")

import exporting  # noqa: E402

from hetero import export as exports  # noqa: E402
from hetero.bundle import Artifact, Bundle  # noqa: E402
from hetero.errors import BundleError, ExportError  # noqa: E402
from hetero.export import PRECISIONS, ConvertJob, _parity, _quantize, _seal  # noqa: E402
from hetero.export import _tflite_quantize as tflite_quantize  # noqa: E402
from hetero.export import onnx as onnx_format  # noqa: E402
from hetero.export import tflite as tflite_format  # noqa: E402
from hetero.models import mobilenet  # noqa: E402

FILES = [(f, p) for f in ("onnx", "tflite") for p in PRECISIONS]
WEIGHTY = {"Conv", "Gemm", "MatMul"}


@pytest.fixture(params=FILES, ids=" ".join)
def file(request) -> tuple[Bundle, Artifact, Path]:
    format, precision = request.param
    bundle, _ = exporting.exported(format)
    item = bundle.artifact(format, precision)
    return bundle, item, bundle.path(item)


def path_of(format: str, precision: str) -> Path:
    bundle, _ = exporting.exported(format)
    return bundle.path(bundle.artifact(format, precision))


def rows_of(path: Path, format: str, inputs: np.ndarray) -> np.ndarray:
    with exports.load(path, format) as runner:
        return runner(inputs)


def job_for(tmp_path: Path, format: str = "onnx", **changes) -> ConvertJob:
    np.save(tmp_path / "calibration.npy", exporting.calibration())
    suffix = exports.module(format).SUFFIX
    job = ConvertJob(
        bundle=exporting.bundle().root,
        output=tmp_path / f"model{suffix}",
        format=format,
        precision="fp32",
        bake=True,
        batch=0,
        size_px=exporting.SIZE,
        dim=exporting.DIM,
        metadata=exports.metadata_of(exporting.bundle(), "fp32", True),
        calibration=tmp_path / "calibration.npy",
    )
    return replace(job, **changes)


# -- what the files do --------------------------------------------------------------------------


def test_every_file_gives_the_probes_vectors_as_its_facts_say(file):
    bundle, item, path = file
    probe = bundle.probe()
    rows = rows_of(path, item.kind, probe.pixels)
    cosine = np.einsum("nd,nd->n", rows.astype(float), probe.vectors.astype(float))
    assert cosine.min() == pytest.approx(item.facts["cosine_worst"], abs=1e-5)
    assert np.abs(rows - probe.vectors).max() == pytest.approx(item.facts["max_abs_diff"], abs=1e-6)
    bounds = {"fp32": 0.999999, "fp16": 0.9999, "int8": 0.93}
    assert cosine.min() > bounds[item.precision]
    assert np.median(cosine) > {"fp32": 0.999999, "fp16": 0.99999, "int8": 0.985}[item.precision]


def test_rows_are_of_length_1_to_float32s_precision_in_every_precision(file):
    bundle, item, path = file
    lengths = np.linalg.norm(rows_of(path, item.kind, bundle.probe().pixels).astype(float), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=5e-7)


def test_a_smaller_precision_is_a_smaller_file(file):
    _, item, path = file
    float_size = path_of(item.kind, "fp32").stat().st_size
    share = {"fp32": 1, "fp16": 0.8, "int8": 0.9}[item.precision]
    assert path.stat().st_size <= share * float_size


def test_two_runtimes_agree_on_int8_more_closely_than_chance():
    pixels = exporting.bundle().probe().pixels
    a, b = (rows_of(path_of(f, "int8"), f, pixels) for f in ("onnx", "tflite"))
    assert np.einsum("nd,nd->n", a, b).min() > 0.9


def test_files_name_no_folder_user_or_module_of_this_machine(file):
    _, _, path = file
    raw = path.read_bytes()
    secrets = [os.getcwd(), str(Path.home()), str(Path(torch.__file__).parents[1]), "/tmp/", ".py"]
    secrets += [u for u in (getpass.getuser(),) if len(u) > 4]
    assert [s for s in secrets if s.encode() in raw] == []


def test_facts_name_the_versions_of_the_tools(file):
    _, item, _ = file
    assert item.facts["torch_version"] == torch.__version__
    runtime = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}[item.kind]
    assert item.facts["compared_with"] == f"{runtime} {item.facts[f'{runtime}_version']}"
    assert item.facts["conversion_s"] > 0


def test_int8_keeps_the_ranges_that_do_better_on_held_out_pictures():
    for format in ("onnx", "tflite"):
        facts = exporting.exported(format)[0].artifact(format, "int8").facts
        tried = {k: v for k, v in facts.items() if k.startswith("held_out_cosine_")}
        assert set(tried) == {"held_out_cosine_min-max", "held_out_cosine_99.99%"}
        assert facts["ranges"] == max(tried, key=tried.get).removeprefix("held_out_cosine_")


@pytest.mark.slow
def test_equal_bundles_give_equal_bytes():
    again, _ = exporting.exported("onnx", ("int8",))
    assert again.path(again.artifact("onnx", "int8")).read_bytes() == (
        path_of("onnx", "int8").read_bytes()
    )


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_an_unbaked_file_with_a_fixed_batch_gives_the_same_vectors(format):
    bundle, _ = exporting.exported(format, ("fp32",), False, 3)
    item = bundle.artifact(format, "fp32")
    assert (item.input, item.batch, item.path) == (
        "float32_nchw", 3, f"model-float.fp32.{format}"
    )  # fmt: skip
    probe = bundle.probe()
    tensors = bundle.preprocess.tensor(probe.pixels)
    for n in (1, 3, 7):
        rows = rows_of(bundle.path(item), format, tensors[:n])
        np.testing.assert_allclose(rows, probe.vectors[:n], atol=1e-4)
    assert exports.module(format).metadata(bundle.path(item))["hetero.input"] == "float32_nchw"


# -- what is in the files -----------------------------------------------------------------------


def onnx_graph(precision: str):
    return onnx.load(path_of("onnx", precision)).graph


def tail(graph) -> list:
    """The nodes from the last weighty one to the embedding."""
    makers = {o: n for n in graph.node for o in n.output}
    found, edge = {}, ["embedding"]
    while edge:
        node = makers.get(edge.pop())
        if node is not None and node.op_type not in WEIGHTY:
            found[node.name] = node
            edge += node.input
    return list(found.values())


def test_an_onnx_file_has_one_named_input_and_output_and_any_batch():
    for precision in PRECISIONS:
        graph = onnx_graph(precision)
        assert [i.name for i in graph.input] == ["pixels"]
        assert [o.name for o in graph.output] == ["embedding"]
        shape = graph.input[0].type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in shape] == ["n", 24, 24, 3]
        assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_an_onnx_file_needs_only_standard_operators():
    for precision in PRECISIONS:
        model = onnx.load(path_of("onnx", precision))
        assert [(o.domain, o.version) for o in model.opset_import] == [("", onnx_format.OPSET)]
        onnx.checker.check_model(model, full_check=True)


def test_onnx_fp16_weights_are_float16_and_its_tail_never_is():
    graph = onnx_graph("fp16")
    kinds = {i.name: i.data_type for i in graph.initializer}
    weights = [kinds[n.input[1]] for n in graph.node if n.op_type in WEIGHTY]
    assert len(weights) > 10
    assert set(weights) == {onnx.TensorProto.FLOAT16}
    end = tail(graph)
    assert {n.op_type for n in end} >= {"Div", "ReduceL2"}
    casts = [n.attribute[0].i for n in end if n.op_type == "Cast"]
    assert onnx.TensorProto.FLOAT16 not in casts
    assert not [i for n in end for i in n.input if kinds.get(i) == onnx.TensorProto.FLOAT16]


def test_onnx_int8_weights_are_int8_per_channel_and_its_tail_is_float():
    graph = onnx_graph("int8")
    arrays = {i.name: i for i in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    convolutions = [n for n in graph.node if n.op_type == "Conv"]
    assert len(convolutions) > 10
    for node in convolutions:
        weight, scale = makers[node.input[1]].input[:2]
        assert arrays[weight].data_type == onnx.TensorProto.INT8
        assert list(arrays[scale].dims) == [arrays[weight].dims[0]]
        assert makers[node.input[0]].op_type == "DequantizeLinear"
    # One step from int8 to float after the last layer, and none inside the division.
    steps = Counter(n.op_type for n in tail(graph))
    assert (steps["QuantizeLinear"], steps["DequantizeLinear"]) == (1, 1)


def tflite_operators(precision: str) -> list[dict]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    run = Interpreter(
        str(path_of("tflite", precision)),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    kinds = {d["index"]: d["dtype"] for d in run.get_tensor_details()}
    return [
        {
            "name": op["op_name"],
            "in": [kinds.get(int(i)) for i in op["inputs"]],
            "out": [kinds.get(int(i)) for i in op["outputs"]],
        }
        for op in run._get_ops_details()
    ]


def test_a_tflite_file_has_one_named_input_and_output():
    from ai_edge_litert.interpreter import Interpreter

    for precision in PRECISIONS:
        run = Interpreter(str(path_of("tflite", precision)))
        signatures = run.get_signature_list()
        assert list(signatures.values()) == [{"inputs": ["pixels"], "outputs": ["embedding"]}]
        (entry,), (out,) = run.get_input_details(), run.get_output_details()
        assert (entry["name"], entry["dtype"]) == ("pixels", np.uint8)
        assert entry["shape"].tolist() == [1, 24, 24, 3]
        assert (out["name"], out["dtype"]) == ("embedding", np.float32)


def test_tflite_int8_works_in_int8_between_a_float_head_and_tail():
    ops = tflite_operators("int8")
    names = [op["name"] for op in ops]
    work = [op for op in ops if op["name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")]
    assert len(work) > 10
    assert all(op["in"][:2] == [np.int8, np.int8] and op["out"] == [np.int8] for op in work)
    first, last = names.index("QUANTIZE"), len(names) - names[::-1].index("FULLY_CONNECTED")
    assert {np.int8} == {k for op in ops[first:last] for k in op["out"]} - {np.float32}
    # What squeeze-and-excite clamps to 0..1 has no int8 form; all else between has.
    floats = [op["name"] for op in ops[first:last] if np.float32 in op["out"]]
    assert set(floats) <= {"DEQUANTIZE", "RELU_0_TO_1"}
    assert first == names.index("CONV_2D") - 1
    assert names[last] == "DEQUANTIZE"
    assert all(np.int8 not in op["out"] for op in ops[:first] + ops[last:])


def test_hard_swish_takes_the_form_each_runtime_likes():
    for precision, fused in (("fp32", True), ("fp16", True), ("int8", False)):
        assert ("HARD_SWISH" in {o["name"] for o in tflite_operators(precision)}) == fused
        assert ("HardSwish" in {n.op_type for n in onnx_graph(precision).node}) == fused


def test_tflite_buffers_begin_where_the_schema_asks():
    from ai_edge_litert import schema_py_generated as schema

    for precision in PRECISIONS:
        raw = path_of("tflite", precision).read_bytes()
        model = schema.Model.GetRootAs(raw, 0)
        starts = []
        for at in range(model.BuffersLength()):
            data = model.Buffers(at).DataAsNumpy()
            if isinstance(data, np.ndarray) and data.size > 64:
                starts.append(raw.index(data.tobytes()))
        assert len(starts) > 10
        assert {s % 16 for s in starts} == {0}


# -- damage -------------------------------------------------------------------------------------


def test_a_file_with_one_damaged_channel_does_not_pass(tmp_path):
    model = onnx.load(path_of("onnx", "fp32"))
    weights = next(i for i in model.graph.initializer if len(i.dims) == 4)
    values = onnx.numpy_helper.to_array(weights).copy()
    values[0] *= -1
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    job = job_for(tmp_path)
    job.output.write_bytes(onnx_format._finished(model, job))
    bundle = exporting.bundle()
    with pytest.raises(ExportError, match="does not do what PyTorch does: worst") as caught:
        _parity.check(job, bundle.probe(), bundle.space)
    worst = str(caught.value).partition("picture '")[2].partition("'")[0]
    rows = rows_of(job.output, "onnx", bundle.probe().pixels)
    cosine = np.einsum("nd,nd->n", rows, bundle.probe().vectors)
    assert bundle.probe().ids[int(cosine.argmin())] == worst


def test_a_file_that_carries_another_bundles_texts_does_not_pass(tmp_path):
    job = job_for(tmp_path)
    shutil.copy(path_of("onnx", "fp32"), job.output)
    bundle = exporting.bundle()
    _parity.check(job, bundle.probe(), bundle.space)
    other = replace(job, metadata={**job.metadata, "hetero.weights_sha256": "0" * 64})
    with pytest.raises(ExportError, match=r"hetero\.weights_sha256"):
        _parity.check(other, bundle.probe(), bundle.space)


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_any_flipped_bit_of_a_real_file_is_noticed_before_a_runtime_sees_it(format, tmp_path):
    raw = path_of(format, "int8").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "model"
    for at, bit in zip(rng.integers(0, len(raw), 60), rng.integers(0, 8, 60), strict=True):
        changed = bytearray(raw)
        changed[at] ^= 1 << int(bit)
        path.write_bytes(changed)
        for call in (exports.module(format).load, exports.module(format).metadata):
            with pytest.raises(BundleError):
                call(path)


@pytest.mark.parametrize("variant", [onnx_format, tflite_format])
def test_a_sealed_file_that_is_no_model_is_refused(variant, tmp_path):
    path = tmp_path / f"model{variant.SUFFIX}"
    path.write_bytes(_seal.seal(b"\x18\0\0\0TFL3" + _seal.BLANK.encode() + bytes(64)))
    with pytest.raises(BundleError, match="refused"):
        variant.load(path)


def test_a_model_that_does_not_embed_is_refused(tmp_path):
    two = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["a", "b"], ["c"])],
            "sum",
            [onnx.helper.make_tensor_value_info(n, 1, [1, 2]) for n in "ab"],
            [onnx.helper.make_tensor_value_info("c", 1, [1, 2])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.helper.set_model_props(two, {_seal.KEY: _seal.BLANK})
    (tmp_path / "sum.onnx").write_bytes(_seal.seal(two.SerializeToString()))
    with pytest.raises(BundleError, match=r"not an embedding model.* got 2 and 1"):
        onnx_format.load(tmp_path / "sum.onnx")


# -- parts --------------------------------------------------------------------------------------


class Choosing(torch.nn.Module):
    """A net that torch.export refuses: what it does depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(24 * 24 * 3, 5)

    def forward(self, pixels):
        rows = self.line(pixels.float().flatten(1))
        return torch.nn.functional.normalize(rows if rows.sum() < 1e9 else -rows, dim=1)


def test_where_torch_export_refuses_the_other_exporter_is_used_and_it_is_said(tmp_path):
    net = Choosing().eval()
    job = job_for(tmp_path, dim=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, facts = onnx_format.trace(net, job)
    assert facts["exporter"] == "torchscript"
    assert "torch.export refused: " in facts["fallback"]
    assert "\n" not in facts["fallback"]
    job.output.write_bytes(onnx_format._finished(model, job))
    pixels = exporting.calibration()[:5]
    with torch.no_grad():
        right = net(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(rows_of(job.output, "onnx", pixels), right, atol=1e-5)


@pytest.mark.parametrize("form", ["as it is", "fused", "relu6"])
def test_all_forms_of_hard_swish_give_the_same_vectors(tmp_path, form):
    net = _quantize.net_of(job_for(tmp_path), form)
    probe = exporting.bundle().probe()
    with torch.no_grad():
        rows = net(torch.from_numpy(probe.pixels)).numpy()
    np.testing.assert_allclose(rows, probe.vectors, atol=1e-5)
    kinds = {type(m) for m in net.modules()}
    assert (mobilenet.HardSwish in kinds) == (form == "as it is")
    assert (torch.nn.Hardswish in kinds) == (form == "fused")


def test_held_out_pictures_are_every_fourth_and_fit_is_whole_batches(tmp_path):
    job = job_for(tmp_path, batch=5)
    net = _quantize.net_of(job)
    pixels = exporting.calibration()
    got = _quantize.calibration_of(job, net)
    np.testing.assert_array_equal(got.held_out, pixels[3::4])
    rest = np.delete(pixels, np.s_[3::4], axis=0)
    assert len(got.fit) == 50
    np.testing.assert_array_equal(got.fit[:48], rest)
    np.testing.assert_array_equal(got.fit[48:], rest[:2])
    with torch.no_grad():
        right = net(torch.from_numpy(got.held_out)).numpy()
    np.testing.assert_allclose(got.vectors, right, atol=1e-6)


class Fixed:
    """A runner that gives the same rows whatever comes."""

    runtime = "fixed"

    def __init__(self, rows):
        self.rows = rows

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def __call__(self, inputs):
        return self.rows


def test_the_nearest_candidate_wins_and_broken_ones_do_not_compete():
    right = np.eye(4, 3, dtype=np.float32) + np.float32(0.1)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    calibration = _quantize.Calibration(np.empty(0), np.empty(0), right)
    near, far = right + np.float32(0.1), right[::-1].copy()
    candidates = {"far": far, "near": near, "nan": right * np.nan, "zero": right * 0}
    best, means = _quantize.best_of(candidates, Fixed, calibration)
    assert best == "near"
    assert set(means) == {"near", "far"}
    with pytest.raises(ExportError, match="use fp16"):
        _quantize.best_of({"nan": right * np.nan}, Fixed, calibration)


def test_tflite_ranges_are_those_of_all_values_whatever_the_order():
    model = path_of("tflite", "fp32").read_bytes()
    pixels = exporting.calibration()[:12]
    got = tflite_quantize.ranges(model, pixels, 1)
    turned = tflite_quantize.ranges(model, pixels[::-1].copy(), 1)
    assert got == turned
    values: dict[str, list[np.ndarray]] = {}
    for name, some in tflite_quantize._activations(model, pixels, 1):
        values.setdefault(name, []).append(some.copy())
    assert len(values) > 20
    for name, parts in values.items():
        seen = np.concatenate(parts)
        low, high = got["min-max"][name]
        assert (low, high) == (seen.min(), seen.max())
        bin_width = (high - low) / tflite_quantize._BINS
        inner = np.percentile(seen, [0.005, 99.995], method="inverted_cdf")
        np.testing.assert_allclose(got["99.99%"][name], inner, atol=1.01 * bin_width)


def test_values_that_are_not_finite_do_not_count_for_a_range(monkeypatch):
    class Interpreter:
        def __init__(self, **_):
            pass

        def allocate_tensors(self):
            pass

        def get_input_details(self):
            return [{"index": 0, "shape": np.array([1, 2])}]

        def _get_ops_details(self):
            return [{"outputs": [1, 2]}]

        def get_tensor_details(self):
            return [{"name": n, "index": i, "dtype": np.float32} for i, n in ((1, "p"), (2, "q"))]

        def set_tensor(self, *_):
            pass

        def invoke(self):
            pass

        def get_tensor(self, index):
            padded = np.array([-np.inf, 1, 3], np.float32)
            return padded if index == 1 else np.full(2, -np.inf, np.float32)

    from ai_edge_litert import interpreter

    monkeypatch.setattr(interpreter, "Interpreter", Interpreter)
    got = tflite_quantize.ranges(b"", np.zeros((3, 2)), 1)
    assert got["min-max"] == {"p": (1, 3)}
