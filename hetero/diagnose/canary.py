"""Canary pictures: image files of which each is moved by the faults of a few stages only.

An app embeds them, and which of them moved says which stage is guilty, before any guess is made: if
only the turned JPEGs moved, it is the orientation; if those at the model's own size are right and
the larger ones are not, it is the resize.

They are made from a bundle's probe pictures and nothing else, bit by bit the same everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hetero._files import make_folder, storage_errors
from hetero.bundle import Probe
from hetero.diagnose._pipeline import STAGES, Array
from hetero.preprocess import Preprocess

#: (picture, number) -> a file's bytes.
_Maker = Callable[[Array, int], bytes]

#: What every picture passes, whatever it looks like.
_ALWAYS = frozenset(STAGES[STAGES.index("conversion") :]) | {"normalise"}


@dataclass(frozen=True)
class Canary:
    """One picture as a file.

    Attributes:
        name: File name, unique: "exif6-03.jpg".
        data: The file's bytes.
        base: Id of the probe picture it shows.
        moved_by: The stages whose faults can move its vector.
    """

    name: str
    data: bytes
    base: str
    moved_by: frozenset[str]

    @property
    def kind(self) -> str:
        """The part of the name before the number: "exif6"."""
        return self.name.rpartition("-")[0]


def canaries(probe: Probe, spec: Preprocess) -> tuple[Canary, ...]:
    """Some hundred image files made from a probe.

    Args:
        probe: A bundle's own; at least one picture.
        spec: Of the same bundle; says what size needs no resize.
    """
    out: list[Canary] = []
    for kind, count, make, stages in _kinds(probe.pixels, spec):
        for at in range(count):
            # Each kind begins elsewhere, so that all of the probe is used.
            row = (at * 7 + len(out)) % len(probe.ids)
            data = make(probe.pixels[row], at)
            suffix = "jpg" if data[:2] == b"\xff\xd8" else "png"
            out.append(Canary(f"{kind}-{at:02}.{suffix}", data, probe.ids[row], stages))
    return tuple(out)


def write(pictures: Sequence[Canary], folder: Path) -> None:
    """Write the files and names.txt, which lists them in order."""
    make_folder(folder)
    with storage_errors(folder):
        for picture in pictures:
            (folder / picture.name).write_bytes(picture.data)
        (folder / "names.txt").write_text("".join(f"{p.name}\n" for p in pictures))


def _kinds(pixels: Array, spec: Preprocess) -> Iterator[tuple[str, int, _Maker, frozenset[str]]]:
    """Name, number, maker and the stages that can move it, of each kind of canary."""
    size = spec.size_px
    same = len(set(spec.mean)) == 1 and len(set(spec.std)) == 1
    plain = _ALWAYS | {"colour", "layout"}
    # A grey picture of one brightness is the same in any order of channels and pixels.
    flat = _ALWAYS if same else _ALWAYS | {"layout"}
    wide = "crop" if spec.fit == "centre" else "resize"
    large = plain | {"resize"}
    # Decoders that save memory give large pictures at a fraction of their size.
    huge = large | {"decode"}
    yield "flat", 6, lambda _, at: _png(_flat(size, (0, 255, 128, 64, 192, 32)[at])), flat
    yield "grey", 8, lambda p, _: _png(_grey(p)), _ALWAYS | {"layout"}
    yield "plain", 18, lambda p, _: _png(p), plain
    yield "large", 12, lambda p, at: _png(_enlarged(p, size * 3 + 5 * at, at)), huge
    yield "double", 4, lambda p, at: _png(_enlarged(p, size * 2, 40 + at)), huge
    yield "small", 4, lambda p, at: _png(_enlarged(p, max(8, size * 2 // 3), at, 0)), large
    yield "wide", 8, lambda p, at: _png(_padded(p, at, tall=False)), plain | {wide}
    yield "tall", 8, lambda p, at: _png(_padded(p, at, tall=True)), plain | {wide}
    both = huge | {"crop"} if spec.fit == "centre" else huge
    yield (
        "photo",
        6,
        lambda p, at: _png(_padded(_enlarged(p, size * 3 + 7 * at, at), at, tall=bool(at % 2))),
        both,
    )
    yield "jpeg", 8, lambda p, _: _jpeg(p), plain | {"decode"}
    for tag in range(2, 9):
        stages = plain | {"decode", "orientation"}
        yield f"exif{tag}", 3, _tagged(tag), stages
    yield "alpha", 8, lambda p, at: _alpha(p, at), plain | {"decode"}
    yield "palette", 3, lambda p, _: _palette(p), plain | {"decode"}
    yield "grey16", 2, lambda p, _: _grey16(p), _ALWAYS | {"layout", "decode"}


def _flat(size: int, value: int) -> Array:
    return np.full((size, size, 3), value, dtype=np.uint8)


def _grey(picture: Array) -> Array:
    mean = np.rint(picture.astype(np.float64).mean(axis=2, keepdims=True))
    return np.repeat(mean, 3, axis=2).astype(np.uint8)


def _enlarged(picture: Array, side: int, seed: int, grain: int = 48) -> Array:
    """The picture at another size, with a fine grain that only an antialiased resize takes away."""
    from PIL import Image

    large = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    if not grain:
        return np.asarray(large)
    rng = np.random.default_rng([side, seed])
    noise = rng.integers(-grain, grain + 1, (side, side, 3))
    return np.clip(np.asarray(large).astype(np.int64) + noise, 0, 255).astype(np.uint8)


def _padded(picture: Array, at: int, *, tall: bool) -> Array:
    """The picture in the middle of a longer one, between other parts of itself."""
    side = picture.shape[0]
    # An odd surplus now and then: who rounds the other way is a pixel off.
    extra = side // 2 + 3 * at + at % 2
    first = extra // 2
    turned = picture.transpose(1, 0, 2) if tall else picture
    before = np.take(turned[:, ::-1], range(-first, 0), axis=1, mode="wrap")
    after = np.take(turned[::-1], range(extra - first), axis=1, mode="wrap")
    long = np.concatenate([before, turned, after], axis=1)
    return np.ascontiguousarray(long.transpose(1, 0, 2) if tall else long)


def _png(picture: Array) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg(picture: Array, tag: int = 1) -> bytes:
    from PIL import Image

    from hetero.diagnose._pipeline import turn

    # Stored so that turning it as the tag says gives the picture.
    stored = turn(picture, {6: 8, 8: 6}.get(tag, tag))
    exif = Image.Exif()
    exif[0x0112] = tag
    buffer = io.BytesIO()
    # Full colour resolution: decoders differ in how they spread a halved one.
    Image.fromarray(stored).save(buffer, "JPEG", quality=95, subsampling=0, exif=exif)
    return buffer.getvalue()


def _tagged(tag: int) -> _Maker:
    return lambda picture, _: _jpeg(picture, tag)


def _alpha(picture: Array, at: int) -> bytes:
    """A picture whose border is half or wholly transparent, with colours hidden below."""
    from PIL import Image

    side = picture.shape[0]
    y, x = np.mgrid[:side, :side] / (side - 1) * 2 - 1
    edge = np.maximum(abs(x), abs(y)) if at % 2 else np.hypot(x, y)
    alpha = np.clip((1.05 - edge) * 510, 0, 255).astype(np.uint8)
    hidden = np.where(alpha[..., None] == 0, np.uint8((17, 99, 201)[at % 3]), picture)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([hidden, alpha]).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _palette(picture: Array) -> bytes:
    from PIL import Image

    paletted = Image.fromarray(picture).quantize(32, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    paletted.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def _grey16(picture: Array) -> bytes:
    from PIL import Image

    grey = picture.astype(np.float64).mean(axis=2) * 257
    buffer = io.BytesIO()
    Image.fromarray(np.rint(grey).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()
