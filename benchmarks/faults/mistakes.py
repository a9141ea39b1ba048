"""What app developers get wrong before the model, each with its numbers drawn from the seed.

The numbers come from ranges, so that each seed has faults of its own; most lie between, or outside,
those that the hypotheses list, and some faults have no hypothesis at all.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks.faults.app import App, Array, middle, over


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
    yield from _orientation(rng)
    yield from _colour(rng)
    yield from _crop(rng)
    yield from _resize(rng)
    yield from _normalise(rng)
    yield from _layout(rng)


def _either(rng: np.random.Generator, *ranges: tuple[float, float]) -> float:
    """A number out of one of these ranges."""
    low, high = ranges[int(rng.integers(len(ranges)))]
    return float(rng.uniform(low, high))


def _kept(p: Image.Image, array: Array) -> Image.Image:
    """A picture of these numbers with the EXIF of another."""
    out = Image.fromarray(array)
    out.getexif().update(p.getexif())
    return out


def _decode(rng: np.random.Generator) -> Iterator[Wrong]:
    grey = int(_either(rng, (20, 110), (145, 225)))
    tint = tuple(int(v) for v in rng.permutation((rng.integers(150, 250), *rng.integers(0, 60, 2))))
    quality, lossy = int(rng.integers(25, 80)), int(rng.integers(20, 75))
    bits = ((5, 6, 5), (5, 5, 5), (4, 4, 4))[int(rng.integers(3))]
    factor = int(rng.integers(2, 4))

    def opened(how: Callable[[bytes, Image.Image], Image.Image]) -> Callable[[App], App]:
        return lambda app: replace(app, open=lambda d: how(d, app.open(d)))

    def compressed(kind: str, level: int) -> Callable[[bytes, Image.Image], Image.Image]:
        def again(_: bytes, p: Image.Image) -> Image.Image:
            out = io.BytesIO()
            p.convert("RGB").save(out, kind, quality=level, exif=p.getexif())
            return Image.open(out)

        return again

    def few_bits(_: bytes, p: Image.Image) -> Image.Image:
        masks = [256 - (1 << (8 - b)) for b in bits]
        return _kept(p, np.asarray(p.convert("RGB")) & np.asarray(masks, dtype=np.uint8))

    def indices(data: bytes, p: Image.Image) -> Image.Image:
        raw = Image.open(io.BytesIO(data))
        return Image.fromarray(np.asarray(raw) * 8) if raw.mode == "P" else p

    def chroma(data: bytes, p: Image.Image) -> Image.Image:
        if data[:2] != b"\xff\xd8":
            return p
        y, cb, cr = p.convert("YCbCr").split()
        half = [c.resize((p.width // 2, p.height // 2)).resize(p.size, 0) for c in (cb, cr)]
        return _kept(p, np.asarray(Image.merge("YCbCr", (y, *half)).convert("RGB")))

    def thumbnail(_: bytes, p: Image.Image) -> Image.Image:
        return p.reduce(factor) if min(p.size) >= 90 else p

    yield Wrong("decode", "alpha over black", True, lambda a: replace(a, open=over((0, 0, 0))))
    yield Wrong(
        "decode", f"alpha over grey {grey}", False, lambda a: replace(a, open=over((grey,) * 3))
    )
    yield Wrong("decode", f"alpha over {tint}", False, lambda a: replace(a, open=over(tint)))
    yield Wrong(
        "decode", f"saved as JPEG {quality} before", False, opened(compressed("JPEG", quality))
    )
    yield Wrong("decode", f"saved as WebP {lossy} before", False, opened(compressed("WEBP", lossy)))
    yield Wrong("decode", f"{''.join(map(str, bits))} bits", True, opened(few_bits))
    yield Wrong("decode", "palette indices taken for grey", False, opened(indices))
    yield Wrong("decode", "JPEG colours at half resolution", False, opened(chroma))
    yield Wrong(
        "decode", f"large pictures reduced by {factor} while decoding", False, opened(thumbnail)
    )


def _orientation(rng: np.random.Generator) -> Iterator[Wrong]:
    ops = Image.Transpose
    whole = {2: ops(0), 3: ops(3), 4: ops(1), 5: ops(5), 6: ops(4), 7: ops(6), 8: ops(2)}
    some = sorted(int(t) for t in rng.choice(list(whole), int(rng.integers(2, 5)), replace=False))
    a, b = (int(t) for t in rng.choice(list(whole), 2, replace=False))
    odd = int(rng.choice(list(whole)))
    other = ops(int(rng.choice([v for v in range(7) if v != whole[odd]])))

    def by(table: dict[int, Any]) -> Callable[[App], App]:
        def turned(p: Image.Image) -> Image.Image:
            op = table.get(p.getexif().get(0x0112, 1))
            return p if op is None else p.transpose(op)

        return lambda app: replace(app, upright=turned)

    yield Wrong("orientation", "EXIF ignored", True, by({}))
    yield Wrong("orientation", "6 and 8 exchanged", True, by({**whole, 6: ops(2), 8: ops(4)}))
    yield Wrong("orientation", "only 3, 6 and 8", True, by({k: whole[k] for k in (3, 6, 8)}))
    yield Wrong("orientation", f"only {some}", False, by({k: whole[k] for k in some}))
    yield Wrong(
        "orientation", f"{a} and {b} exchanged", False, by({**whole, a: whole[b], b: whole[a]})
    )
    yield Wrong("orientation", f"{odd} by {other.name}", False, by({**whole, odd: other}))


def _colour(rng: np.random.Generator) -> Iterator[Wrong]:
    power = _either(rng, (1.25, 2.4), (0.45, 0.8))
    more = _either(rng, (1.5, 1.9), (0.2, 0.6))
    order = [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1]][int(rng.integers(4))]
    lost = int(rng.integers(3))
    stretched = bool(rng.integers(2))
    angle = _either(rng, (0.3, 0.9), (-0.9, -0.3))

    def mapped(f: Callable[[Array], Array]) -> Callable[[App], App]:
        def change(p: Image.Image) -> Image.Image:
            return Image.fromarray(
                np.clip(f(np.asarray(p) / 255.0) * 255 + 0.5, 0, 255).astype("u1")
            )

        return lambda app: replace(app, colour=change)

    def drawn(f: Callable[[Image.Image], Image.Image]) -> Callable[[App], App]:
        return lambda app: replace(app, colour=f)

    def linear(x: Array) -> Array:
        return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)

    def grey(x: Array) -> Array:
        return np.repeat((x @ [0.2126, 0.7152, 0.0722])[..., None], 3, axis=2)

    def without(x: Array) -> Array:
        return x * (np.arange(3) != lost)

    def video(x: Array) -> Array:
        return (x * 255 - 16) / 219 if stretched else (16 + x * 219) / 255

    def exchanged(p: Image.Image) -> Image.Image:
        y, u, v = p.convert("YCbCr").split()
        return Image.merge("YCbCr", (y, v, u)).convert("RGB")

    def hue(x: Array) -> Array:
        # About the grey axis.
        c, s = np.cos(angle), np.sin(angle) / np.sqrt(3)
        turn = (1 - c) / 3 + np.array([[c, -s, s], [s, c, -s], [-s, s, c]])
        return x @ turn.T

    yield Wrong("colour", "BGR", True, mapped(lambda x: np.flip(x, axis=2)))
    yield Wrong("colour", f"channels {order}", True, mapped(lambda x: x[..., order]))
    yield Wrong("colour", f"gamma {power:.2f}", False, mapped(lambda x: x**power))
    yield Wrong("colour", "linear light", False, mapped(linear))
    yield Wrong("colour", "grey by BT.709", False, mapped(grey))
    yield Wrong("colour", f"{'RGB'[lost]} is zero", True, mapped(without))
    yield Wrong(
        "colour",
        f"saturation {more:.2f}",
        False,
        drawn(lambda p: ImageEnhance.Color(p).enhance(more)),
    )
    yield Wrong("colour", f"video range {'read' if stretched else 'written'}", True, mapped(video))
    yield Wrong("colour", "U and V exchanged (NV12 for NV21)", False, drawn(exchanged))
    yield Wrong("colour", f"hue turned by {angle:.2f}", False, mapped(hue))
    yield Wrong("colour", "contrast stretched by the camera", False, drawn(ImageOps.autocontrast))


def _crop(rng: np.random.Generator) -> Iterator[Wrong]:
    right, down = (int(v) for v in rng.integers(-7, 8, 2))
    right = right or 5
    share = float(rng.uniform(0.65, 0.94))
    bars = int(rng.integers(0, 256))
    margin = int(rng.integers(2, 6))
    at = _either(rng, (0.05, 0.4), (0.6, 0.95))
    late = int(rng.choice([-4, -3, -2, 2, 3, 4]))

    def cropped(f: Callable[[Image.Image], Image.Image]) -> Callable[[App], App]:
        return lambda app: replace(app, crop=f)

    def square(place: Callable[[int], int], other: Callable[[int], int] | None = None) -> Any:
        def cut(p: Image.Image) -> Image.Image:
            side = min(p.size)
            spare = p.width - side, p.height - side
            left, top = (
                min(max(f(s), 0), s) for f, s in zip((place, other or place), spare, strict=True)
            )
            return p.crop((left, top, left + side, top + side))

        return cut

    def part(p: Image.Image) -> Image.Image:
        inner = middle(p)
        edge = (inner.width - round(inner.width * share)) // 2
        return ImageOps.crop(inner, edge)

    def padded(p: Image.Image) -> Image.Image:
        side = max(p.size)
        return ImageOps.pad(p, (side, side), color=(bars,) * 3)

    yield Wrong("crop", f"{late} px late", True, cropped(square(lambda s: s // 2 + late)))
    yield Wrong(
        "crop",
        f"{right} px right, {down} px down",
        False,
        cropped(square(lambda s: s // 2 + right, lambda s: s // 2 + down)),
    )
    yield Wrong("crop", "squashed", True, cropped(lambda p: p))
    yield Wrong("crop", "top left", True, cropped(square(lambda s: 0)))
    yield Wrong("crop", f"at {at:.0%} instead of the middle", False,
                cropped(square(lambda s: round(s * at))))  # fmt: skip
    yield Wrong("crop", f"bars of {bars}", False, cropped(padded))
    yield Wrong("crop", f"the middle {share:.0%}", False, cropped(part))
    yield Wrong(
        "crop",
        f"{margin} px cut from each side",
        False,
        cropped(lambda p: ImageOps.crop(middle(p), margin)),
    )


def _resize(rng: np.random.Generator) -> Iterator[Wrong]:
    between = float(rng.uniform(1.15, 1.6))
    small = float(rng.uniform(0.55, 0.8))
    radius = float(rng.uniform(1.0, 3.0))
    others = [("bicubic", 3), ("Lanczos", 1), ("box", 4), ("Hamming", 5)]
    first, second = (others[int(i)] for i in rng.choice(4, 2, replace=False))

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

    def through(share: float, kernel: int) -> Callable[[Image.Image, int], Array]:
        def resize(p: Image.Image, size: int) -> Array:
            side = round(size * share)
            half_way = p.resize((side, side), Image.Resampling(kernel))
            return np.asarray(half_way.resize((size, size), Image.Resampling.BILINEAR))

        return resize

    def blurred(p: Image.Image, size: int) -> Array:
        return np.asarray(p.filter(ImageFilter.GaussianBlur(radius)).resize((size, size), 0))

    yield Wrong("resize", "nearest, no half pixel", True, by(indexed))
    yield Wrong("resize", "bilinear of four pixels", True, by(four_pixels(False)))
    yield Wrong("resize", "bilinear of four pixels, corners aligned", True, by(four_pixels(True)))
    yield Wrong("resize", f"{first[0]}, antialiased", True, by(pillow(first[1])))
    yield Wrong("resize", f"{second[0]}, antialiased", True, by(pillow(second[1])))
    yield Wrong(
        "resize", f"nearest to {between:.2f} of the size first", False, by(through(between, 0))
    )
    yield Wrong("resize", f"thumbnails of {small:.2f} of the size", False, by(through(small, 2)))
    yield Wrong("resize", f"a blur of {radius:.1f}, then nearest", False, by(blurred))


def _normalise(rng: np.random.Generator) -> Iterator[Wrong]:
    mean, std = rng.uniform(0.3, 0.6, 3), rng.uniform(0.17, 0.4, 3)
    one = _either(rng, (0.5, 0.8), (1.3, 2.0))

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


def _layout(rng: np.random.Generator) -> Iterator[Wrong]:
    turns = int(rng.choice([1, 3]))

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
    yield Wrong(
        "layout",
        f"{turns} quarter turns",
        True,
        by(lambda x: np.rot90(x, turns).transpose(2, 0, 1)),
    )
