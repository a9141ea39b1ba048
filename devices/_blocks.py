"""Two files in one session: short runs that alternate, each a process of its own.

An ordinary run after the other, so that every worker of every device can do it, and a session that
was cut goes on with `resume`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from hetero.devices._session import run
from hetero.devices._types import Device, Plan, RunResult
from hetero.errors import ConfigError
from hetero.latency import Arm, Block

#: Of one block: long enough that loading is over, short enough that the machine stays as it is.
BLOCK_PLAN = Plan(warmup_runs=5, warmup_s=0.05, min_runs=20, min_s=0.2, max_s=20.0)


@dataclass(frozen=True, eq=False)
class Load:
    """What a block runs.

    Attributes:
        model: An exported file.
        format: "onnx" or "tflite".
        inputs: uint8, int8 or float32, as the file takes them; one row is enough.
    """

    model: Path
    format: str
    inputs: Shaped[np.ndarray, "n ..."]


@dataclass(frozen=True, eq=False)
class Alternated:
    """Everything raw of a session of alternating blocks.

    Attributes:
        groups: The blocks in the order in which they ran.
        results: What each came from, in the same order.
    """

    groups: tuple[tuple[Block, ...], ...]
    results: tuple[tuple[RunResult, ...], ...]


def alternate(
    device: Device,
    loads: Mapping[Arm, Load],
    orders: Sequence[str],
    *,
    folder: Path,
    plan: Plan = BLOCK_PLAN,
    resume: bool = False,
    on_block: Callable[[], None] = lambda: None,
) -> Alternated:
    """The blocks of these orders, run one after another.

    Args:
        device: From `open_device`.
        loads: What A and B are; they may be the same file.
        orders: A word of "A" and "B" for each group, see `hetero.latency.orders`.
        folder: Where everything raw goes; each block has its run folder there.
        plan: Of one block.
        resume: Take over the blocks that an equal session left there.
        on_block: Called after each block, for showing progress.

    Raises:
        ConfigError: The plan measures nothing.
        BundleError, DeviceError, StorageError, Interrupted: See `hetero.devices.run`.
    """
    if not plan.min_runs:
        raise ConfigError("a block measures: give its plan min_runs above 0")
    groups, results = [], []
    for at, order in enumerate(orders):
        ran = []
        for place, arm in enumerate(order):
            load = loads["A" if arm == "A" else "B"]
            ran.append(
                run(
                    device,
                    load.model,
                    load.format,
                    load.inputs,
                    folder=folder,
                    plan=plan,
                    resume=resume,
                    repeat=1 + at * len(order) + place,
                )
            )
            on_block()
        groups.append(
            tuple(
                Block("A" if arm == "A" else "B", result.latency_ns)
                for arm, result in zip(order, ran, strict=True)
            )
        )
        results.append(tuple(ran))
    return Alternated(tuple(groups), tuple(results))
