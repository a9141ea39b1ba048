"""Linear quadratic fine-tuning: a net's first-order expansion, trained to its one optimum.

    model = lqf.DualStream(net, images[:2])             # f(x; w) + J(x)·delta, as plain layers
    lqf.fit(model, images, labels, lqf.Settings(), reporter=reporter)  # whatever the seed
    model.add(customer, -1)                             # changes add, subtract and average
    lqf.Adaptation.load(path)                           # a change as a file, of a bundle's base

Paper: Achille et al., "LQF: Linear Quadratic Fine-Tuning", CVPR 2021, arXiv:2012.11140.
Differs: the linear model is not a Jacobian-vector product at run time but a graph of ordinary
    layers that carries each value and its change, so that it can be exported like any model; the
    expansion is in the weights of convolutions and linear layers, batch norms stay as they are.
"""

from __future__ import annotations

from hetero.lqf.adaptation import Adaptation, base, combine, digest_of, example, linearised
from hetero.lqf.dual import Delta, DualStream, by_jvp
from hetero.lqf.train import Optimizer, Settings, fit, objective

__all__ = [
    "Adaptation",
    "Delta",
    "DualStream",
    "Optimizer",
    "Settings",
    "base",
    "by_jvp",
    "combine",
    "digest_of",
    "example",
    "fit",
    "linearised",
    "objective",
]
