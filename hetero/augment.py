"""Random views of pictures, drawn first and applied as a pure function.

Drawing gives a small table of numbers, one row a picture; applying it is deterministic. So a view
can be made again bit for bit: by a resumed run, or by the gallery model whose vectors for that view
are stored. Everything is done on a batch at once, which keeps two cores busy with training instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from hetero.errors import ConfigError
from hetero.preprocess import Preprocess

#: Numbers that describe one view: 4 affine, 2 shift, 9 colour matrix, 3 colour offset, 3 erasing,
#: 2 blending.
WIDTH = 23


@dataclass(frozen=True)
class Augment:
    """How far views may depart from the picture; 0 switches a part off.

    Attributes:
        scale: Zoom in exp(-scale)..exp(scale).
        rotate_deg: Turn in -rotate..rotate degrees.
        stretch: One side longer and the other shorter by a factor in exp(-stretch)..exp(stretch).
        shift: Offset in -shift..shift of the side.
        flip: Probability of a mirror image; 0 where left and right mean something.
        colour: Strength of brightness, contrast and hue changes, 0..1.
        grey: Probability of losing colour.
        erase: Probability of covering a square, a quarter to a half of the side, with the mean
            colour of the preprocessing.
        mix: Probability of blending with another picture of the collection, of which the view gets
            up to half. Only for query models: the gallery model says what a blend is like.
    """

    scale: float = 0.2
    rotate_deg: float = 10.0
    stretch: float = 0.1
    shift: float = 0.1
    flip: float = 0.0
    colour: float = 0.3
    grey: float = 0.1
    erase: float = 0.25
    mix: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        finite = all(math.isfinite(v) and v >= 0 for v in vars(self).values())
        if not finite or max(self.flip, self.colour, self.grey, self.erase, self.mix) > 1:
            raise ConfigError(
                f"augment: nothing below 0, probabilities and colour up to 1; got {self}"
            )

    def draw(self, count: int, generator: torch.Generator) -> Float32[Tensor, "n p"]:
        """One row of view numbers for each of `count` pictures, shape (count, WIDTH)."""

        def uniform(limit: float) -> Tensor:
            return (torch.rand(count, generator=generator) * 2 - 1) * limit

        def chance(p: float) -> Tensor:
            return (torch.rand(count, generator=generator) < p).float()

        turn = uniform(math.radians(self.rotate_deg))
        zoom, stretch = torch.exp(uniform(self.scale)), torch.exp(uniform(self.stretch))
        mirror = 1 - 2 * chance(self.flip)
        cos, sin = torch.cos(turn), torch.sin(turn)
        wide, high = zoom * stretch, zoom / stretch
        affine = torch.stack([cos * wide * mirror, -sin * high, sin * wide * mirror, cos * high], 1)
        shift = torch.stack([uniform(2 * self.shift), uniform(2 * self.shift)], 1)

        # Hue turns colours about the grey axis; saturation 0 projects them onto it.
        hue = uniform(self.colour * math.pi / 2)
        saturation = (1 + uniform(self.colour)) * (1 - chance(self.grey))
        contrast, bright = 1 + uniform(self.colour), uniform(self.colour / 2)
        grey = torch.full((3, 3), 1 / 3)
        across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
        away = torch.eye(3) - grey
        turned = torch.cos(hue)[:, None, None] * away + torch.sin(hue)[:, None, None] * across
        matrix = contrast[:, None, None] * (grey + saturation[:, None, None] * turned)
        offset = ((1 - contrast) / 2 + bright)[:, None].expand(-1, 3)

        side = (0.25 + 0.25 * torch.rand(count, generator=generator)) * chance(self.erase)
        corner = torch.rand(count, 2, generator=generator)
        # Row numbers are exact in float32 up to 16 million pictures.
        partner = torch.randint(max(1, count), (count,), generator=generator).float()
        share = 0.5 * torch.rand(count, generator=generator) * chance(self.mix)
        numbers = [affine, shift, matrix.reshape(count, 9), offset, side[:, None], corner]
        return torch.cat([*numbers, partner[:, None], share[:, None]], dim=1)


def identity(count: int) -> Float32[Tensor, "n p"]:
    """View numbers that leave pictures as they are, up to interpolation of nothing."""
    return Augment(0, 0, 0, 0, 0, 0, 0, 0, 0).draw(count, torch.Generator())


def gather(
    pixels: UInt8[np.ndarray, "m h w 3"], rows: Int64[Tensor, " n"], views: Float32[Tensor, "n p"]
) -> UInt8[Tensor, "n h w 3"]:
    """The pictures of these rows, blended with others where their views say so.

    Args:
        pixels: The whole collection; may be memory-mapped.
        rows: Which pictures.
        views: One row of view numbers for each of them.
    """
    some = torch.from_numpy(pixels[rows.numpy()])
    share = views[:, 22]
    if not bool(share.any()):
        return some
    others = torch.from_numpy(pixels[views[:, 21].long().numpy()]).float()
    return torch.lerp(some.float(), others, share[:, None, None, None]).round().to(torch.uint8)


class View(nn.Module):
    """Makes normalised views on the device it is moved to.

    Args:
        preprocess: Gives mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(1, 3, 1), False)
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(1, 3, 1), False)

    @torch.no_grad()
    def forward(
        self, pixels: UInt8[Tensor, "n h w 3"], views: Float32[Tensor, "n p"]
    ) -> Float32[Tensor, "n 3 h w"]:
        """Normalised views, channels-last in memory; what leaves the picture repeats its border."""
        n, h, w = pixels.shape[:3]
        # One table look-up of geometry on bytes' float form, one small matrix product for colour.
        x = pixels.permute(0, 3, 1, 2).float()
        theta = torch.cat([views[:, :4].reshape(n, 2, 2), views[:, 4:6].reshape(n, 2, 1)], dim=2)
        grid = nn.functional.affine_grid(theta, [n, 3, h, w], align_corners=False)
        x = nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
        # Colour twist, 1/255, mean and std are one affine map of the three channels.
        matrix = views[:, 6:15].reshape(n, 3, 3) / (255 * self.std)
        offset = (views[:, 15:18].reshape(n, 3, 1) - self.mean) / self.std
        out = torch.baddbmm(offset, matrix, x.reshape(n, 3, h * w)).reshape(n, 3, h, w)
        side, top, left = views[:, 18], views[:, 19], views[:, 20]
        # By the middle of each pixel, so that no border is spared.
        ys = (torch.arange(h, device=x.device) + 0.5) / h - (top * (1 - side))[:, None]
        xs = (torch.arange(w, device=x.device) + 0.5) / w - (left * (1 - side))[:, None]
        rows = (ys >= 0) & (ys < side[:, None])
        columns = (xs >= 0) & (xs < side[:, None])
        out = out.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
        return out.contiguous(memory_format=torch.channels_last)
