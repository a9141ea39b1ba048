"""The app's side in Python: NumPy only; Pillow where a file is to be decoded."""

from __future__ import annotations

from hetero.snippets import Spec, fill

FILE = "embed.py"
RUN = "python embed.py"

_FILTERS = {
    "box": "    return 1.0 if -0.5 < x <= 0.5 else 0.0",
    "bilinear": "    return max(0.0, 1.0 - abs(x))",
    "bicubic": """\
    x = abs(x)
    if x < 1.0:
        return ((1.5 * x - 2.5) * x) * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0""",
    "lanczos": """\
    def sinc(t):
        return 1.0 if t == 0.0 else math.sin(t * math.pi) / (t * math.pi)

    return sinc(x) * sinc(x / 3.0) if -3.0 <= x < 3.0 else 0.0""",
}

_OPEN = {
    "onnx": """\
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0][0]""",
    "tflite": """\
    from ai_edge_litert.interpreter import Interpreter

    net = Interpreter(model_path=str(path))
    net.allocate_tensors()

    def run(batch):
        net.set_tensor(net.get_input_details()[0]["index"], batch)
        net.invoke()
        return net.get_tensor(net.get_output_details()[0]["index"])[0]

    return run""",
    "coreml": """\
    import coremltools
    from PIL import Image

    net = coremltools.models.MLModel(str(path))  # predicts on macOS only
    name = net.get_spec().description.input[0].name

    def run(batch):
        given = Image.fromarray(batch[0]) if batch.dtype == np.uint8 else batch
        return next(iter(net.predict({name: given}).values()))[0]

    return run""",
}

_TEMPLATE = '''\
"""Embeds pictures with @FILE@ as the gallery's side expects it. Written by `hetero snippet`.

`python embed.py` checks pixels and vectors against the canaries beside it. NumPy is needed, and
the model's runtime; Pillow for decode() alone.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np

SPACE_ID = "@SPACE_ID@"
SPACE_DIGEST = "@SPACE_DIGEST@"
PREPROCESS_SHA256 = "@PREPROCESS_SHA256@"
WEIGHTS_SHA256 = "@WEIGHTS_SHA256@"
FILE = "@FILE@"
FILE_SHA256 = "@FILE_SHA256@"
INPUT = "@INPUT@"  # uint8_nhwc: normalising is inside the file
DIM = @DIM@
SIZE = @SIZE@
RESIZE = "@RESIZE@"
SUPPORT = @SUPPORT@
FIT = "@FIT@"
MEAN = (@MEAN@)
STD = (@STD@)
COSINE_LEAST = @COSINE_LEAST@


def decode(path):
    """RGB uint8 (h, w, 3): turned as EXIF says, transparency over white, no colour profile."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I"):  # 16-bit grey: white stays white
        grey = np.rint(np.asarray(picture).astype(np.int64) / 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        above = picture.convert("RGBA")
        picture = Image.new("RGBA", above.size, (255, 255, 255, 255))
        picture.alpha_composite(above)
    return np.array(picture.convert("RGB"))


def crop(rgb):
    """The largest centred square, cut before resizing; all of it where FIT is squash."""
    if FIT != "centre":
        return rgb
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return rgb[top : top + side, left : left + side]


def kernel(x):
    """The @RESIZE@ filter."""
@FILTER@


def weights(length):
    """For each output position: first source position, whole-number weights in 1/2**22."""
    scale = length / SIZE
    wide = max(scale, 1.0)  # the filter grows with the scale: that is antialiasing
    support = SUPPORT * wide
    out = []
    for at in range(SIZE):
        centre = (at + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), length)
        raw = [kernel((x - centre + 0.5) * (1.0 / wide)) for x in range(first, last)]
        total = sum(raw)
        fixed = [w / total * 4194304.0 for w in raw]
        out.append((first, [int(w + 0.5) if w >= 0 else int(w - 0.5) for w in fixed]))
    return out


def along(picture, axis):
    """The picture resized along one axis, rounded to whole levels."""
    rows = np.moveaxis(picture, axis, 0).astype(np.int64)
    out = []
    for first, ws in weights(rows.shape[0]):
        part = rows[first : first + len(ws)]
        out.append((np.tensordot(np.array(ws, np.int64), part, 1) + 2097152) >> 22)
    return np.moveaxis(np.clip(np.array(out), 0, 255).astype(np.uint8), 0, axis)


def pixels(rgb):
    """uint8 (SIZE, SIZE, 3): cropped and resized, across first, then down."""
    return along(along(crop(rgb), 1), 0)


def model_input(ready):
    """What the file takes for these pixels: themselves, or normalised (1, 3, SIZE, SIZE)."""
    if INPUT == "uint8_nhwc":
        return ready[None]
    x = ready.astype(np.float32) / np.float32(255)
    x = (x - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])


def unit(vector):
    """The vector at length 1."""
    v = np.asarray(vector, np.float64).ravel()
    length = math.sqrt(float(v @ v))
    if v.size != DIM or not math.isfinite(length) or length < 1e-12:
        raise ValueError(f"{v.size} numbers of length {length}, expected {DIM} of a length above 0")
    return (v / length).astype(np.float32)


def open_model(path):
    """A function from the model's input to its vector."""
@OPEN@


def embed(rgb, run):
    """The unit vector of a picture."""
    return unit(run(model_input(pixels(rgb))))


def self_check(folder, run=None):
    """Mistakes found with the canaries in a folder; of vectors too, if `run` is given."""
    folder = Path(folder)
    index = json.loads((folder / "canaries.json").read_text())
    mine = (SPACE_DIGEST, PREPROCESS_SHA256, FILE_SHA256)
    theirs = (index["space_digest"], index["preprocess_sha256"], index["file_sha256"])
    if mine != theirs:
        return [f"canaries of another space, preprocessing or file: {theirs}, expected {mine}"]
    mistakes = []
    for c in index["canaries"]:
        rgb, want, vector = (
            np.fromfile(folder / c[k]["file"], c[k]["dtype"]).reshape(c[k]["shape"])
            for k in ("rgb", "pixels", "vector")
        )
        got = pixels(rgb)
        if got.shape != want.shape:
            mistakes.append(f"{c['picture']}: pixels {got.shape}, expected {want.shape}")
            continue
        off = int(np.abs(got.astype(int) - want.astype(int)).max())
        if off:
            mistakes.append(f"{c['picture']}: pixels are up to {off} levels off")
        if run is not None:
            cosine = float(embed(rgb, run) @ vector)
            if not cosine >= COSINE_LEAST:
                mistakes.append(f"{c['picture']}: cosine {cosine:.6f}, at least {COSINE_LEAST}")
    return mistakes


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else here / FILE
    runner = None
    if model.is_file() and hashlib.sha256(model.read_bytes()).hexdigest() != FILE_SHA256:
        sys.exit(f"{model}: not the file this was written for")
    if model.exists():
        runner = open_model(model)
    found = self_check(here / "canaries", runner)
    print("\\n".join(found) or f"canaries agree, space {SPACE_ID}")
    if runner is None:
        print(f"pixels only: there is no {model}")
    sys.exit(1 if found else 0)
'''


def render(spec: Spec) -> str:
    """The source of ``embed.py``."""
    more = {"FILTER": _FILTERS[spec.preprocess.resize], "OPEN": _OPEN[spec.kind]}
    return fill(_TEMPLATE, spec.constants() | more)
