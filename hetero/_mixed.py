"""Mixed precision: the backbone's arithmetic in half, everything that is compared in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

#: "no" is float32 throughout; "bf16" and "fp16" say what the backbone computes in.
Mixed = Literal["no", "bf16", "fp16"]

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def mixed(net: nn.Module, precision: Mixed, device: torch.device) -> Iterator[None]:
    """While it lasts, the net's backbone computes in half where PyTorch's autocast thinks it safe.

    Accelerate would cast the whole objective. Here what the backbone gives is float32 again, so
    that the embedding layer, the embeddings, classifiers and losses are: a cosine in bfloat16 is
    known to 0.004. Of a net without a backbone the whole is cast, and its rows are float32. Weights
    and their gradients stay float32. In evaluation mode nothing is cast: validation sees the model
    as its bundle will be used.

    Args:
        net: One or several nets with a backbone each, or any other module.
        precision: In what.
        device: Where it runs.
    """
    if precision == "no":
        yield
        return
    inner = [getattr(part, "backbone", None) for part in net.modules()]
    parts = [part for part in inner if isinstance(part, nn.Module)] or [net]
    hooks = [hook for part in parts for hook in _cast(part, precision, device)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _cast(part: nn.Module, precision: Mixed, device: torch.device) -> Iterator[Any]:
    entered: list[torch.autocast] = []

    def before(module: nn.Module, _: Any) -> None:
        if module.training:
            entered.append(torch.autocast(device.type, _HALVES[precision]))
            entered[-1].__enter__()  # type: ignore[no-untyped-call]

    def after(module: nn.Module, _: Any, rows: Tensor | None) -> Tensor | None:
        if not entered:
            return None
        entered.pop().__exit__(None, None, None)
        return None if rows is None else rows.float()

    yield part.register_forward_pre_hook(before)
    # Also where the forward pass fails, or all that follows would be cast.
    yield part.register_forward_hook(after, always_call=True)
