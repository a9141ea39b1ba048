"""Search for the query architecture that fits a gallery model, at a cost that can be paid.

    space = nas.load_space("elastic")
    trained = train_supernet(gallery, images, SupernetRecipe("elastic"), settings, root, ...)
    found = nas.search(trained, nas.Budget("macs", 1e6), root / "search", ...)
    found.best.backbone       # "elastic:width=0.5,depth=221,..."

Paper: Duggal et al., "Compatibility-aware Heterogeneous Visual Search", CVPR 2021,
    arXiv:2105.06047.
Differs: besides the paper's single-path supernet there is an elastic one trained by the sandwich
    rule; costs are also latencies measured on a device; a health gate refuses to search on noise.

A space of architectures is a module of `hetero.nas.spaces`, a cost one of `hetero.nas.costs`, or
the dotted path of one's own.
"""

from __future__ import annotations

from hetero.nas.costs import Cost, load_cost, priced
from hetero.nas.health import Health, judge_health
from hetero.nas.rewards import Rewards, Which, rewards
from hetero.nas.search import Budget, Candidate, Found, contenders, search
from hetero.nas.space import Architecture, Choice, SearchSpace
from hetero.nas.space import load as load_space
from hetero.nas.supernet import Sampling, Supernet, recalibrate

__all__ = [
    "Architecture",
    "Budget",
    "Candidate",
    "Choice",
    "Cost",
    "Found",
    "Health",
    "Rewards",
    "Sampling",
    "SearchSpace",
    "Supernet",
    "Which",
    "contenders",
    "judge_health",
    "load_cost",
    "load_space",
    "priced",
    "recalibrate",
    "rewards",
    "search",
]
