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
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, UInt8

from hetero._files import canonical_json
from hetero.errors import BundleError, ConfigError, DataError

Resize = Literal["bilinear", "bicubic", "box", "lanczos"]
Fit = Literal["squash", "centre"]

#: Pictures above this many pixels are refused rather than decoded: a decompression bomb.
MAX_PIXELS = 200_000_000


@dataclass(frozen=True)
class Preprocess:
    """How a decoded picture becomes a model's input; part of a space's identity.

    Attributes:
        size_px: Side of the square input, at least 8.
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
        if self.size_px < 8:
            raise ConfigError(f"preprocess: size_px must be at least 8, got {self.size_px}")
        if self.resize not in get_args(Resize):
            raise ConfigError(
                f"preprocess: unknown resize {self.resize!r}; there are {', '.join(get_args(Resize))}"
            )
        if self.fit not in get_args(Fit):
            raise ConfigError(
                f"preprocess: unknown fit {self.fit!r}; there are {', '.join(get_args(Fit))}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                "preprocess: mean and std need three numbers each, std above 0; "
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
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"not a preprocess spec: {value!r} ({error})") from error

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON; equal specs have equal hashes."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    def pixels(self, rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
        """The picture cropped and resized to (size_px, size_px, 3)."""
        from PIL import Image

        height, width = rgb.shape[:2]
        if (height, width) == (self.size_px, self.size_px):
            return rgb.copy()
        box: tuple[float, float, float, float] = (0, 0, width, height)
        if self.fit == "centre":
            side = min(height, width)
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
        kernel = Image.Resampling[self.resize.upper()]
        picture = Image.fromarray(rgb).resize((self.size_px, self.size_px), kernel, box=box)
        return np.asarray(picture)

    def tensor(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n 3 h w"]:
        """Normalised input, NCHW, float32: (x/255 - mean) / std per channel."""
        mean, std = (np.asarray(v, dtype=np.float32) for v in (self.mean, self.std))
        nhwc = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2))


def decode(source: bytes | Path) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as RGB, upright, opaque on white.

    Args:
        source: A file's bytes or its path; any format Pillow reads. Of an animation, the first
            frame. 16-bit grey is scaled by 1/257, so white stays white.

    Raises:
        DataError: Not a picture, truncated, empty, or larger than MAX_PIXELS.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = str(source) if isinstance(source, Path) else f"{len(source)} bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; we refuse larger ones
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise DataError(
                        f"{name}: {opened.width}x{opened.height} pixels is more than {MAX_PIXELS}"
                    )
                opened.load()
                picture: Image.Image = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I") or picture.mode == "F":
                    grey = np.asarray(picture).astype(np.float64)
                    if picture.mode.startswith("I"):
                        grey = grey / 257.0
                    grey8 = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
                    return np.repeat(grey8[:, :, None], 3, axis=2)
                if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
                    rgba = picture.convert("RGBA")
                    picture = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
                    picture.alpha_composite(rgba)
                return np.array(picture.convert("RGB"))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not a picture that can be read") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: cannot be decoded ({error})") from error
