"""An app that embeds the canary files, right or wrong: its own code, with Pillow and NumPy only.

Nothing of `hetero.diagnose` or `hetero.preprocess` is used, so that the diagnosis cannot recognise
its own handwriting. The numbers in the faults are drawn from the seed and mostly lie between, or
outside, those that the hypotheses try; some faults have no hypothesis at all.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class App:
    """What an app does, step by step; every function may be exchanged."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    open: Callable[[bytes], Image.Image]
    upright: Callable[[Image.Image], Image.Image]
    colour: Callable[[Image.Image], Image.Image]
    crop: Callable[[Image.Image], Image.Image]
    resize: Callable[[Image.Image, int], Array]
    tensor: Callable[[Array, Array, Array], Array]
    chw: Callable[[Array], Array]

    def decoded(self, data: bytes) -> Image.Image:
        return self.colour(self.upright(self.open(data)).convert("RGB"))

    def pixels(self, data: bytes) -> Array:
        return self.resize(self.crop(self.decoded(data)), self.size)

    def input(self, pixels: Array) -> Array:
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        planes = [self.chw(self.tensor(p, mean, std)) for p in pixels]
        return np.ascontiguousarray(np.stack(planes), dtype=np.float32)


def over(colour: tuple[int, int, int]) -> Callable[[bytes], Image.Image]:
    def load(data: bytes) -> Image.Image:
        picture = Image.open(io.BytesIO(data))
        if picture.mode.startswith("I"):
            high = (np.asarray(picture).astype(np.float64) / 257 + 0.5).astype(np.uint8)
            return Image.fromarray(high)
        if picture.mode == "P" or "A" in picture.mode:
            tagged = picture.getexif()
            front = picture.convert("RGBA")
            back = Image.new("RGBA", front.size, (*colour, 255))
            back.alpha_composite(front)
            back.getexif().update(tagged)
            return back.convert("RGB")
        return picture

    return load


