"""The whole path in an ONNX file: a picture of any size in, its unit vector out.

ONNX has a resize of its own, "Resize" with antialias=1. On ONNX Runtime 1.32 it departs from Pillow
by up to 28 levels for bilinear and by a few for bicubic, and knows neither box nor lanczos. So the
filter's weights are computed in the graph, in float64, rounded to Pillow's 22 bits, and applied as
two matrix products whose sums float64 holds exactly: the pixels are those of Pillow, bit by bit.

What that costs: the weights are mostly zeros, and are multiplied all the same. Time and memory grow
with the picture, 3 x height x width x size_px multiplications and 24 bytes a pixel.

Paper: none; the arithmetic is that of Pillow's src/libImaging/Resample.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hetero.errors import ConfigError, ExportError, require
from hetero.export import _seal
from hetero.preprocess import Preprocess

#: Half of each filter's width at scale 1, in source pixels.
SUPPORT = {"box": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}

#: Weights are whole numbers of 2**-BITS.
BITS = 22

#: What a file made here says under "hetero.input".
INPUT = "uint8_hwc"

_PI = 3.141592653589793


class _Graph:
    """Nodes and constants under names that no converter uses."""

    def __init__(self, onnx: Any) -> None:
        self._onnx, self.nodes, self.constants = onnx, [], []  # type: ignore[var-annotated]

    def add(self, op: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """Name of what a new node gives."""
        name = output or f"whole/{op}_{len(self.nodes)}"
        made = self._onnx.helper.make_node(op, list(inputs), [name], f"n/{name}", **attributes)
        self.nodes.append(made)
        return name

    def number(self, value: object, dtype: str = "float64") -> str:
        """Name of a constant."""
        name = f"whole/c_{len(self.constants)}"
        array = np.asarray(value, dtype=dtype)
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def cast(self, value: str, to: str) -> str:
        """The value as DOUBLE, INT64 or UINT8; to a whole number by cutting off, as C does."""
        return self.add("Cast", value, to=getattr(self._onnx.TensorProto, to))


def whole_image(model_bytes: bytes, preprocess: Preprocess) -> bytes:
    """A sealed ONNX file that takes one picture, uint8 (h, w, 3) RGB of any size.

    Crop, resize, normalising, net and L2 are inside. Decoding, EXIF orientation and transparency
    stay with the app: see `hetero.preprocess.decode`.

    Args:
        model_bytes: A file that was exported with its preprocessing inside: uint8 (n, s, s, 3) in,
            n any number or 1.
        preprocess: Of the same bundle.

    Raises:
        ConfigError: The file takes something else.
        ExportError: The result is not valid ONNX.
        MissingExtraError: onnx is not installed.
    """
    onnx = require("onnx", "onnx")
    model = onnx.load_from_string(model_bytes)
    graph, size = model.graph, preprocess.size_px
    entry = graph.input[0] if len(graph.input) == 1 else None
    shape = [d.dim_value for d in entry.type.tensor_type.shape.dim] if entry else []
    kind = entry.type.tensor_type.elem_type if entry else 0
    wanted = kind == onnx.TensorProto.UINT8 and shape[1:] == [size, size, 3] and shape[0] in (0, 1)
    if entry is None or not wanted:
        raise ConfigError(
            f"the whole path needs a file that takes uint8 (n, {size}, {size}, 3) with n any "
            f"number or 1, got shape {shape}; export it with its preprocessing inside"
        )
    g = _Graph(onnx)
    _picture_to_pixels(g, preprocess, output=entry.name)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*g.nodes, *rest])
    graph.initializer.extend(g.constants)
    del graph.input[:]
    graph.input.append(
        onnx.helper.make_tensor_value_info(
            "picture", onnx.TensorProto.UINT8, ["height", "width", 3]
        )
    )
    first = graph.output[0].type.tensor_type.shape.dim[0]
    first.Clear()
    first.dim_value = 1
    texts = {p.key: p.value for p in model.metadata_props}
    texts |= {"hetero.input": INPUT, _seal.KEY: _seal.BLANK}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(texts.items())))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the whole path is not valid ONNX ({str(error)[:200]})") from error
    return _seal.seal(model.SerializeToString(deterministic=True))


def run(raw: bytes, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float32[np.ndarray, "n d"]:
    """What such a file gives for pictures of any size, one after another.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    session = require("onnxruntime", "onnx").InferenceSession(
        raw, providers=["CPUExecutionProvider"]
    )
    return np.concatenate([session.run(None, {"picture": rgb})[0] for rgb in pictures])


