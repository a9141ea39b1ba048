"""Kernel, expansion, depth, width and resolution of a MobileNet-like query model.

Paper: Cai et al., "Once-for-All", ICLR 2020, arXiv:1908.09791.
Differs: see `hetero.models.elastic`; int8-friendly operators only, unless options say otherwise.
"""

from __future__ import annotations

from hetero.errors import ConfigError
from hetero.models.elastic import BLOCKS, DEEPEST, STAGES
from hetero.nas.space import Choice, SearchSpace

#: What there is to choose from, unless options say otherwise.
_DEFAULTS = {
    "widths": "0.25/0.35/0.5/0.65/0.8/1",
    "sizes": "0",
    "strides": "2",
    "kernels": "3/5",
    "expands": "2/3/4",
}


def space(options: str = "") -> SearchSpace:
    """The space.

    Args:
        options: Values to choose from, such as ``kernels=3/5/7``, ``expands=2/3/4/6``,
            ``sizes=24/32``, ``strides=1/2`` (of the stem), ``widths=0.5/1``; and options of the
            family that stay as they are, such as ``last=384`` or ``se=1,act=hswish``.

    Raises:
        ConfigError: Values that are no numbers.
    """
    fixed = {k: v for k, _, v in (part.partition("=") for part in filter(None, options.split(",")))}
    values = {k: _numbers(k, fixed.pop(k, default)) for k, default in _DEFAULTS.items()}
    # The longer stride is the cheaper one.
    sizes, strides = values["sizes"], values["strides"][::-1]
    choices = (
        Choice("width", values["widths"]),
        *([Choice("size", sizes)] if sizes != (0,) else []),
        *([Choice("stride", strides)] if strides != (2,) else []),
        *(Choice(f"depth{s}", tuple(range(1, DEEPEST + 1))) for s in range(len(STAGES))),
        *(Choice(f"kernel{b}", values["kernels"]) for b in range(BLOCKS)),
        *(Choice(f"expand{b}", values["expands"]) for b in range(BLOCKS)),
    )
    idle = {"kernel": int(values["kernels"][0]), "expand": int(values["expands"][0])}

    def spec(values: dict[str, float]) -> str:
        depth = [int(values[f"depth{s}"]) for s in range(len(STAGES))]

        def digits(name: str) -> str:
            # A block that is not there has one value only, so that equal nets have equal names.
            there = [b % DEEPEST < depth[b // DEEPEST] for b in range(BLOCKS)]
            return "".join(
                str(int(values[f"{name}{b}"]) if there[b] else idle[name]) for b in range(BLOCKS)
            )

        parts = {
            "width": f"{values['width']:g}",
            "depth": "".join(map(str, depth)),
            "kernel": digits("kernel"),
            "expand": digits("expand"),
            **{k: f"{values[k]:g}" for k in ("size", "stride") if k in values},
            **fixed,
        }
        return "elastic:" + ",".join(f"{k}={v}" for k, v in parts.items())

    return SearchSpace("elastic", choices, spec)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted(float(x) for x in text.split("/")))
    except ValueError:
        raise ConfigError(
            f"search space elastic: {name} needs numbers with / between them, got {text!r}"
        ) from None
