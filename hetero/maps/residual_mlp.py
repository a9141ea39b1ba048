"""A turn and a small network that bends it: trained on stored vectors in seconds.

Paper: "Drift-Adapter", EMNLP 2025, arXiv:2509.23471, the residual adapter x + MLP(x).
Differs: the plain path goes through the Procrustes matrix instead of the identity, because models
    that were trained apart share no axes, and lengths may differ; the network starts at zero, so
    training starts at the Procrustes map. Of all epochs, the start included, the one that agrees
    best with pairs held out is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from hetero.errors import ConfigError
from hetero.maps.procrustes import turn


class Residual(nn.Module):
    """W·x + MLP(x).

    Args:
        query_dim: Length of x.
        gallery_dim: Length of what comes out.
        hidden: Width of the network's one hidden layer.
    """

    def __init__(self, query_dim: int, gallery_dim: int, hidden: int) -> None:
        """See the class."""
        super().__init__()
        self.turn = nn.Linear(query_dim, gallery_dim, bias=False)
        self.bend = nn.Sequential(
            nn.Linear(query_dim, hidden), nn.ReLU(), nn.Linear(hidden, gallery_dim)
        )

    def forward(self, rows: Float[Tensor, "n q"]) -> Float[Tensor, "n g"]:
        """Rows near the gallery model's, not of unit length."""
        out: Tensor = self.turn(rows) + self.bend(rows)
        return out


@dataclass(frozen=True)
class Map:
    """Procrustes and a network of one hidden layer, trained for 1 - cosine by Adam.

    Attributes:
        hidden: Width of the hidden layer.
        epochs: Passes over the pairs.
        batch: Pairs in a step.
        lr: Learning rate at the start; it falls to zero along a cosine.
        weight_decay: Of AdamW.
        held_out: Share of the pairs that chooses the epoch and is not trained on.
    """

    hidden: int = 256
    epochs: int = 30
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    held_out: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if min(self.hidden, self.epochs, self.batch) < 1 or not 0 < self.held_out < 1:
            raise ConfigError(
                "map residual_mlp: hidden, epochs and batch must be at least 1 and held_out "
                f"between 0 and 1, got {self}"
            )

    def net(self, query_dim: int, gallery_dim: int) -> nn.Module:
        """The turn and the network."""
        return Residual(query_dim, gallery_dim, self.hidden)

    def fit(
        self, source: Float32[np.ndarray, "n q"], target: Float32[np.ndarray, "n g"], seed: int
    ) -> nn.Module:
        """Both trained on the pairs; weights and order follow from `seed`."""
        net = Residual(source.shape[1], target.shape[1], self.hidden)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(source), generator=generator)
        apart = max(1, int(len(source) * self.held_out))
        held, used = order[:apart], order[apart:]
        x, y = torch.from_numpy(source.copy()), torch.from_numpy(target.copy())
        last = net.bend[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        start = turn(source[used.numpy()], target[used.numpy()])
        net.turn.weight = nn.Parameter(torch.from_numpy(start).float())
        steps = self.epochs * -(-len(used) // self.batch)
        adam = torch.optim.AdamW(net.parameters(), self.lr, weight_decay=self.weight_decay)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        best, kept = _apart(net, x[held], y[held]), _copy(net)
        for _ in range(self.epochs):
            shuffled = used[torch.randperm(len(used), generator=generator)]
            for at in range(0, len(shuffled), self.batch):
                some = shuffled[at : at + self.batch]
                adam.zero_grad()
                _distance(net, x[some], y[some]).backward()  # type: ignore[no-untyped-call]
                adam.step()
                falling.step()
            now = _apart(net, x[held], y[held])
            if now < best:
                best, kept = now, _copy(net)
        net.load_state_dict(kept)
        return net


def _distance(
    net: nn.Module, x: Float[Tensor, "n q"], y: Float[Tensor, "n g"]
) -> Float[Tensor, ""]:
    return (1 - nn.functional.cosine_similarity(net(x), y)).mean()


@torch.no_grad()
def _apart(net: nn.Module, x: Float[Tensor, "n q"], y: Float[Tensor, "n g"]) -> float:
    return float(_distance(net, x, y))


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}
