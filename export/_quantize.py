"""What int8 needs in every format: pictures to fit ranges to, and pictures to judge the fit by.

Neither the full range of an activation nor a percentile of it always wins. So each format writes a
candidate per way of choosing ranges, and the one that agrees better with PyTorch on pictures that
no range was fitted to is kept.

Imports PyTorch, so a format imports this module inside `convert` only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from hetero import lqf, models
from hetero.bundle import Bundle
from hetero.errors import ExportError
from hetero.export._job import ConvertJob, Runner
from hetero.models import mobilenet, timm

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration pictures as the file takes them, in two parts.

    Attributes:
        fit: Inputs that ranges are fitted to: uint8 NHWC or float32 NCHW, whole batches.
        held_out: Inputs that no range was fitted to; every fourth picture.
        vectors: PyTorch's rows for `held_out`: unit vectors, or logits.
    """

    fit: np.ndarray[Any, Any]
    held_out: np.ndarray[Any, Any]
    vectors: Float32[np.ndarray, "n d"]


def net_of(job: ConvertJob, hard_swish: HardSwish = "as it is") -> nn.Module:
    """The PyTorch net to convert, in evaluation mode, taking what the file shall take.

    Args:
        job: Which bundle, and whether preprocessing goes in.
        hard_swish: How to write that activation, for a runtime that likes one form better.
    """
    bundle = Bundle.load(job.bundle, verify=False)
    net: nn.Module
    if job.adaptation is None:
        net = _Contiguous(models.load_any(bundle))
        if hard_swish != "as it is":
            _rewrite(net, nn.Hardswish if hard_swish == "fused" else _Relu6Swish)
        net = timm.deployed(net)
    else:
        # It looks its weights up by their names in the net, so no part of that may be rewritten.
        net = _Contiguous(lqf.linearised(bundle, lqf.Adaptation.load(job.adaptation)))
    if job.bake:
        net = models.FromPixels(net, bundle.preprocess)
    return net.eval().requires_grad_(False)


HardSwish = Literal["as it is", "fused", "relu6"]


class _Contiguous(nn.Module):
    """A net whose input is contiguous NCHW.

    The layout that FromPixels leaves behind makes tracers write pooling as strided indexing.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """As the net."""
        rows: Tensor = self.net(images.contiguous())
        return rows


class _Relu6Swish(nn.Module):
    """Hard-swish as (x/6)·relu6(x + 3).

    Converters do not recognise this order, and so do not turn it back into the one operator that
    int8 runtimes fall back to a slow path for. Clamped to 0..1 instead, as others write it, it
    becomes an operator of its own that is not run together with its neighbours either.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        return (x * (1 / 6)) * nn.functional.relu6(x + 3)


def _rewrite(net: nn.Module, form: type[nn.Module]) -> None:
    """Every hard-swish module in `net` replaced by one of this form."""
    for name, child in net.named_children():
        if isinstance(child, (nn.Hardswish, mobilenet.HardSwish)):
            setattr(net, name, form())
        else:
            _rewrite(child, form)


def calibration_of(job: ConvertJob, net: nn.Module) -> Calibration:
    """The job's calibration pictures as inputs of `net`, split, with PyTorch's vectors."""
    assert job.calibration is not None, "an int8 job has calibration pictures"
    inputs: np.ndarray[Any, Any] = np.load(job.calibration, allow_pickle=False)
    if not job.bake:
        inputs = Bundle.load(job.bundle, verify=False).preprocess.tensor(inputs)
    out = np.arange(len(inputs)) % 4 == 3
    held_out = inputs[out]
    with torch.no_grad():
        rows = [net(torch.from_numpy(held_out[i : i + 64])) for i in range(0, len(held_out), 64)]
    fit = inputs[~out]
    # The first pictures once more, where the last batch of a fixed size is not full.
    fit = fit.take(range(len(fit) + -len(fit) % max(1, job.batch)), axis=0, mode="wrap")
    return Calibration(fit, held_out, torch.cat(rows).float().numpy())


def best_of(
    candidates: Mapping[str, T], load: Callable[[T], Runner], calibration: Calibration
) -> tuple[str, dict[str, float]]:
    """Name of the candidate nearest to PyTorch on held-out pictures, and each one's mean cosine.

    Args:
        candidates: Way of choosing ranges -> a model made with it: bytes, a path.
        load: Opens such a model.
        calibration: The held-out pictures and PyTorch's vectors.

    Raises:
        ExportError: None of them gives finite vectors.
    """
    right = calibration.vectors.astype(np.float64)
    means: dict[str, float] = {}
    for name, model in candidates.items():
        with load(model) as runner:
            rows = runner(calibration.held_out).astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1)
        if rows.shape == right.shape and np.isfinite(rows).all() and lengths.min() > 0:
            means[name] = float((np.einsum("nd,nd->n", rows, right) / lengths).mean())
    if not means:
        raise ExportError(
            f"no int8 file gives finite vectors ({', '.join(candidates)} ranges tried); use fp16"
        )
    return max(means, key=lambda name: means[name]), means
