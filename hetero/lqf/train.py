"""Training of a linearised model: a quadratic with one optimum, preconditioned once and for all.

The loss is the mean squared distance of the outputs from alpha times one-hot labels, plus a pull of
the weights towards where they began. The model being linear and the loss quadratic, curvature is
the same everywhere: K-FAC's factors are taken at the start, inverted once, and used to the end.

Papers: Achille et al., CVPR 2021, arXiv:2012.11140; Martens and Grosse, "Optimizing Neural Networks
    with Kronecker-factored Approximate Curvature", ICML 2015, arXiv:1503.05671, and Grosse and
    Martens, ICML 2016, arXiv:1602.01407, as `curvlinops` computes them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hetero.errors import ConfigError, TrainingError, require
from hetero.lqf.dual import DualStream
from hetero.progress import Reporter

Optimizer = Literal["kfac", "adam"]

#: Power iterations, and the batches they look at: of few pictures the largest curvature is on
#: average larger than of all, so that a step chosen by it is on the safe side.
_ITERATIONS, _FEW = 20, 2


@dataclass(frozen=True)
class Settings:
    """How a linearised model is trained.

    Attributes:
        epochs: Passes over the pictures.
        batch: Pictures a step.
        lr: Step size. For "kfac" as a share of the inverse of the largest curvature that is left
            after preconditioning: 1 is safe, above 3.8 diverges.
        alpha: What one-hot labels are multiplied by.
        pull: Weight of the squared distance from the start.
        optimizer: "kfac" or "adam".
        damping: Added to K-FAC's factors, relative to their mean eigenvalue.
        seed: Of the order of pictures.
    """

    epochs: int = 20
    batch: int = 64
    lr: float = 1.0
    alpha: float = 15.0
    pull: float = 1e-4
    optimizer: Optimizer = "kfac"
    damping: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.epochs < 1 or self.batch < 1 or not (self.lr > 0 and self.alpha > 0):
            raise ConfigError(
                "LQF: epochs and batch at least 1, lr and alpha above 0; got "
                f"epochs={self.epochs}, batch={self.batch}, lr={self.lr}, alpha={self.alpha}"
            )
        if not (self.pull >= 0 and self.damping > 0):
            raise ConfigError(
                f"LQF: pull at least 0 and damping above 0; got {self.pull} and {self.damping}"
            )


def objective(
    model: DualStream,
    images: Float[Tensor, "n ..."],
    labels: Int64[Tensor, " n"],
    settings: Settings,
) -> Float[Tensor, ""]:
    """Half the mean squared distance from alpha times one-hot labels, plus the pull's half.

    Args:
        model: Gives k outputs a picture.
        images: Normalised.
        labels: In 0..k-1.
        settings: alpha and pull.
    """
    outputs = model(images)
    aim = settings.alpha * nn.functional.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
    far = sum((c.square().sum() for c in model.changes.values()), outputs.new_zeros(()))
    loss: Tensor = 0.5 * (outputs - aim).square().sum(1).mean() + 0.5 * settings.pull * far
    return loss


def fit(
    model: DualStream,
    images: Float[Tensor, "n ..."],
    labels: Int64[Tensor, " n"],
    settings: Settings,
    *,
    reporter: Reporter,
) -> list[float]:
    """Train the model's change in place; the objective after each epoch.

    Args:
        model: Its change may start anywhere; where it ends does not depend on it.
        images: Normalised.
        labels: In 0..k-1.
        settings: How.
        reporter: Shows progress.

    Raises:
        TrainingError: The objective is no longer a number; the rate is too high.
        MissingExtraError: K-FAC, and curvlinops is not installed.
    """
    changes = list(model.changes.values())
    steps = math.ceil(len(images) / settings.batch) * settings.epochs
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        precondition = None
        optimizer = torch.optim.Adam(changes, settings.lr)
    else:
        precondition = _kfac(model, images, labels, settings)
        largest = _largest(model, images, labels, settings, precondition)
        optimizer = torch.optim.SGD(changes, settings.lr / largest, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: list[float] = []
    with reporter.bar("LQF", steps) as bar:
        for epoch in range(settings.epochs):
            for rows in _batches(len(images), settings, epoch):
                optimizer.zero_grad()
                loss = objective(model, images[rows], labels[rows], settings)
                loss.backward()  # type: ignore[no-untyped-call]
                if precondition is not None:
                    for change, new in zip(
                        changes, precondition([c.grad for c in changes]), strict=True
                    ):
                        change.grad = new
                optimizer.step()
                schedule.step()
                bar.advance(1)
            with torch.no_grad():
                history.append(float(objective(model, images, labels, settings)))
            if not math.isfinite(history[-1]):
                raise TrainingError(f"LQF: the objective became {history[-1]}; lower lr")
    return history


def _batches(count: int, settings: Settings, epoch: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    return iter(torch.split(order, settings.batch))


def _kfac(
    model: DualStream,
    images: Float[Tensor, "n ..."],
    labels: Int64[Tensor, " n"],
    settings: Settings,
) -> Callable[[list[Tensor]], list[Tensor]]:
    """A function from the gradients of all changes to preconditioned ones."""
    with warnings.catch_warnings():
        # A library of its library compiles by what PyTorch calls deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        curvlinops: Any = require("curvlinops", "lqf")
    net = model.net
    weights = [net.get_parameter(name) for name in model.delta]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        with torch.no_grad():
            outputs = net(images[:1]).shape[1]
        aim = nn.functional.one_hot(labels, outputs).to(images.dtype)
        data = list(zip(*(torch.split(t, settings.batch) for t in (images, aim)), strict=True))
        curvature = curvlinops.KFACLinearOperator(
            net,
            # A mean over outputs too, and without a half: its curvature is ours but for a factor.
            nn.MSELoss(),
            weights,
            data,
            fisher_type="type-2",
            check_deterministic=False,
            # Pictures are pooled before they are classified, so positions are not samples.
            kfac_approx="reduce",
            separate_weight_and_bias=False,
        )
        scale = outputs / 2
        mean = float(curvature.trace) / sum(w.numel() for w in weights)
        inverse = curvlinops.KFACInverseLinearOperator(
            curvature,
            damping=settings.pull / scale + settings.damping * mean,
            use_exact_damping=True,
        )
    finally:
        for weight in weights:
            weight.requires_grad_(False)

    def precondition(gradients: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [new / scale for new in inverse @ gradients]

    return precondition


def _largest(
    model: DualStream,
    images: Float[Tensor, "n ..."],
    labels: Int64[Tensor, " n"],
    settings: Settings,
    precondition: Callable[[list[Tensor]], list[Tensor]],
) -> float:
    """The largest curvature that preconditioning leaves, by power iteration on a few batches.

    A gradient of a quadratic is affine in the change, so that two of them give a product with the
    Hessian.
    """
    rows = slice(0, _FEW * settings.batch)
    kept = model.delta
    changes = list(model.changes.values())

    def gradient(at: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            for change, value in zip(changes, at, strict=True):
                change.copy_(value)
        loss = objective(model, images[rows], labels[rows], settings)
        return list(torch.autograd.grad(loss, changes))

    start = gradient([torch.zeros_like(c) for c in changes])
    generator = torch.Generator().manual_seed(0)
    vector = [
        torch.randn(c.shape, generator=generator).to(dtype=c.dtype, device=c.device)
        for c in changes
    ]
    largest = 0.0
    for _ in range(_ITERATIONS):
        length = math.sqrt(sum(float(v.square().sum()) for v in vector))
        vector = [v / length for v in vector]
        moved = [a - b for a, b in zip(gradient(vector), start, strict=True)]
        vector = precondition(moved)
        largest = math.sqrt(sum(float(v.square().sum()) for v in vector))
    with torch.no_grad():
        for name, value in zip(kept, changes, strict=True):
            value.copy_(kept[name])
    return largest
