"""Several processes as one run: who this is, and what has to be decided together."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

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


def accelerator(partial: bool = False) -> Accelerator:
    """What moves models and gradients between these processes and their devices.

    Args:
        partial: Whether a step may leave some parameters without a gradient.
    """
    processes()
    accelerate = require("accelerate", "train")
    # Precision is said by `hetero.fit.Settings` alone, not by `accelerate launch`'s environment.
    made: Accelerator = accelerate.Accelerator(
        mixed_precision="no",
        kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=partial)],
    )
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


def joined(*rows: Tensor) -> tuple[Tensor, ...]:
    """The rows of all processes, in the order of the processes, with gradient; there may be none.

    Each process then has the whole batch, and the loss of it. Backwards, what all processes' losses
    say of a row is added up where the row is from: that many times the gradient of the one loss,
    which is what the mean over processes (DDP's, FSDP's) brings back to once.

    Args:
        rows: Tensors of equally many rows; another process may have more or fewer. Whether one
            wants gradients, its dtype and what follows the rows have to be the same everywhere.

    Returns:
        One tensor for each, of all rows; of one process, the tensors themselves.
    """
    several = distributed.is_available() and distributed.is_initialized()
    if not several or distributed.get_world_size() == 1:
        return rows
    mine = torch.tensor([len(rows[0])], device=rows[0].device)
    every = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, mine)
    counts = [int(count) for count in every]
    return tuple(_Joined.apply(some, counts) for some in rows)  # type: ignore[no-untyped-call]


class _Joined(torch.autograd.Function):
    """The rows of all processes in one tensor, with gradient."""

    @staticmethod
    def forward(context: Any, rows: Tensor, counts: list[int]) -> Tensor:
        """All rows; processes with fewer than the most send filling, which is cut off again."""
        context.counts = counts
        sent = rows.new_zeros(max(counts), *rows.shape[1:])
        sent[: len(rows)] = rows
        parts = [torch.empty_like(sent) for _ in counts]
        distributed.all_gather(parts, sent)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The sum of what the processes say of the rows that are from here."""
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        parts = torch.split(total, context.counts)
        return parts[distributed.get_rank()], None
