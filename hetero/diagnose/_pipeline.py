"""The way from a file's bytes to a vector as named steps, each of which can be replaced alone.

The reference steps are those of `hetero.preprocess`, taken apart; put together they give the same
bits.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from hetero.preprocess import Preprocess, decode

Array = np.ndarray[Any, Any]

#: Every stage that can be guilty, in the order in which a picture passes them.
STAGES = (
    "decode",
    "orientation",
    "colour",
    "crop",
    "resize",
    "normalise",
    "layout",
    "conversion",
    "quantisation",
    "runtime",
    "pooling",
    "l2",
    "output",
)

#: The stages whose step works on one picture at a time, and those that take all at once.
PICTURE_STEPS = ("decode", "orientation", "colour", "crop", "resize")
BATCH_STEPS = ("normalise", "layout", "network", "l2", "output")
STEPS = (*PICTURE_STEPS, *BATCH_STEPS)

#: The step in which a stage's fault takes place; the model's own stages are all one step.
STEP_OF: Mapping[str, str] = {
    **{name: name for name in STEPS if name != "network"},
    **dict.fromkeys(("conversion", "quantisation", "runtime", "pooling"), "network"),
}

_TAG = 0x0112
_ROWS = 64


@runtime_checkable
class Engine(Protocol):
    """What embeds: the bundle's net in PyTorch, and the exported file where there is one.

    Attributes:
        net: The PyTorch module, for hypotheses that alter it; None where there is none.
    """

    net: Any

    def rows(self, tensor: Float32[np.ndarray, "n 3 s s"]) -> Float32[np.ndarray, "n d"]:
        """The reference rows for normalised pictures."""
        ...

    def file_rows(self, pixels: Array) -> Array | None:
        """The exported file's rows for uint8 NHWC pictures, or None where it cannot be asked."""
        ...


@dataclass(frozen=True)
class Pipeline:
    """One function a step; `dataclasses.replace` makes a pipeline that is wrong in one place.

    Attributes:
        decode: Bytes -> (RGB uint8 as the sensor lay, EXIF orientation 1..8).
        orientation: Those two -> the picture upright.
        colour: RGB -> RGB.
        crop: RGB, spec -> RGB.
        resize: RGB, spec -> (size, size, 3), uint8, or float 0..255 where nothing rounds.
        normalise: All pictures NHWC, spec -> float32 NHWC.
        layout: float32 NHWC -> float32 NCHW.
        network: Tensor, engine -> rows.
        l2: Rows -> rows.
        output: Rows -> what leaves the device.
    """

    decode: Callable[[bytes], tuple[Array, int]]
    orientation: Callable[[Array, int], Array]
    colour: Callable[[Array], Array]
    crop: Callable[[Array, Preprocess], Array]
    resize: Callable[[Array, Preprocess], Array]
    normalise: Callable[[Array, Preprocess], Array]
    layout: Callable[[Array], Array]
    network: Callable[[Array, Engine], Array]
    l2: Callable[[Array], Array]
    output: Callable[[Array], Array]


def read_file(data: bytes) -> tuple[Array, int]:
    """The picture as its sensor lay, opaque on white, and the EXIF orientation (1 is upright)."""
    from PIL import Image

    upright = decode(data)
    with Image.open(io.BytesIO(data)) as opened:
        tag = int(opened.getexif().get(_TAG, 1))
    # Turning loses nothing, so undoing it gives what the decoder saw.
    return turn(upright, {6: 8, 8: 6}.get(tag, tag)), tag


def turn(rgb: Array, tag: int) -> Array:
    """The picture turned as an EXIF orientation says; as it is for 1 and for unknown values."""
    ways: dict[int, Callable[[Array], Array]] = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, 1),
    }
    return np.ascontiguousarray(ways[tag](rgb) if tag in ways else rgb)


def centre(rgb: Array, spec: Preprocess) -> Array:
    """The centred square, if the spec asks for one."""
    if spec.fit != "centre":
        return rgb
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return rgb[top : top + side, left : left + side]


