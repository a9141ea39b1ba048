"""Training of a linearised model: a quadratic with one optimum, preconditioned once and for all.

The loss is the mean squared distance of the outputs from alpha times one-hot labels, plus a pull of
the weights towards where they began. The model being linear and the loss quadratic, curvature is
the same everywhere: K-FAC's factors are taken at the start, inverted once, and used to the end.

Step and momentum are the best on the batch, as K-FAC's paper has it (its section 7).

Papers: Achille et al., CVPR 2021, arXiv:2012.11140; Martens and Grosse, "Optimizing Neural Networks
    with Kronecker-factored Approximate Curvature", ICML 2015, arXiv:1503.05671, and Grosse and
    Martens, ICML 2016, arXiv:1602.01407, as `curvlinops` computes them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hetero.errors import ConfigError, TrainingError, require
from hetero.lqf.dual import DualStream
from hetero.progress import Reporter

Optimizer = Literal["kfac", "adam"]


@dataclass(frozen=True)
class Settings:
    """How a linearised model is trained.

    Attributes:
        epochs: Passes over the pictures.
        batch: Pictures a step.
        lr: Step size. For "kfac" the share of the step that is the best on the batch, 1 for all
            of it, below 2; for "adam" its rate.
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
    adam = torch.optim.Adam(changes, settings.lr) if settings.optimizer == "adam" else None
    precondition = None if adam else _kfac(model, images, labels, settings)
    before: list[Tensor] | None = None
    # Steps of all pictures end where they shall; those of a few never do unless they grow short.
    falling = adam is not None or settings.batch < len(images)
    history: list[float] = []
    with reporter.bar("LQF", steps) as bar:
        done = 0
        for epoch in range(settings.epochs):
            for rows in _batches(len(images), settings, epoch):
                share = 0.5 + 0.5 * math.cos(math.pi * done / steps) if falling else 1.0
                loss = objective(model, images[rows], labels[rows], settings)
                gradient = list(torch.autograd.grad(loss, changes))
                if adam is not None:
                    adam.param_groups[0]["lr"] = share * settings.lr
                    for change, part in zip(changes, gradient, strict=True):
                        change.grad = part
                    adam.step()
                elif precondition is not None:
                    directions = [precondition(gradient), *([before] if before else [])]
                    with torch.no_grad():
                        step = _best_step(model, images[rows], gradient, directions, settings.pull)
                        before = [share * settings.lr * part for part in step]
                        for change, part in zip(changes, before, strict=True):
                            change += part
                done += 1
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
            # With sums over positions in place of positions, factors of few pictures have few
            # directions, and what the others' curvature is goes unseen: steps ten times as short.
            kfac_approx="expand",
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


def _best_step(
    model: DualStream,
    images: Float[Tensor, "n ..."],
    gradient: Sequence[Tensor],
    directions: Sequence[Sequence[Tensor]],
    pull: float,
) -> list[Tensor]:
    """The sum of directions that lowers the objective of these pictures the most.

    The objective is a quadratic, so that the best of all sums solves an equation with a row for
    each direction. Of all pictures, with the step before as second direction, these are
    preconditioned conjugate gradients.
    """
    flat = [torch.cat([part.flatten() for part in d]) for d in directions]
    sides = torch.stack(flat).double()
    moved = torch.stack([model.product(images, d).flatten() for d in directions]).double()
    slope = sides @ torch.cat([g.flatten() for g in gradient]).double()
    curvature = moved @ moved.T / len(images) + pull * sides @ sides.T
    # Directions of very different lengths, or of no length at all, make no difference so.
    length = curvature.diagonal().sqrt().clamp_min(1e-30)
    scaled = curvature / (length[:, None] * length)
    shares = -(torch.linalg.pinv(scaled, rcond=1e-9, hermitian=True) @ (slope / length)) / length
    return [
        sum(
            (float(x) * part for x, part in zip(shares, parts, strict=True)),
            torch.zeros_like(parts[0]),
        )
        for parts in zip(*directions, strict=True)
    ]
