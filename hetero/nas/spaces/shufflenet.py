"""The space of single-path one-shot search: 20 blocks, 4 operators, 10 channel multipliers.

Paper: Duggal et al., "Compatibility-aware Heterogeneous Visual Search", CVPR 2021,
    arXiv:2105.06047, with the space of Guo et al., ECCV 2020, arXiv:1904.00420.
Differs: see `hetero.models.shufflenet`.
"""

from __future__ import annotations

from hetero.models.shufflenet import BLOCKS, OPERATORS
from hetero.nas.space import Choice, SearchSpace


def space(options: str = "") -> SearchSpace:
    """The space; `options` are those of the family that stay as they are: ``width=0.2,stem=2``."""
    choices = (
        *(Choice(f"op{b}", tuple(range(len(OPERATORS)))) for b in range(BLOCKS)),
        *(Choice(f"inner{b}", tuple(range(10))) for b in range(BLOCKS)),
    )

    def spec(values: dict[str, float]) -> str:
        ops = "".join(OPERATORS[int(values[f"op{b}"])] for b in range(BLOCKS))
        inner = "".join(str(int(values[f"inner{b}"])) for b in range(BLOCKS))
        return "shufflenet:" + ",".join([f"ops={ops},inner={inner}", *filter(None, [options])])

    # An operator is not a size: each has weights of its own, and any can be in the largest net.
    return SearchSpace("shufflenet", choices, spec, kinds=("op",))