def scale(rgb: Array, spec: Preprocess) -> Array:
    """The picture at the model's size by the spec's own filter."""
    from dataclasses import replace

    return replace(spec, fit="squash").pixels(np.ascontiguousarray(rgb))


def standard(pixels: Array, spec: Preprocess) -> Array:
    """(x/255 - mean) / std, still NHWC."""
    mean, std = (np.asarray(v, dtype=np.float32) for v in (spec.mean, spec.std))
    rows: Array = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return rows


def unit(rows: Array) -> Array:
    """Rows of length 1; a row that has none stays what it is."""
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    usable = np.isfinite(length) & (length > 1e-12)
    return np.asarray(rows / np.where(usable, length, 1.0), dtype=np.float32)


def reference() -> Pipeline:
    """The pipeline in which nothing is wrong."""
    return Pipeline(
        decode=read_file,
        orientation=turn,
        colour=lambda rgb: rgb,
        crop=centre,
        resize=scale,
        normalise=standard,
        layout=lambda nhwc: np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2)),
        network=lambda tensor, engine: engine.rows(tensor),
        l2=unit,
        output=lambda rows: rows,
    )


@dataclass(frozen=True, eq=False)
class States:
    """What a pipeline holds before each step, and at the end.

    Attributes:
        before: Step -> its input: a list with one entry a picture, or an array of all.
        rows: What came out.
        decoded: RGB after decode, orientation and colour, one a picture.
        pixels: At the model's size, NHWC.
        tensor: Normalised, NCHW.
    """

    before: Mapping[str, Any]
    rows: Array
    decoded: Sequence[Array] = field(default=())
    pixels: Array | None = None
    tensor: Array | None = None


def run(
    pipeline: Pipeline,
    spec: Preprocess,
    engine: Engine,
    start: str,
    value: Any,
    *,
    by_file: bool = False,
    until: str = "",
) -> States:
    """All states from one step on.

    Args:
        pipeline: Its functions.
        spec: How pictures are prepared.
        engine: What embeds.
        start: The first step to take.
        value: Its input.
        by_file: Let the exported file do what follows uint8 pixels, where it can.
        until: Stop before this step; then `rows` is empty.
    """
    before: dict[str, Any] = {}
    found: dict[str, Any] = {}
    empty = np.empty((0, 0), dtype=np.float32)
    for step in STEPS[STEPS.index(start) :]:
        before[step] = value
        if step == "crop":
            found["decoded"] = value
        if step == "normalise":
            found["pixels"] = value = np.stack(value) if isinstance(value, list) else value
            before[step] = value
        if step == "network":
            found["tensor"] = value
        if step == until:
            return States(before, empty, **found)
        asked = by_file and step == "normalise" and value.dtype == np.uint8
        answer = engine.file_rows(value) if asked else None
        if answer is not None:
            before["l2"] = answer
            if until == "l2":
                return States(before, empty, **found)
            before["output"] = pipeline.l2(answer)
            return States(before, pipeline.output(before["output"]), **found)
        value = _step(pipeline, spec, engine, step, value)
    return States(before, value, **found)


def _step(pipeline: Pipeline, spec: Preprocess, engine: Engine, step: str, value: Any) -> Any:
    do = getattr(pipeline, step)
    if step == "orientation":
        return [do(rgb, tag) for rgb, tag in value]
    if step in ("decode", "colour"):
        return [do(item) for item in value]
    if step in ("crop", "resize"):
        return [do(rgb, spec) for rgb in value]
    if step == "normalise":
        return do(value, spec)
    if step == "network":
        return do(value, engine)
    return do(value)


def in_parts(call: Callable[[Array], Array], values: Array) -> Array:
    """`call` on 64 rows at a time, its rows put together."""
    parts = [call(values[i : i + _ROWS]) for i in range(0, len(values), _ROWS)]
    return np.concatenate(parts)
