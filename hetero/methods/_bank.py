"""A bank of gallery vectors, and each training picture's nearest ones in it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hetero.errors import ConfigError
from hetero.methods import Setup


class Bank(nn.Module):
    """Gallery vectors to hold relations against, looked up by training picture.

    Args:
        setup: What training starts from.
        neighbours: How many for each picture, the picture itself left out.
        size: Pictures in the bank; with more training pictures than that, a random choice.
        views: Of each of them, how many stored views.

    Raises:
        ConfigError: The bank would hold no more than the neighbours asked for.
    """

    vectors: Tensor
    near: Tensor

    def __init__(self, setup: Setup, neighbours: int, size: int, views: int = 1) -> None:
        """See the class."""
        super().__init__()
        stored, pictures, _ = setup.gallery.shape
        views = max(1, min(views, stored))
        generator = torch.Generator().manual_seed(setup.seed)
        members = torch.randperm(pictures, generator=generator)[:size].sort().values
        held = len(members) * views
        if not 1 <= neighbours <= held - views:
            raise ConfigError(
                f"a bank of {len(members)} pictures in {views} views cannot give {neighbours} "
                f"neighbours besides the picture itself; set neighbours to at most {held - views}"
            )
        bank = torch.from_numpy(setup.gallery[:views][:, members.numpy()].copy()).flatten(0, 1)
        owner = members.repeat(views)
        found = []
        for at in range(0, pictures, 512):
            some = torch.from_numpy(setup.gallery[0, at : at + 512].copy())
            cosine = some @ bank.T
            own = owner[None, :] == torch.arange(at, at + len(some))[:, None]
            found.append(cosine.masked_fill(own, -2.0).topk(neighbours, dim=1).indices)
        self.register_buffer("vectors", bank, persistent=False)
        self.register_buffer("near", torch.cat(found), persistent=False)

    def of(self, rows: Int64[Tensor, " b"]) -> Float[Tensor, "b k d"]:
        """The neighbours of these training pictures, the nearest first."""
        some: Tensor = self.vectors[self.near[rows]]
        return some
