"""The runtime computes in a narrower number type than the file says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hetero.diagnose._pipeline import Array, Engine, in_parts
from hetero.preprocess import Preprocess

STAGE = "runtime"
FIX = "forbid reduced precision in the delegate's options, or choose another delegate"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """bfloat16."""
    del spec
    yield "the runtime computes in bfloat16", _in("bfloat16")


def _in(name: str) -> Callable[[Array, Engine], Array]:
    def network(tensor: Array, engine: Engine) -> Array:
        import torch

        kind = getattr(torch, name)
        net = copy.deepcopy(engine.net).to(kind)
        with torch.no_grad():
            return in_parts(lambda x: net(torch.from_numpy(x).to(kind)).float().numpy(), tensor)

    return network
