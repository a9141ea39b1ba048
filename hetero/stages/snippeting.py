"""Stage: passports beside a bundle's model files, and the app's side as source code."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hetero import snippets
from hetero._files import json_text, write_together
from hetero.bundle import Artifact, Bundle
from hetero.errors import ConfigError, DataError
from hetero.passport import ANY, Band, Passport, Picture, beside
from hetero.preprocess import Preprocess
from hetero.space import Embeddings

Array = np.ndarray[Any, Any]

#: Canaries of a file, and bytes of all their pictures beyond which fewer are taken.
CANARIES, LEAST_CANARIES, PICTURE_BYTES = 8, 4, 400_000

#: A good vector may be this much further from the canary's than the worst that was seen.
SLACK = 4.0

#: Cosines are sums of float32; below this much, differences mean nothing.
ROUNDING = 1e-6


def canaries(bundle: Bundle) -> tuple[tuple[Picture, UInt8[np.ndarray, "h w 3"]], ...]:
    """Canary pictures of odd sizes with their RGB levels, made from the bundle's probe.

    Bit by bit the same wherever they are made: pixels are repeated and left out, never resized.
    """
    from PIL import Image

    probe, out, total = bundle.probe().pixels, [], 0
    for at in range(CANARIES):
        # Coprime to most lengths, so that all of the probe is reached.
        rgb = np.ascontiguousarray(_odd(probe[(at * 7 + 3) % len(probe)], at))
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "PNG", optimize=False)
        total += len(buffer.getvalue())
        if total > PICTURE_BYTES and at >= LEAST_CANARIES:
            break
        out.append((Picture(f"canary-{at:02}.png", buffer.getvalue()), rgb))
    return tuple(out)


def _odd(pixels: UInt8[np.ndarray, "s s 3"], at: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture at its own size, or at a size that makes the app crop and resize."""
    side = len(pixels)
    if at % 4 == 0:
        return pixels
    if at % 4 == 3:
        return pixels[: side - at % 5 : 2, : side - 1 : 1][:, : side // 2 + 1]
    large = pixels.repeat(at % 4 + 1, axis=0).repeat(at % 4 + 1, axis=1)
    cut = side // 3 + at
    return large[cut:] if at % 4 == 1 else large[:, cut:]


def write_passport(bundle: Bundle) -> tuple[Path, ...]:
    """Passports beside all of a bundle's model files; see `hetero.passport`.

    Raises:
        ConfigError: The bundle has no model file.
        MissingExtraError: A file's runtime is not installed.
    """
    if not bundle.exported():
        raise ConfigError(f"{bundle.root}: no model file; run `hetero export` first")
    written = []
    for item in bundle.exported():
        made = passport(bundle, item)
        made.save(beside(bundle.path(item)))
        written.append(beside(bundle.path(item)))
    return tuple(written)


def passport(bundle: Bundle, item: Artifact) -> Passport:
    """The passport of a bundle's model file, which is run on this machine for it.

    Vectors move a little when one level of a pixel differs, when pictures come one by one, and
    with threads; how far they then are from the canary's gives the band. For float files those of
    the bundle's other formats count too, as other runtimes.

    Raises:
        MissingExtraError: The file's runtime is not installed.
        DataError: The file does not tell a fault from rounding.
    """
    spec = bundle.preprocess
    pictures = canaries(bundle)
    pixels = np.stack([spec.pixels(rgb) for _, rgb in pictures])
    with _Opened(bundle, item, 1) as one:
        vectors = one(pixels)
        seen = [_worst(vectors, rows) for rows in _harmless(one, pixels)]
        wrong = _faults(spec, pixels, [rgb for _, rgb in pictures])
        faults = {fault: one(moved) for fault, moved in wrong.items()}
        name = one.runtime
    with _Opened(bundle, item, 2) as two:
        seen.append(_worst(vectors, two(pixels)))
    others = list(seen)
    for other in bundle.exported():
        alike = (other.precision, other.input) == (item.precision, item.input)
        if alike and item.precision in ("fp32", "fp16") and other.kind != item.kind:
            with _Opened(bundle, other, 1) as theirs:
                others.append(_worst(vectors, theirs(pixels)))
    # A fault that moves nothing here, such as a crop of square pictures, is no fault.
    faults = {k: v for k, v in faults.items() if _worst(vectors, v) < 1 - ROUNDING}
    nearest = max((_worst(vectors, v) for v in faults.values()), default=-1.0)
    if nearest > min(seen) - ROUNDING:
        raise DataError(f"{item.path}: a fault moves its vectors no more than rounding does")
    return Passport(
        bundle.space,
        spec,
        bundle.digest,
        item.path,
        item.sha256,
        item.kind,
        item.precision,
        item.input,
        tuple(p for p, _ in pictures),
        vectors,
        faults,
        {
            name.partition(" ")[0]: _band(seen, nearest, SLACK),
            ANY: _band(others, nearest, 2 * SLACK),
        },
    )


def _band(seen: list[float], nearest: float, slack: float) -> Band:
    """The band for cosines that were seen, ended half-way to the nearest fault."""
    worst = min(seen)
    least = 1 - slack * max(1 - worst, ROUNDING)
    return Band(min(worst, max(least, (worst + nearest) / 2)), worst, len(seen))


def _worst(a: Array, b: Array) -> float:
    return float((a.astype(np.float64) * b).sum(axis=1).min())


class _Opened:
    """A model file opened; called with pixels it gives unit rows; a context manager."""

    def __init__(self, bundle: Bundle, item: Artifact, threads: int) -> None:
        from hetero import export

        self._bundle, self._item = bundle, item
        self._runner = export.module(item.kind).load(bundle.path(item), threads)
        self.runtime: str = self._runner.runtime

    def __enter__(self) -> _Opened:
        self._runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.__exit__(kind, error, trace)

    def __call__(self, pixels: UInt8[np.ndarray, "n s s 3"]) -> Float32[np.ndarray, "n d"]:
        raw = self._runner(self._bundle.inputs(self._item, pixels))
        ids = [str(i) for i in range(len(pixels))]
        return Embeddings.normalised(self._bundle.space, ids, raw, self._item.path).vectors


def _harmless(
    file: _Opened, pixels: UInt8[np.ndarray, "n s s 3"]
) -> Iterator[Float32[np.ndarray, "n d"]]:
    """Vectors of the same pictures, got in other ways that are all right."""
    yield np.concatenate([file(p[None]) for p in pixels])
    for seed in range(4):
        # One level up or down in a quarter of the pixels: what JPEG decoders differ by.
        step = np.random.default_rng(seed).choice([-1, 0, 0, 0, 0, 0, 0, 1], pixels.shape)
        yield file(np.clip(pixels.astype(np.int64) + step, 0, 255).astype(np.uint8))


def _faults(
    spec: Preprocess, pixels: UInt8[np.ndarray, "n s s 3"], rgbs: list[UInt8[np.ndarray, "_ _ 3"]]
) -> dict[str, UInt8[np.ndarray, "n s s 3"]]:
    """Name of a fault -> the pixels that an app with it gives to the file."""
    from dataclasses import replace

    other = replace(spec, fit="squash" if spec.fit == "centre" else "centre")
    size = np.arange(spec.size_px)

    def picked(rgb: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "s s 3"]:
        height, width = rgb.shape[:2]
        if spec.fit == "centre":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            rgb, height, width = rgb[top : top + side, left : left + side], side, side
        rows, columns = (
            ((size + 0.5) * n / spec.size_px).astype(np.int64) for n in (height, width)
        )
        out: UInt8[np.ndarray, "s s 3"] = rgb[rows][:, columns]
        return out

    return {
        "red and blue exchanged": np.ascontiguousarray(pixels[..., ::-1]),
        "rows and columns exchanged": np.ascontiguousarray(pixels.transpose(0, 2, 1, 3)),
        "upside down": np.ascontiguousarray(pixels[:, ::-1]),
        "levels of 0 to 1 where 0 to 255 are expected": pixels // 255,
        "resized without antialiasing": np.stack([picked(rgb) for rgb in rgbs]),
        f"fit {other.fit} where {spec.fit} is expected": np.stack([other.pixels(r) for r in rgbs]),
    }


def find(bundle: Bundle, wanted: str) -> Artifact:
    """The model file that "onnx:int8" means.

    Raises:
        ConfigError: Not of the form FORMAT:PRECISION.
        BundleError: There is none.
    """
    kind, sign, precision = wanted.partition(":")
    if not (kind and sign and precision):
        raise ConfigError(f"--file {wanted!r}: write FORMAT:PRECISION, such as onnx:int8")
    return bundle.artifact(kind, precision)


def snippet(
    bundle: Bundle, item: Artifact, languages: Sequence[str], folder: Path
) -> tuple[Path, ...]:
    """The files written: sources, canaries, passport; the passport is made anew.

    ``canaries/`` holds, per picture, the PNG and what each step gives: NAME.rgb.bin (uint8, h w 3),
    NAME.pixels.bin (uint8, s s 3), NAME.tensor.bin (float32, 1 3 s s; only where the app
    normalises), NAME.vector.bin (float32, d). canaries.json lists them with shapes;
    canaries.txt says the same in words, for languages without JSON.

    Args:
        bundle: Where the model file is.
        item: Which.
        languages: See `hetero.snippets.languages`.
        folder: Made if need be.

    Raises:
        ConfigError: Unknown language, or no permission to write.
        MissingExtraError: The file's runtime is not installed.
    """
    variants = [snippets.module(language) for language in languages]
    made = passport(bundle, item)
    spec = snippets.Spec.of(made)
    home = folder / "canaries"
    files: dict[Path, bytes | str] = {folder / v.FILE: v.render(spec) for v in variants}
    index: list[dict[str, Any]] = []
    head = f"{made.space.digest} {made.preprocess.sha256} {made.file_sha256}"
    lines = [head]
    for (picture, rgb), vector in zip(canaries(bundle), made.vectors, strict=True):
        stem = picture.name.removesuffix(".png")
        pixels = made.preprocess.pixels(rgb)
        steps: dict[str, Array] = {"rgb": rgb, "pixels": pixels}
        if made.input != "uint8_nhwc":
            steps["tensor"] = made.preprocess.tensor(pixels[None])
        steps["vector"] = vector
        entry: dict[str, Any] = {"picture": picture.name}
        for step, array in steps.items():
            name = f"{stem}.{step}.bin"
            little = array.astype(array.dtype.newbyteorder("<"))
            files[home / name] = np.ascontiguousarray(little).tobytes()
            entry[step] = {"file": name, "dtype": str(array.dtype), "shape": list(array.shape)}
        files[home / picture.name] = picture.png
        index.append(entry)
        lines.append(f"{stem} {rgb.shape[0]} {rgb.shape[1]}")
    files[home / "canaries.json"] = json_text(
        {
            "schema": "hetero.canaries/1",
            "space_digest": made.space.digest,
            "preprocess_sha256": made.preprocess.sha256,
            "file_sha256": made.file_sha256,
            "byte_order": "little",
            "cosine_least": made.band().cosine_least,
            "canaries": index,
        }
    )
    files[home / "canaries.txt"] = "".join(f"{line}\n" for line in lines)
    sealed = json.dumps(made.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files[folder / beside(Path(item.path)).name] = sealed
    files[beside(bundle.path(item))] = sealed
    write_together(files)
    return tuple(files)
