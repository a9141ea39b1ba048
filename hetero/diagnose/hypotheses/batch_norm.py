"""The net exported as it is in training, or without its last normalisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hetero.diagnose._pipeline import Array, Engine, in_parts
from hetero.preprocess import Preprocess

STAGE = "conversion"
FIX = "call net.eval() before exporting, or export with `hetero export`"


def variants(spec: Preprocess) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Batch norm by the batch, or by fresh statistics."""
    del spec
    yield "batch norm is in training mode, one picture a batch", _one
    yield "batch norm is in training mode, over the whole batch", _all
    yield "batch norm has fresh statistics (mean 0, variance 1)", _fresh


def _norms(net: Any) -> Iterator[Any]:
    from torch.nn.modules.batchnorm import _BatchNorm

    yield from (m for m in net.modules() if isinstance(m, _BatchNorm))


def _one(tensor: Array, engine: Engine) -> Array:
    import torch

    net = copy.deepcopy(engine.net)
    for norm in _norms(net):
        # One picture has no spread over the batch: only maps keep their own statistics.
        norm.training = isinstance(norm, torch.nn.BatchNorm2d)
    with torch.no_grad():
        return in_parts(
            lambda x: torch.cat([net(row[None]) for row in torch.from_numpy(x)]).numpy(), tensor
        )


def _all(tensor: Array, engine: Engine) -> Array:
    import torch

    net = copy.deepcopy(engine.net)
    for norm in _norms(net):
        norm.train()
    with torch.no_grad():
        rows: Array = net(torch.from_numpy(tensor)).numpy()
    return rows


def _fresh(tensor: Array, engine: Engine) -> Array:
    import torch

    net = copy.deepcopy(engine.net)
    for norm in _norms(net):
        norm.reset_running_stats()
    with torch.no_grad():
        return in_parts(lambda x: net(torch.from_numpy(x)).numpy(), tensor)
