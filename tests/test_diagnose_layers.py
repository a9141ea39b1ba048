"""The first departing layer: sketches, and files built here by hand from a net's own weights."""

from __future__ import annotations

import numpy as np
import pytest
from toys import picture

from hetero.diagnose.layers import DRAW, Sketch, first_departure, sketch, torch_layers
from hetero.preprocess import Preprocess

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

SPEC = Preprocess(16)
PIXELS = np.stack([picture(n, 0) for n in range(6)])


class Net(torch.nn.Module):
    """Two convolutions, a way around, a pool, a linear layer, L2."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = self.act(self.first(x))
        x = x + self.second(x)
        return torch.nn.functional.normalize(self.last(self.pool(x).flatten(1)), dim=1)


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Net().eval().requires_grad_(False)


def file(path, model: Net, **spoiled):
    """The net as an ONNX file written by hand, ReLU merged away where asked, weights spoiled."""
    from hetero.export import _seal

    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    weights = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    weights |= {k: v for k, v in spoiled.items() if isinstance(v, np.ndarray)}
    std = np.asarray(SPEC.std, dtype=np.float32)
    weights["scale"] = 1 / (255 * std)
    weights["shift"] = -np.asarray(SPEC.mean, dtype=np.float32) / std
    weights["axes"] = np.asarray([2, 3])
    weights["one"] = np.asarray([1])
    make = helper.make_node
    nodes = [
        make("Cast", ["pixels"], ["float"], to=onnx.TensorProto.FLOAT),
        make("Mul", ["float", "scale"], ["scaled"]),
        make("Add", ["scaled", "shift"], ["shifted"]),
        make("Transpose", ["shifted"], ["nchw"], perm=[0, 3, 1, 2]),
        make("Conv", ["nchw", "first.weight", "first.bias"], ["a"], strides=[2, 2], pads=[1] * 4),
        make(spoiled.get("act", "Relu"), ["a"], ["b"]),
        make("Conv", ["b", "second.weight", "second.bias"], ["c"], pads=[1] * 4),
        make("Add", ["b", "c"], ["d"]),
        make(spoiled.get("pool", "ReduceMean"), ["d", "axes"], ["e"], keepdims=0),
        make("Gemm", ["e", "last.weight", "last.bias"], ["f"], transB=1),
        make(spoiled.get("tail", "ReduceL2"), ["f", "one"], ["g"]),
        make("Div", ["f", "g"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["n", 16, 16, 3])],
        [helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(whole, {_seal.KEY: _seal.BLANK})
    path.write_bytes(_seal.seal(whole.SerializeToString()))
    return path


def inside(path) -> list[Sketch]:
    from hetero.export import _layers_onnx

    return _layers_onnx.layers(path, PIXELS)


def found(path):
    return first_departure(torch_layers(net(), SPEC, PIXELS), inside(path), "fp32")


def test_every_pytorch_operation_is_told_with_its_module():
    ours = torch_layers(net(), SPEC, PIXELS)
    told = [(x.module, x.shape) for x in ours]
    for expected in (
        ("first", (8, 8, 8)),
        ("act", (8, 8, 8)),
        ("second", (8, 8, 8)),
        ("pool", (8,)),
        ("last", (5,)),
        ("", (5,)),
    ):
        assert expected in told
    assert told.index(("first", (8, 8, 8))) < told.index(("second", (8, 8, 8)))


def test_watching_a_net_leaves_no_hook_behind():
    model = net()
    torch_layers(model, SPEC, PIXELS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_sound_file_has_no_departing_layer(tmp_path):
    theirs = inside(file(tmp_path / "m.onnx", net()))
    assert [x.name for x in theirs][:3] == ["float", "scaled", "shifted"]
    assert first_departure(torch_layers(net(), SPEC, PIXELS), theirs, "fp32") is None


@pytest.mark.parametrize(
    ("spoiled", "tensor", "module", "stage"),
    [
        ({"first.bias": np.full(8, 0.5, "f4")}, "a", "first", ""),
        ({"act": "Sigmoid"}, "b", "act", ""),
        ({"second.weight": "double"}, "c", "second", ""),
        ({"second.bias": np.zeros(8, "f4") - 1}, "c", "second", ""),
        ({"pool": "ReduceMax"}, "e", "pool", "pooling"),
        ({"last.weight": "double"}, "f", "last", ""),
        ({"tail": "ReduceL1"}, "g", "", "l2"),
    ],
)
def test_a_spoiled_layer_is_named_and_so_is_the_module_it_comes_from(
    tmp_path, spoiled, tensor, module, stage
):
    model = net()
    for name in [k for k, v in spoiled.items() if isinstance(v, str) and v == "double"]:
        spoiled = {name: model.state_dict()[name].numpy() * np.float32(2)}
    layer = found(file(tmp_path / "m.onnx", model, **spoiled))
    assert (layer.tensor, layer.module, layer.stage) == (tensor, module, stage)
    assert layer.error > 0.05
    assert layer.error_before < 1e-4
    assert 0 < layer.confidence <= 1.0 + 1e-6


def test_only_a_draw_of_each_tensor_is_kept():
    values = np.random.default_rng(0).normal(size=(3, 16, 40, 40)).astype(np.float32)
    one = sketch("x", "Conv", values)
    assert one.draw.shape == (3, DRAW)
    assert (one.low, one.high) == (values.min(), values.max())
    assert set(one.draw[1]) <= set(values[1].ravel())


def test_channels_last_and_first_give_the_same_draw():
    nchw = np.random.default_rng(0).normal(size=(2, 8, 12, 10)).astype(np.float32)
    last = sketch("x", "op", nchw.transpose(0, 2, 3, 1), channels_last=True)
    first = sketch("x", "op", nchw)
    assert np.array_equal(last.draw, first.draw)
    assert last.shape == first.shape == (8, 12, 10)


def test_a_tensor_that_equals_nothing_is_innocent_if_what_follows_is_right():
    rng = np.random.default_rng(0)
    a, b, odd = (rng.normal(size=(4, 30)).astype(np.float32) for _ in range(3))
    ours = [sketch("0", "relu", a, module="one"), sketch("1", "relu", b, module="two")]
    theirs = [
        sketch("p", "Relu", a),
        sketch("q", "Mul", odd, inputs=["p"]),
        sketch("r", "Relu", b, inputs=["q"]),
    ]
    assert first_departure(ours, theirs, "fp32") is None
    theirs[2] = sketch("r", "Relu", b[::-1], inputs=["q"])
    layer = first_departure(ours, theirs, "fp32")
    assert layer.tensor in ("q", "r")
    assert layer.module == "two"


@pytest.mark.slow
@pytest.mark.toolchain
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_exported_files_match_pytorch_layer_by_layer_in_every_precision(format):
    pytest.importorskip("litert_torch" if format == "tflite" else "onnxscript")
    from exporting import exported

    from hetero.stages.diagnosing import BundleEngine, first_layer

    bundle, _ = exported(format)
    engine = BundleEngine(bundle)
    for precision in ("fp32", "fp16", "int8"):
        assert first_layer(bundle, bundle.artifact(format, precision), engine) is None