def middle(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def antialiased(picture: Image.Image, size: int) -> Array:
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def right(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> App:
    """The app without a fault, for bundles with a bilinear resize of the centred square."""
    return App(
        size,
        mean,
        std,
        over((255, 255, 255)),
        lambda p: ImageOps.exif_transpose(p),
        lambda p: p,
        middle,
        antialiased,
        lambda p, m, s: (p / 255.0 - m) / s,
        lambda x: x.transpose(2, 0, 1),
    )


@dataclass(frozen=True)
class Wrong:
    """A fault in an app: its true stage, what it is, whether a hypothesis does the very same."""

    stage: str
    name: str
    known: bool
    change: Callable[[App], App]


def faults(rng: np.random.Generator) -> Iterator[Wrong]:
    """The faults before the model, their numbers drawn."""
    yield from _decode(rng)
    yield from _orientation()
    yield from _colour(rng)
    yield from _crop(rng)
    yield from _resize()
    yield from _normalise(rng)
    yield from _layout()


def _decode(rng: np.random.Generator) -> Iterator[Wrong]:
    grey = int(rng.integers(20, 110))
    green = (int(rng.integers(0, 60)), int(rng.integers(150, 250)), int(rng.integers(0, 60)))
    quality = int(rng.choice([35, 42, 45, 55, 65, 70]))
    lossy = int(rng.integers(30, 60))

    def opened(how: Callable[[bytes, Image.Image], Image.Image]) -> Callable[[App], App]:
        return lambda app: replace(app, open=lambda d: how(d, app.open(d)))

    def jpeg(_: bytes, p: Image.Image) -> Image.Image:
        out = io.BytesIO()
        p.convert("RGB").save(out, "JPEG", quality=quality, exif=p.getexif())
        return Image.open(out)

    def webp(_: bytes, p: Image.Image) -> Image.Image:
        out = io.BytesIO()
        p.convert("RGB").save(out, "WEBP", quality=lossy, exif=p.getexif())
        return Image.open(out)

    def few_bits(_: bytes, p: Image.Image) -> Image.Image:
        array = np.asarray(p.convert("RGB"))
        kept = np.dstack([array[..., 0] & 0xF8, array[..., 1] & 0xFC, array[..., 2] & 0xF8])
        out = Image.fromarray(kept)
        out.getexif().update(p.getexif())
        return out

    def indices(data: bytes, p: Image.Image) -> Image.Image:
        raw = Image.open(io.BytesIO(data))
        return Image.fromarray(np.asarray(raw) * 8) if raw.mode == "P" else p

    def chroma(data: bytes, p: Image.Image) -> Image.Image:
        if data[:2] != b"\xff\xd8":
            return p
        y, cb, cr = p.convert("YCbCr").split()
        half = [c.resize((p.width // 2, p.height // 2)).resize(p.size, 0) for c in (cb, cr)]
        out = Image.merge("YCbCr", (y, *half)).convert("RGB")
        out.getexif().update(p.getexif())
        return out

    def thumbnail(_: bytes, p: Image.Image) -> Image.Image:
        return p.reduce(3) if min(p.size) >= 90 else p

    yield Wrong("decode", "alpha over black", True, lambda a: replace(a, open=over((0, 0, 0))))
    yield Wrong(
        "decode", f"alpha over grey {grey}", False, lambda a: replace(a, open=over((grey,) * 3))
    )
    yield Wrong("decode", f"alpha over {green}", False, lambda a: replace(a, open=over(green)))
    yield Wrong("decode", f"saved as JPEG {quality} before", False, opened(jpeg))
    yield Wrong("decode", f"saved as WebP {lossy} before", False, opened(webp))
    yield Wrong("decode", "565 bits", True, opened(few_bits))
    yield Wrong("decode", "palette indices taken for grey", False, opened(indices))
    yield Wrong("decode", "JPEG colours at half resolution", False, opened(chroma))
    yield Wrong("decode", "large pictures reduced by 3 while decoding", False, opened(thumbnail))


def _orientation() -> Iterator[Wrong]:
    ops = Image.Transpose

    def by(table: dict[int, Any]) -> Callable[[App], App]:
        def turned(p: Image.Image) -> Image.Image:
            op = table.get(p.getexif().get(0x0112, 1))
            return p if op is None else p.transpose(op)

        return lambda app: replace(app, upright=turned)

    whole = {2: ops(0), 3: ops(3), 4: ops(1), 5: ops(5), 6: ops(4), 7: ops(6), 8: ops(2)}
    yield Wrong("orientation", "EXIF ignored", True, by({}))
    yield Wrong("orientation", "6 and 8 exchanged", True, by({**whole, 6: ops(2), 8: ops(4)}))
    yield Wrong("orientation", "only 3, 6 and 8", True, by({k: whole[k] for k in (3, 6, 8)}))
    yield Wrong("orientation", "only 3 and 6", False, by({k: whole[k] for k in (3, 6)}))
    yield Wrong("orientation", "5 and 7 exchanged", False, by({**whole, 5: ops(6), 7: ops(5)}))
    yield Wrong("orientation", "3 mirrored instead", False, by({**whole, 3: ops(0)}))


def _colour(rng: np.random.Generator) -> Iterator[Wrong]:
    power = float(rng.choice([1.3, 1.35, 1.65, 0.62, 0.74]))
    more = float(rng.uniform(1.5, 1.9))

    def mapped(f: Callable[[Array], Array]) -> Callable[[App], App]:
        def change(p: Image.Image) -> Image.Image:
            return Image.fromarray(
                np.clip(f(np.asarray(p) / 255.0) * 255 + 0.5, 0, 255).astype("u1")
            )

        return lambda app: replace(app, colour=change)

    def linear(x: Array) -> Array:
        return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)

    def bt709(x: Array) -> Array:
        return np.repeat((x @ [0.2126, 0.7152, 0.0722])[..., None], 3, axis=2)

    def no_red(x: Array) -> Array:
        return x * [0.0, 1.0, 1.0]

    yield Wrong("colour", "BGR", True, mapped(lambda x: np.flip(x, axis=2)))
    yield Wrong("colour", "green and blue exchanged", True, mapped(lambda x: x[..., [0, 2, 1]]))
    yield Wrong("colour", f"gamma {power}", False, mapped(lambda x: x**power))
    yield Wrong("colour", "linear light", False, mapped(linear))
    yield Wrong("colour", "grey by BT.709", False, mapped(bt709))
    yield Wrong("colour", "red is zero", True, mapped(no_red))
    yield Wrong(
        "colour",
        f"saturation {more:.2f}",
        False,
        lambda app: replace(app, colour=lambda p: ImageEnhance.Color(p).enhance(more)),
    )
    yield Wrong("colour", "video range", True, mapped(lambda x: (16 + x * 219) / 255))


def _crop(rng: np.random.Generator) -> Iterator[Wrong]:
    off = int(rng.choice([5, 6, 7]))
    share = float(rng.choice([0.84, 0.86, 0.92]))
    bars = int(rng.integers(90, 120))

    def cropped(f: Callable[[Image.Image], Image.Image]) -> Callable[[App], App]:
        return lambda app: replace(app, crop=f)

    def late(by: int) -> Callable[[Image.Image], Image.Image]:
        def cut(p: Image.Image) -> Image.Image:
            side = min(p.size)
            spare = p.width - side, p.height - side
            left, top = (min(max(s // 2 + by, 0), s) for s in spare)
            return p.crop((left, top, left + side, top + side))

        return cut

    def part(p: Image.Image) -> Image.Image:
        inner = middle(p)
        edge = (inner.width - round(inner.width * share)) // 2
        return ImageOps.crop(inner, edge)

    def padded(p: Image.Image) -> Image.Image:
        side = max(p.size)
        return ImageOps.pad(p, (side, side), color=(bars,) * 3)

    def third(p: Image.Image) -> Image.Image:
        side = min(p.size)
        left, top = (p.width - side) // 3, (p.height - side) // 3
        return p.crop((left, top, left + side, top + side))

    yield Wrong("crop", "3 px late", True, cropped(late(3)))
    yield Wrong("crop", f"{off} px early", False, cropped(late(-off)))
    yield Wrong("crop", "squashed", True, cropped(lambda p: p))
    yield Wrong("crop", "top left", True, cropped(lambda p: p.crop((0, 0, *(min(p.size),) * 2))))
    yield Wrong("crop", "a third instead of the middle", False, cropped(third))
    yield Wrong("crop", f"bars of {bars}", False, cropped(padded))
    yield Wrong("crop", f"the middle {share:.0%}", False, cropped(part))


def _resize() -> Iterator[Wrong]:
    def by(f: Callable[[Image.Image, int], Array]) -> Callable[[App], App]:
        def resize(p: Image.Image, size: int) -> Array:
            return np.asarray(p) if p.size == (size, size) else f(p, size)

        return lambda app: replace(app, resize=resize)

    def pillow(kernel: int) -> Callable[[Image.Image, int], Array]:
        return lambda p, s: np.asarray(p.resize((s, s), Image.Resampling(kernel)))

    def indexed(p: Image.Image, size: int) -> Array:
        at = [i * p.width // size for i in range(size)], [i * p.height // size for i in range(size)]
        return np.asarray(p)[np.ix_(at[1], at[0])]

    def four_pixels(corners: bool) -> Callable[[Image.Image, int], Array]:
        def resize(p: Image.Image, size: int) -> Array:
            # Slow and plain on purpose: bilinear between four pixels, as shaders do it.
            a = np.asarray(p, dtype=np.float64)

            def line(n: int) -> tuple[Array, Array, Array]:
                i = np.arange(size)
                x = (
                    i * (n - 1) / (size - 1)
                    if corners
                    else np.clip((i + 0.5) * n / size - 0.5, 0, n - 1)
                )
                low = np.minimum(x.astype(int), n - 2)
                return low, low + 1, x - low

            (t, b, v), (w, r, u) = line(a.shape[0]), line(a.shape[1])
            u, v = u[None, :, None], v[:, None, None]
            up = a[t][:, w] * (1 - u) + a[t][:, r] * u
            down = a[b][:, w] * (1 - u) + a[b][:, r] * u
            return np.clip(up * (1 - v) + down * v + 0.5, 0, 255).astype(np.uint8)

        return resize

    def through(p: Image.Image, size: int) -> Array:
        between = p.resize((size * 5 // 4, size * 5 // 4), Image.Resampling.NEAREST)
        return np.asarray(between.resize((size, size), Image.Resampling.BILINEAR))

    def blurred(p: Image.Image, size: int) -> Array:
        return np.asarray(p.filter(ImageFilter.GaussianBlur(2.5)).resize((size, size), 0))

    yield Wrong("resize", "nearest, no half pixel", True, by(indexed))
    yield Wrong("resize", "bilinear of four pixels", True, by(four_pixels(False)))
    yield Wrong("resize", "bilinear of four pixels, corners aligned", True, by(four_pixels(True)))
    yield Wrong("resize", "bicubic, antialiased", True, by(pillow(3)))
    yield Wrong("resize", "Lanczos", True, by(pillow(1)))
    yield Wrong("resize", "by way of another size", False, by(through))
    yield Wrong("resize", "a blur, then nearest", False, by(blurred))


def _normalise(rng: np.random.Generator) -> Iterator[Wrong]:
    mean, std = rng.uniform(0.3, 0.6, 3), rng.uniform(0.17, 0.4, 3)
    one = float(rng.uniform(0.55, 0.8))

    def by(f: Callable[[Array, Array, Array], Array]) -> Callable[[App], App]:
        return lambda app: replace(app, tensor=f)

    caffe = np.asarray((123.68, 116.78, 103.94))
    numbers = f"{mean.round(2)} {std.round(2)}"
    yield Wrong("normalise", "bytes as they are", True, by(lambda p, m, s: p * 1.0))
    yield Wrong("normalise", "0..1", True, by(lambda p, m, s: p / 255))
    yield Wrong("normalise", "-1..1 as p/127.5 - 1", True, by(lambda p, m, s: p / 127.5 - 1))
    yield Wrong("normalise", "no division by std", True, by(lambda p, m, s: p / 255 - m))
    yield Wrong("normalise", "bytes less means", False, by(lambda p, m, s: p - caffe))
    yield Wrong(
        "normalise", f"constants {numbers}", False, by(lambda p, m, s: (p / 255 - mean) / std)
    )
    yield Wrong(
        "normalise", f"std times {one:.2f}", False, by(lambda p, m, s: (p / 255 - m) / (s * one))
    )
    yield Wrong(
        "normalise", "ImageNet", True,
        by(lambda p, m, s: (p / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
    )  # fmt: skip


def _layout() -> Iterator[Wrong]:
    def by(f: Callable[[Array], Array]) -> Callable[[App], App]:
        return lambda app: replace(app, chw=f)

    yield Wrong(
        "layout", "reshaped, not transposed", True, by(lambda x: x.reshape(3, *x.shape[:2]))
    )
    yield Wrong("layout", "x before y", True, by(lambda x: np.swapaxes(x, 0, 2)))
    yield Wrong(
        "layout", "rows from the bottom", True, by(lambda x: np.flipud(x).transpose(2, 0, 1))
    )
    yield Wrong("layout", "mirrored", True, by(lambda x: np.fliplr(x).transpose(2, 0, 1)))
    yield Wrong("layout", "a quarter turn", True, by(lambda x: np.rot90(x).transpose(2, 0, 1)))
