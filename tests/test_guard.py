from __future__ import annotations

import json
import os

import pytest

from hetero.errors import BundleError
from hetero.export import _guard, _seal

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
h, T = onnx.helper, onnx.TensorProto


def seeds():
    return pytest.importorskip("benchmarks.fuzz.seeds", reason="needs a checkout")


def model(nodes=(), initializers=(), functions=(), inputs=("n", 4)):
    graph = h.make_graph(
        list(nodes),
        "g",
        [h.make_tensor_value_info("x", T.FLOAT, inputs)],
        [h.make_tensor_value_info("y", T.FLOAT, None)],
        list(initializers),
    )
    return h.make_model(
        graph, functions=list(functions), opset_imports=[h.make_opsetid("", 20)], ir_version=9
    )


def refused(made, words):
    raw = made if isinstance(made, bytes) else made.SerializeToString()
    with pytest.raises(BundleError, match=words) as caught:
        _guard.onnx(raw, "bad.onnx")
    assert str(caught.value).startswith("bad.onnx: refused: ")
    assert "\n" not in str(caught.value)


def test_sound_files_pass_and_their_texts_are_given():
    assert _guard.onnx(seeds().onnx(), "")["hetero.schema"] == "hetero.model/1"
    pytest.importorskip("ai_edge_litert", reason="needs the extra 'tflite'")
    assert _guard.tflite(seeds().tflite(), "")["hetero.schema"] == "hetero.model/1"


def test_weights_outside_of_the_file_are_refused():
    for place in ("/etc/passwd", "../up.bin", "beside.bin"):
        weight = T(name="w", dims=[4], data_type=T.FLOAT, data_location=T.EXTERNAL)
        entry = weight.external_data.add()
        entry.key, entry.value = "location", place
        refused(model(initializers=[weight]), "weights outside of the file")


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ([2**40], "more than would fit"),
        ([2**20, 2**20], "more than would fit"),
        ([-1], "a tensor of shape"),
        ([5], "16 bytes for a tensor"),
        ([1] * 17, "a tensor of shape"),
    ],
)
def test_dimensions_that_the_data_does_not_fill_are_refused(dims, words):
    refused(
        model(initializers=[T(name="w", dims=dims, data_type=T.FLOAT, raw_data=b"\0" * 16)]), words
    )


def test_an_operation_that_would_fill_the_memory_is_refused():
    shape = h.make_tensor("s", T.INT64, [2], [10**6, 10**6])
    refused(model([h.make_node("ConstantOfShape", ["s"], ["y"])], [shape]), "ConstantOfShape to")
    constant = h.make_node("Constant", [], ["s"], value=shape)
    refused(model([constant, h.make_node("Expand", ["x", "s"], ["y"])]), "Expand to")


def test_an_input_of_huge_dimensions_is_refused():
    refused(model(inputs=(2**20, 2**20)), "more elements than would fit")


def test_graphs_inside_graphs_without_end_and_loops_are_refused():
    inner = h.make_graph([], "g", [], [])
    for _ in range(30):
        inner = (
            h.make_graph(
                [h.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)], "g", [], []
            )
            if _ < 12
            else inner
        )
    refused(model([h.make_node("If", ["c"], ["y"], then_branch=inner)]), "graphs inside graphs")
    body = h.make_graph([], "b", [], [])
    refused(model([h.make_node("Loop", ["m", "c"], ["y"], body=body)]), "operation Loop")


def test_functions_that_call_each_other_in_a_circle_are_refused():
    def function(name, calls):
        node = h.make_node(calls, ["x"], ["y"], domain="d")
        return h.make_function("d", name, ["x"], ["y"], [node], [h.make_opsetid("d", 1)])

    refused(model(functions=[function("a", "a")]), "calls itself")
    refused(model(functions=[function("a", "b"), function("b", "a")]), "calls itself")
    assert _guard.onnx(model(functions=[function("a", "Relu")]).SerializeToString(), "") == {}


def test_nested_protobuf_truncation_and_giant_texts_are_refused():
    raw = b""
    for _ in range(300):  # a graph in an attribute of a node in a graph ...
        for number in (6, 5, 1):
            size, head = len(raw), bytearray([number << 3 | 2])
            while size > 127:
                head.append(size & 127 | 128)
                size >>= 7
            raw = bytes(head) + bytes([size]) + raw
    refused(_graph(raw), "graphs inside graphs")
    whole = seeds().onnx()
    for cut in range(1, len(whole), 23):
        with pytest.raises(BundleError):
            _guard.onnx(whole[:cut], "bad.onnx")
    texts = model()
    h.set_model_props(texts, {"hetero.x": "x" * (_guard.MAX_TEXT_BYTES + 1)})
    refused(texts, "bytes of texts")
    refused(b"\xff" * 40, "does not end")


