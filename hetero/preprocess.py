"""From a file's bytes to the numbers a model eats: the reference for every platform.

Three stages, each a function of the one before, so that a device that departs can be placed:

1. `decode`: bytes -> RGB uint8 (h, w, 3): EXIF orientation applied, transparency over white,
   CMYK, palette and 16-bit pictures converted.
2. `Preprocess.pixels`: any size -> uint8 (size, size, 3), Pillow's antialiased resize.
3. `Preprocess.tensor`: uint8 NHWC -> float32 NCHW, (x/255 - mean) / std.

Exported files contain stage 3 by default: what crosses to a device is uint8 NHWC RGB.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float32, UInt8

from hetero._files import canonical_json
from hetero.errors import BundleError, ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["bilinear", "bicubic", "box", "lanczos"]
Fit = Literal["squash", "centre"]

#: Pictures above this many pixels are refused rather than decoded: a decompression bomb. It is
#: Pillow's own limit; above half of it Pillow also warns.
MAX_PIXELS = 178_956_970

#: Formats for which Pillow would run another program or the system's renderer.
_PROGRAMS = ("EPS", "WMF", "EMF")

#: The EXIF tag that says how the camera was held, and what undoes each of its values.
_ORIENTATION = 0x0112
_UPRIGHT: Mapping[object, str] = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@dataclass(frozen=True)
class Preprocess:
    """How a decoded picture becomes a model's input; part of a space's identity.

    Attributes:
        size_px: Side of the square input, 8 to 4096.
        resize: Pillow's antialiased filter of this name.
        fit: "squash" ignores the aspect ratio; "centre" crops the largest centred square first.
        mean: Per RGB channel, in units of 1 (white is 1.0).
        std: Per RGB channel, above 0.
    """

    size_px: int = 32
    resize: Resize = "bilinear"
    fit: Fit = "centre"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        if not isinstance(self.size_px, int) or not 8 <= self.size_px <= 4096:
            raise ConfigError(f"preprocess: size_px must be 8 to 4096, got {self.size_px!r}")
        if self.resize not in get_args(Resize):
            raise ConfigError(
                f"preprocess: unknown resize {self.resize!r}; "
                f"there are {', '.join(get_args(Resize))}"
            )
        if self.fit not in get_args(Fit):
            raise ConfigError(
                f"preprocess: unknown fit {self.fit!r}; there are {', '.join(get_args(Fit))}"
            )
        numbers = (*self.mean, *self.std)
        if (
            (len(self.mean), len(self.std)) != (3, 3)
            or not all(map(math.isfinite, numbers))
            or (min(self.std) <= 0)
        ):
            raise ConfigError(
                "preprocess: mean and std need three finite numbers each, std above 0; "
                f"got {self.mean} and {self.std}"
            )

    def to_json(self) -> dict[str, object]:
        """The spec as JSON values, the form that manifests and exported files carry."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Preprocess:
        """The spec that `to_json` gave.

        Raises:
            BundleError: A key is missing, unknown or of the wrong type.
        """
        try:
            mean, std = (
                tuple(float(x) for x in value[k])  # type: ignore[attr-defined]
                for k in ("mean", "std")
            )
            return cls(**{**value, "mean": mean, "std": std})  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            shown, why = repr(value)[:300], str(error)[:300]
            raise BundleError(f"not a preprocess spec: {shown} ({why})") from error

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON; equal specs have equal hashes."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    def pixels(self, rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
        """The picture cropped and resized to (size_px, size_px, 3)."""
        from PIL import Image

        height, width = rgb.shape[:2]
        if self.fit == "centre":
            # Cut before resizing: a filter given a box instead would look beyond its edges.
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            rgb = rgb[top : top + side, left : left + side]
        if rgb.shape[:2] == (self.size_px, self.size_px):
            return rgb.copy()
        kernel = Image.Resampling[self.resize.upper()]
        # Across, then down: which comes first decides how a squashed picture is rounded, and
        # Pillow 13 changed its mind about tall ones.
        wide = Image.fromarray(rgb).resize((self.size_px, rgb.shape[0]), kernel)
        return np.asarray(wide.resize((self.size_px, self.size_px), kernel))

    def tensor(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n 3 h w"]:
        """Normalised input, NCHW, float32: (x/255 - mean) / std per channel."""
        mean, std = (np.asarray(v, dtype=np.float32) for v in (self.mean, self.std))
        nhwc = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2))


def decode(source: bytes | Path) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as RGB, upright, opaque on white.

    Args:
        source: A file's bytes or its path; a raster format that Pillow reads. Of an animation, the
            first frame. 16-bit grey is scaled by 1/257, so white stays white. Colour profiles are
            not applied, as decoders on devices do not either.

    Raises:
        DataError: Not a picture, truncated, empty, larger than MAX_PIXELS, or of a kind whose white
            is not known (floating point, beyond 16 bits).
    """
    from PIL import Image, UnidentifiedImageError

    name = str(source) if isinstance(source, Path) else f"{len(source)} bytes"
    try:
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        stream = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error
    try:
        with stream, Image.open(stream) as opened:
            if opened.format in _PROGRAMS:
                raise DataError(
                    f"{name}: {opened.format} is a drawing, not a picture; export a PNG"
                )
            if opened.width * opened.height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {opened.width}x{opened.height} pixels is more than {MAX_PIXELS}"
                )
            opened.load()
            return _rgb(name, opened)
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        what = "not a picture that can be read" if size else "the file is empty"
        raise DataError(f"{name}: {what}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: its header claims too many pixels ({error})") from error
    except Exception as error:  # on a damaged file a decoder may raise anything
        raise DataError(f"{name}: cannot be decoded ({error or type(error).__name__})") from error


def _upright(loaded: Image.Image) -> Image.Image:
    """The picture turned as its EXIF block says; as it is, if that is damaged.

    Pillow's exif_transpose also rewrites the block, and fails on damage that does not matter here.
    """
    from PIL import Image

    try:
        turn = _UPRIGHT.get(loaded.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged block may raise anything, and the pixels are sound
        return loaded
    return loaded.transpose(Image.Transpose[turn]) if turn else loaded


def _rgb(name: str, loaded: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """A loaded picture of any mode as RGB, turned upright."""
    from PIL import Image

    picture = _upright(loaded)
    if picture.mode == "F":
        raise DataError(f"{name}: floating-point pixels; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(f"{name}: pixels beyond 16 bits; save it with 8 or 16 bits")
        grey8 = np.rint(grey / 257.0).astype(np.uint8)
        return np.repeat(grey8[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        picture.alpha_composite(rgba)
    return np.array(picture.convert("RGB"))
