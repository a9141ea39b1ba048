"""Small sound files of every kind, from which the damaged ones are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hetero.bundle import Artifact, Bundle, Model, digest
from hetero.export import _seal
from hetero.passport import Band, Passport, Picture
from hetero.preprocess import Preprocess
from hetero.report import Measurement, Report
from hetero.space import Space

SPACE = Space("seed", "0123456789abcdef" * 4, 4)


def bundle(root: Path) -> Bundle:
    """A bundle with every kind of entry; its files hold what the manifest says."""
    probe = {
        "ids": np.frombuffer(b"a\nb", dtype=np.uint8),
        "pixels": np.zeros((2, 8, 8, 3), np.uint8),
        "vectors": np.eye(2, 4, dtype=np.float32),
    }
    made = Bundle.create(
        root,
        role="query",
        space=SPACE,
        model=Model(backbone="mobilenet", dim=4, parameters=1, macs=1),
        preprocess=Preprocess(size_px=8),
        recipe={"method": "csd", "epochs": 3, "lr": 0.1, "flip": True},
        parent="f" * 64,
        data={"source": "emoji", "n": 2},
        made_with={"torch": "2"},
        tensors={"weights": {"w": np.ones(3, np.float32)}, "probe": probe},
    )
    (root / "model.int8.onnx").write_bytes(onnx())
    sha, size = digest(root / "model.int8.onnx")
    return made.with_artifact(
        Artifact(
            path="model.int8.onnx",
            kind="onnx",
            sha256=sha,
            size_bytes=size,
            precision="int8",
            input="uint8_nhwc",
            facts={"cosine_worst": 0.99},
        )
    )


def onnx() -> bytes:
    """A sealed ONNX file with weights, a constant, a branch and a function."""
    import onnx as o
    from onnx import TensorProto as T
    from onnx import helper as h

    branch = h.make_graph(
        [h.make_node("Identity", ["f"], ["b"])],
        "branch",
        [],
        [h.make_tensor_value_info("b", T.FLOAT, None)],
    )
    nodes = [
        h.make_node("Cast", ["pixels"], ["f"], to=T.FLOAT),
        h.make_node("Constant", [], ["shape"], value=h.make_tensor("s", T.INT64, [2], [-1, 12])),
        h.make_node("Greater", ["zero", "one"], ["yes"]),
        h.make_node("If", ["yes"], ["g"], then_branch=branch, else_branch=branch),
        h.make_node("Reshape", ["g", "shape"], ["r"]),
        h.make_node("MatMul", ["r", "w"], ["m"]),
        h.make_node("Twice", ["m"], ["embedding"], domain="seed"),
    ]
    weights = np.arange(48, dtype=np.float32).reshape(12, 4)
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("pixels", T.UINT8, ["n", 2, 2, 3])],
        [h.make_tensor_value_info("embedding", T.FLOAT, ["n", 4])],
        [
            o.numpy_helper.from_array(weights, "w"),
            h.make_tensor("zero", T.FLOAT, [], [0.0]),
            h.make_tensor("one", T.FLOAT, [], [1.0]),
        ],
    )
    function = h.make_function(
        "seed", "Twice", ["x"], ["y"], [h.make_node("Add", ["x", "x"], ["y"])],
        [h.make_opsetid("", 20)],
    )  # fmt: skip
    model = h.make_model(
        graph,
        functions=[function],
        opset_imports=[h.make_opsetid("", 20), h.make_opsetid("seed", 1)],
        ir_version=9,
    )
    h.set_model_props(model, {"hetero.schema": "hetero.model/1", _seal.KEY: _seal.BLANK})
    return _seal.seal(model.SerializeToString())


def tflite() -> bytes:
    """A sealed TFLite file with a quantised tensor, a signature and a reshape."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    def tensor(name: bytes, shape: list[int], kind: int, buffer: int) -> Any:
        made = s.TensorT()
        made.name, made.shape, made.type, made.buffer = name, shape, kind, buffer
        return made

    def stored(raw: bytes) -> Any:
        made = s.BufferT()
        made.data = np.frombuffer(raw, np.uint8)
        return made

    code, add = s.OperatorCodeT(), s.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = s.BuiltinOperator.RESHAPE
    add.builtinCode = add.deprecatedBuiltinCode = s.BuiltinOperator.ADD
    reshape, plus = s.OperatorT(), s.OperatorT()
    reshape.opcodeIndex, reshape.inputs, reshape.outputs = 0, [0, 1], [2]
    reshape.builtinOptionsType, options = s.BuiltinOptions.ReshapeOptions, s.ReshapeOptionsT()
    options.newShape = [1, 4]
    reshape.builtinOptions = options
    plus.opcodeIndex, plus.inputs, plus.outputs = 1, [2, 3], [4]
    plus.builtinOptionsType, plus.builtinOptions = s.BuiltinOptions.AddOptions, s.AddOptionsT()
    graph = s.SubGraphT()
    graph.tensors = [
        tensor(b"pixels", [1, 2, 2, 1], s.TensorType.FLOAT32, 0),
        tensor(b"shape", [2], s.TensorType.INT32, 1),
        tensor(b"r", [1, 4], s.TensorType.FLOAT32, 0),
        tensor(b"w", [1, 4], s.TensorType.FLOAT32, 2),
        tensor(b"embedding", [1, 4], s.TensorType.FLOAT32, 0),
    ]
    graph.tensors[3].quantization = s.QuantizationParametersT()
    graph.inputs, graph.outputs, graph.operators = [0], [4], [reshape, plus]
    texts = json.dumps({"hetero.schema": "hetero.model/1", _seal.KEY: _seal.BLANK})
    entry = s.MetadataT()
    entry.name, entry.buffer = b"hetero", 3
    sides = []
    for name, at in ((b"pixels", 0), (b"embedding", 4)):
        side = s.TensorMapT()
        side.name, side.tensorIndex = name, at
        sides.append([side])
    signature = s.SignatureDefT()
    signature.inputs, signature.outputs, signature.signatureKey = *sides, b"serving_default"
    model = s.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code, add], [graph]
    model.buffers = [
        s.BufferT(),
        stored(np.array([1, 4], np.int32).tobytes()),
        stored(np.ones(4, np.float32).tobytes()),
        stored(texts.encode()),
    ]
    model.metadata, model.signatureDefs, model.description = [entry], [signature], b"hetero"
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return _seal.seal(bytes(builder.Output()))


