"""Several processes as one run: who this is, and what has to be decided together."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hetero.errors import require

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState  # type: ignore[import-untyped]

#: Options of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def processes() -> PartialState:
    """The processes of this run: how many, which one this is, and its accelerator.

    Accelerate by itself takes processes started without a GPU for runs of their own.

    Raises:
        MissingExtraError: Accelerate is not installed.
    """
    state = require("accelerate", "train").PartialState
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    # Apple's has no collective operations.
    made: PartialState = state(cpu=several and (found is None or found.type == "mps"))
    return made


def keep_memory() -> None:
    """Tells the C library to keep freed memory for the next step.

    By default it gives large blocks back to the system and asks for them again at each step; page
    faults are then a quarter of a training step on the CPU. Does nothing where the library is not
    GNU's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**26)
    mallopt(_MMAP_THRESHOLD, 2**25)


def accelerator() -> Accelerator:
    """What moves models and gradients between these processes and their devices."""
    processes()
    made: Accelerator = require("accelerate", "train").Accelerator()
    return made


def any_of(run: Accelerator, flag: bool) -> bool:
    """Whether any process says so: they have to stop together, or one waits for ever."""
    if run.num_processes == 1:
        return flag
    return bool(run.reduce(torch.tensor(float(flag), device=run.device), "sum"))


def mean_of(run: Accelerator, value: Tensor) -> Tensor:
    """The mean over the processes, on the CPU."""
    if run.num_processes == 1:
        return value
    mean: Tensor = run.reduce(value.to(run.device), "mean")
    return mean.cpu()


def from_main(run: Accelerator, numbers: Callable[[], Sequence[float]], count: int) -> list[float]:
    """The `count` numbers that the main process finds, in all processes.

    Batch statistics, and so scores, differ a little between processes; one has to decide for all.
    """
    if run.num_processes == 1:
        return list(numbers())
    mine = numbers() if run.is_main_process else [0.0] * count
    shared = require("accelerate.utils", "train").broadcast(
        torch.tensor(mine, dtype=torch.float64, device=run.device)
    )
    return [float(x) for x in shared]
