"""The head that a linearised model begins with: the linear probe, in closed form.

A head of zeros has no gradient to pass to the backbone, so that the linearised model would be a
linear probe and nothing more; a random one passes noise. This one is the best that features alone
allow, and leaves to the change of the weights what they do not.

Papers: Hoerl and Kennard, "Ridge Regression", Technometrics 12(1), 1970; Kumar et al., "Fine-Tuning
    can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022,
    arXiv:2202.10054, for beginning with the probe.
Differs: the probe aims at alpha times one-hot labels, as the linearised model does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hetero.errors import ConfigError


def ridge(
    features: Float[Tensor, "n f"],
    labels: Int64[Tensor, " n"],
    classes: int,
    *,
    alpha: float = 15.0,
    penalty: float = 1.0,
) -> dict[str, Tensor]:
    """The head's "weight" (classes, features) and "bias" (classes,), float32.

    Args:
        features: One row a picture.
        labels: In 0..classes-1.
        classes: How many.
        alpha: What one-hot labels are multiplied by.
        penalty: Of the squared weights, relative to a mean squared error over pictures, where
            features are scaled to a standard deviation of 1.

    Raises:
        ConfigError: A penalty that is not above 0.
    """
    if not penalty > 0:
        raise ConfigError(f"LQF: the probe's penalty has to be above 0, got {penalty}")
    rows = features.double()
    mean = rows.mean(0)
    # A feature that never moves says nothing, and is not to be divided by nothing.
    spread = rows.std(0, correction=0).clamp_min(1e-6)
    scaled = (rows - mean) / spread
    aim = alpha * nn.functional.one_hot(labels, classes).double()
    middle = aim.mean(0)
    gram = scaled.T @ scaled / len(rows) + penalty * torch.eye(rows.shape[1], dtype=rows.dtype)
    weight = torch.linalg.solve(gram, scaled.T @ (aim - middle) / len(rows)).T / spread
    return {"weight": weight.float().contiguous(), "bias": (middle - weight @ mean).float()}