def _graph(raw):
    size, head = len(raw), bytearray([7 << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes([size]) + raw


def test_flipped_bits_and_cuts_of_a_tflite_file_is_refused_or_harmless():
    pytest.importorskip("ai_edge_litert", reason="needs the extra 'tflite'")
    whole, bad = seeds().tflite(), 0
    for at in range(0, len(whole), 9):
        for raw in (whole[:at], whole[:at] + bytes([whole[at] ^ 128]) + whole[at + 1 :]):
            try:
                _guard.tflite(raw, "bad.tflite")
            except BundleError as error:
                bad += str(error).startswith("bad.tflite: refused: ")
    assert bad > len(whole) / 9  # each cut, and flips besides


def test_offsets_beyond_a_tflite_file_are_refused():
    for raw in (
        b"",
        b"TFL3",
        b"\xff\xff\xff\xffTFL3",
        b"\x08\0\0\0TFL3" + b"\xff" * 8,
        b"\x10\0\0\0TFL3" + b"\0" * 4,
    ):
        with pytest.raises(BundleError, match="refused"):
            _guard.tflite(raw, "bad.tflite")


def test_a_forged_seal_does_not_bring_a_damaged_file_to_the_runtime(tmp_path):
    made = onnx.load_from_string(seeds().onnx())
    made.graph.initializer[0].dims[0] = 2**30
    for prop in made.metadata_props:
        if prop.key == _seal.KEY:
            prop.value = _seal.BLANK
    (tmp_path / "x.onnx").write_bytes(_seal.seal(made.SerializeToString()))
    with pytest.raises(BundleError, match="more than would fit"):
        _seal.read(tmp_path / "x.onnx", "an ONNX")


def test_pipes_devices_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.onnx", tmp_path / "zero.onnx", tmp_path, tmp_path / "none"):
        with pytest.raises(BundleError):
            _seal.read(path, "an ONNX")


def test_a_file_larger_than_asked_for_is_not_read(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert _guard.bounded(tmp_path / "x", 5) == b"12345"
    with pytest.raises(BundleError, match="5 bytes are more than the 4"):
        _guard.bounded(tmp_path / "x", 4)


def test_a_package_with_links_pipes_or_too_many_files_is_refused(tmp_path):
    good = tmp_path / "good.mlpackage"
    good.mkdir()
    (good / "Manifest.json").write_text("{}")
    _guard.package(good)
    for number, make in enumerate(
        (
            lambda p: (p / "link").symlink_to("/etc/passwd"),
            lambda p: os.mkfifo(p / "pipe"),
            lambda p: [(p / str(i)).write_text("") for i in range(_guard.MAX_FILES + 1)],
            lambda p: (p / "Manifest.json").write_bytes(b" " * (_guard.MAX_TEXT_BYTES + 1)),
        )
    ):
        bad = tmp_path / f"{number}.mlpackage"
        bad.mkdir()
        make(bad)
        with pytest.raises(BundleError):
            _guard.package(bad)
    with pytest.raises(BundleError, match="a folder was expected"):
        _guard.package(good / "Manifest.json")


def test_a_manifest_that_is_a_pipe_a_device_or_not_finite_is_one_line(tmp_path):
    from hetero.bundle import MAX_MANIFEST_BYTES, Bundle

    def loaded(name):
        with pytest.raises(BundleError) as caught:
            Bundle.load(tmp_path / name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for name in ("pipe", "zero", "nan", "huge", "inf", "deep"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "manifest.json")
    (tmp_path / "zero" / "manifest.json").symlink_to("/dev/zero")
    (tmp_path / "nan" / "manifest.json").write_text('{"schema": NaN}')
    (tmp_path / "inf" / "manifest.json").write_text('{"schema": 1e999}')
    (tmp_path / "deep" / "manifest.json").write_text('{"a":' * 100_000)
    with (tmp_path / "huge" / "manifest.json").open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    assert "not an ordinary file" in loaded("pipe")
    assert "not an ordinary file" in loaded("zero")
    assert "finite" in loaded("nan")
    assert "finite" in loaded("inf")
    assert "cannot be read" in loaded("deep")
    assert "a manifest has" in loaded("huge")


def test_inspect_answers_odd_paths_and_foreign_files_in_one_line(tmp_path):
    from hetero.errors import HeteroError
    from hetero.stages.inspecting import inspect

    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "foreign.onnx").write_bytes(model().SerializeToString())
    (tmp_path / "foreign.tflite").write_bytes(b"\x10\0\0\0TFL3")
    (tmp_path / "foreign.mlpackage").mkdir()
    (tmp_path / "foreign.mlpackage" / "Manifest.json").write_text(
        json.dumps(
            {"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../../etc/passwd"}}}
        )
    )
    paths = [*tmp_path.iterdir(), tmp_path / ("x" * 5000), tmp_path / "none.onnx"]
    for path in paths:
        with pytest.raises(HeteroError) as caught:
            inspect(path)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)


def field(number: int, *parts: bytes) -> bytes:
    """A protobuf field that has a length, of at most 127 bytes."""
    inner = b"".join(parts)
    return bytes([number << 3 | 2, len(inner)]) + inner


def test_a_part_where_a_dimension_was_expected_is_refused_in_one_line():
    dim = field(1, b"not a number")
    shape = field(2, field(1, field(2, field(1, dim))))
    with pytest.raises(BundleError, match="a part where a number was expected"):
        _guard.onnx(field(7, field(11, field(1, b"x"), shape)), "x.onnx")


@pytest.mark.parametrize("listed", [{"itemInfoEntries": [], "rootModelIdentifier": 10**30}, [], 7])
def test_a_package_whose_list_of_contents_is_something_else_is_refused(tmp_path, listed):
    from hetero.export import coreml

    (tmp_path / "Manifest.json").write_text(json.dumps(listed))
    with pytest.raises(BundleError, match="cannot be read"):
        coreml.metadata(tmp_path)


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_names_inside_a_file_that_are_no_text_are_refused_in_one_line(format, monkeypatch):
    import importlib

    from benchmarks.fuzz import seeds

    raw = getattr(seeds, format)()
    module = importlib.import_module(f"hetero.export.{format}")

    def broken(self):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    if format == "onnx":
        runtime = pytest.importorskip("onnxruntime")
        monkeypatch.setattr(runtime.NodeArg, "shape", property(broken))
        build = module._Session
    else:
        runtime = pytest.importorskip("ai_edge_litert.interpreter")
        monkeypatch.setattr(runtime.Interpreter, "get_output_details", broken)
        build = module._Interpreter
    with pytest.raises(BundleError, match="refuses it"):
        build(raw, "x", 1)