def coreml() -> bytes:
    """The message of a sealed package with one constant and one operation."""
    from hetero.export import _mil_store

    model = _mil_store._proto("Model_pb2").Model()
    model.specificationVersion = 8
    model.description.metadata.userDefined[_seal.KEY] = _seal.BLANK
    model.description.metadata.userDefined["hetero.schema"] = "hetero.model/1"
    function = model.mlProgram.functions["main"]
    function.opset = "CoreML7"
    block = function.block_specializations["CoreML7"]
    given = function.inputs.add()
    given.name = "pixels"
    given.type.tensorType.dataType = 11
    given.type.tensorType.rank = 1
    given.type.tensorType.dimensions.add().constant.size = 4
    op = block.operations.add()
    op.type = "relu"
    op.inputs["x"].arguments.add().name = "pixels"
    out = op.outputs.add()
    out.name = "embedding"
    out.type.CopyFrom(given.type)
    block.outputs.append("embedding")
    for name, side in (
        ("pixels", model.description.input),
        ("embedding", model.description.output),
    ):
        port = side.add()
        port.name = name
        port.type.multiArrayType.dataType = 65568
        port.type.multiArrayType.shape.append(4)
    return _seal.seal(model.SerializeToString(deterministic=True))


def passport() -> Any:
    """A passport as JSON values."""
    rows = np.eye(3, 4, dtype=np.float32)
    return Passport(
        SPACE,
        Preprocess(size_px=8),
        "a" * 64,
        "model.int8.onnx",
        "b" * 64,
        "onnx",
        "int8",
        "uint8_nhwc",
        tuple(Picture(f"canary-{i}.png", b"png") for i in range(3)),
        rows,
        {"upside down": rows},
        {"any": Band(0.9, 0.99, 3)},
    ).to_json()


def report(path: Path) -> Any:
    """A report as JSON values."""
    Report("query on local", (Measurement("recall_at_1", 0.5, ci=(0.4, 0.6)),), {"n": "2"}).save(
        path
    )
    return json.loads(path.read_bytes())