def _picture_to_pixels(g: _Graph, preprocess: Preprocess, output: str) -> None:
    """Nodes that do what `Preprocess.pixels` does, from "picture" to (1, s, s, 3)."""
    size = preprocess.size_px
    shape = g.add("Shape", "picture")
    zero, one, two = (g.number([x], "int64") for x in (0, 1, 2))
    height, width = (g.add("Gather", shape, at) for at in (zero, one))
    picture = "picture"
    if preprocess.fit == "centre":
        side = g.add("Min", height, width)
        # Both are at least 0, so that dividing whole numbers rounds down as in Python.
        top, left = (g.add("Div", g.add("Sub", x, side), two) for x in (height, width))
        begin = g.add("Concat", top, left, axis=0)
        end = g.add("Add", begin, side)
        picture = g.add("Slice", picture, begin, end, g.number([0, 1], "int64"))
        height = width = side
    planes = g.cast(g.add("Transpose", picture, perm=[2, 0, 1]), "DOUBLE")
    across = g.add("Transpose", _weights(g, width, size, preprocess.resize), perm=[1, 0])
    rows = _levels(g, g.add("MatMul", planes, across))
    down = _weights(g, height, size, preprocess.resize)
    done = _levels(g, g.add("MatMul", down, rows))
    nhwc = g.add("Transpose", g.cast(done, "UINT8"), perm=[1, 2, 0])
    g.add("Unsqueeze", nhwc, zero, output=output)


def _levels(g: _Graph, sums: str) -> str:
    """Sums of weighted levels, in units of 2**-BITS, as whole levels in 0..255."""
    half, unit = g.number(2.0 ** (BITS - 1)), g.number(2.0**BITS)
    # Pillow shifts, which rounds down; cutting off differs below 0 only, and that becomes 0.
    cut = g.cast(g.add("Div", g.add("Add", sums, half), unit), "INT64")
    return g.add("Clip", g.cast(cut, "DOUBLE"), g.number(0.0), g.number(255.0))


def _weights(g: _Graph, length: str, size: int, resize: str) -> str:
    """Matrix (size, length) of an axis's weights, in units of 2**-BITS, float64."""
    n = g.cast(g.add("Squeeze", length, g.number([0], "int64")), "DOUBLE")
    scale = g.add("Div", n, g.number(size))
    wide = g.add("Max", scale, g.number(1.0))
    half, support = g.number(0.5), g.add("Mul", wide, g.number(SUPPORT[resize]))
    centre = g.add("Mul", g.number(np.arange(size)[:, None] + 0.5), scale)
    first = g.cast(g.add("Add", g.add("Sub", centre, support), half), "INT64")
    first = g.add("Max", g.cast(first, "DOUBLE"), g.number(0.0))
    last = g.cast(g.add("Add", g.add("Add", centre, support), half), "INT64")
    last = g.add("Min", g.cast(last, "DOUBLE"), n)
    at = g.add("Range", g.number(0.0), n, g.number(1.0))
    inside = g.add("And", g.add("GreaterOrEqual", at, first), g.add("Less", at, last))
    away = g.add("Add", g.add("Sub", at, centre), half)
    away = g.add("Mul", away, g.add("Div", g.number(1.0), wide))
    raw = g.add("Where", inside, _FILTERS[resize](g, away), g.number(0.0))
    total = g.add("ReduceSum", raw, g.number([1], "int64"), keepdims=1)
    fixed = g.add("Mul", g.add("Div", raw, total), g.number(2.0**BITS))
    fixed = g.add("Add", fixed, g.add("Mul", g.add("Sign", fixed), half))
    return g.cast(g.cast(fixed, "INT64"), "DOUBLE")


def _box(g: _Graph, x: str) -> str:
    inside = g.add(
        "And", g.add("Greater", x, g.number(-0.5)), g.add("LessOrEqual", x, g.number(0.5))
    )
    return g.cast(inside, "DOUBLE")


def _bilinear(g: _Graph, x: str) -> str:
    return g.add("Max", g.add("Sub", g.number(1.0), g.add("Abs", x)), g.number(0.0))


def _bicubic(g: _Graph, x: str) -> str:
    a = -0.5
    x = g.add("Abs", x)

    def step(value: str, factor: str, plus: float) -> str:
        return g.add("Add", g.add("Mul", value, factor), g.number(plus))

    near = g.add("Sub", g.add("Mul", x, g.number(a + 2)), g.number(a + 3))
    near = g.add("Add", g.add("Mul", g.add("Mul", near, x), x), g.number(1.0))
    far = step(step(g.add("Sub", x, g.number(5.0)), x, 8.0), x, -4.0)
    far = g.add("Mul", far, g.number(a))
    far = g.add("Where", g.add("Less", x, g.number(2.0)), far, g.number(0.0))
    return g.add("Where", g.add("Less", x, g.number(1.0)), near, far)


def _lanczos(g: _Graph, x: str) -> str:
    def sinc(value: str) -> str:
        angle = g.add("Mul", value, g.number(_PI))
        zero = g.add("Equal", angle, g.number(0.0))
        safe = g.add("Where", zero, g.number(1.0), angle)
        return g.add("Where", zero, g.number(1.0), g.add("Div", g.add("Sin", safe), safe))

    inside = g.add(
        "And", g.add("GreaterOrEqual", x, g.number(-3.0)), g.add("Less", x, g.number(3.0))
    )
    both = g.add("Mul", sinc(x), sinc(g.add("Div", x, g.number(3.0))))
    return g.add("Where", inside, both, g.number(0.0))


_FILTERS = {"box": _box, "bilinear": _bilinear, "bicubic": _bicubic, "lanczos": _lanczos}
