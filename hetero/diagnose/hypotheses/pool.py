"""Feature maps pooled in another way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hetero.diagnose._pipeline import Array, Engine, in_parts
from hetero.preprocess import Preprocess

STAGE = "pooling"
FIX = "pool as the net does: the mean over all places of the feature map"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The maximum, the sum, one corner, the middle, a power mean."""
    del spec
    yield "the maximum is taken instead of the mean", _pooled(lambda x: x.amax((2, 3), True))
    yield "the sum is taken instead of the mean", _pooled(lambda x: x.sum((2, 3), keepdim=True))
    yield "only the first place is taken", _pooled(lambda x: x[:, :, :1, :1])
    yield (
        "only the middle place is taken",
        _pooled(lambda x: x[:, :, x.shape[2] // 2, x.shape[3] // 2][:, :, None, None]),
    )
    yield (
        "a power mean (GeM, p = 3) is taken",
        _pooled(lambda x: x.clamp(min=1e-6).pow(3).mean((2, 3), True).pow(1 / 3)),
    )


def families(spec: Preprocess) -> Iterator[tuple[Any, Any, tuple[float, ...]]]:
    """Power means, and the mean mixed with the maximum."""
    del spec
    yield (
        lambda p: f"a power mean (GeM, p = {p:.1f}) is taken",
        lambda p: _pooled(lambda x: x.clamp(min=1e-6).pow(p).mean((2, 3), True).pow(1 / p)),
        (1.5, 2.0, 3.0, 4.0, 6.0, 8.0),
    )
    yield (
        lambda part: f"{part:.0%} of the maximum is mixed into the mean",
        lambda part: _pooled(
            lambda x: part * x.amax((2, 3), True) + (1 - part) * x.mean((2, 3), True)
        ),
        (0.1, 0.3, 0.5, 0.7, 0.9),
    )


def _pooled(pool: Callable[[Any], Any]) -> Callable[[Array, Engine], Array]:
    def network(tensor: Array, engine: Engine) -> Array:
        import torch

        class Pool(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
            def forward(self, x: Any) -> Any:
                return pool(x)

        net = copy.deepcopy(engine.net)
        for parent in list(net.modules()):
            for name, child in parent.named_children():
                if isinstance(child, torch.nn.AdaptiveAvgPool2d):
                    setattr(parent, name, Pool())
        with torch.no_grad():
            return in_parts(lambda x: net(torch.from_numpy(x)).numpy(), tensor)

    return network
