"""A model too large to be trained whole in each process: cut over the processes, by FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import distributed, nn

M = TypeVar("M", bound=nn.Module)

#: A part of the net is gathered by itself if it holds this share of the net's parameters.
LEAST = 0.01


class Sharded(Generic[M]):
    """A module's copy, of whose parameters each process keeps and trains a part.

    Weights, gradients and the optimiser's two moments are then a process's share of the whole; the
    parts of the net are put together one at a time, as the forward and backward pass get there. The
    module itself stays whole and on the CPU, and gets the weights whenever they are needed.

    Args:
        whole: A module with the attribute `net`; its parameters are not trained.
        device: Where to train.
    """

    def __init__(self, whole: M, device: torch.device) -> None:
        """See the class."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._whole = whole
        # FSDP2 takes contiguous parameters only.
        self.run = _contiguous(deepcopy(whole)).to(device)
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        net = self.run.net
        assert isinstance(net, nn.Module)
        for part in units(net):
            fully_shard(part, mesh=mesh)
        fully_shard(self.run, mesh=mesh)

    def gather(self) -> None:
        """Put the trained weights into the whole module; all processes at once."""
        from torch.distributed.tensor import DTensor

        target = self._whole.state_dict()
        for name, value in self.run.state_dict().items():
            target[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)

    def scatter(self) -> None:
        """Take the whole module's weights over; all processes at once."""
        states = _states()
        options = states.StateDictOptions(full_state_dict=True)
        states.set_model_state_dict(self.run, self._whole.state_dict(), options=options)

    def state_of(self, optimizer: torch.optim.Optimizer) -> ShardedOptimizer:
        """The state of an optimiser of this copy's parameters."""
        return ShardedOptimizer(self.run, optimizer)


class ShardedOptimizer:
    """The state of an optimiser of sharded parameters, as a checkpoint keeps it: whole.

    Args:
        run: The sharded module.
        optimizer: Its optimiser.
    """

    def __init__(self, run: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See the class."""
        self._run, self._optimizer = run, optimizer

    def state_dict(self) -> dict[str, Any]:
        """The whole state in the main process, nothing in the others; all processes at once."""
        states = _states()
        options = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
        found: dict[str, Any] = states.get_optimizer_state_dict(
            self._run, self._optimizer, options=options
        )
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this state over, which every process has whole; all processes at once."""
        states = _states()
        options = states.StateDictOptions(full_state_dict=True)
        states.set_optimizer_state_dict(self._run, self._optimizer, state, options=options)


def units(net: nn.Module) -> Iterator[nn.Module]:
    """The parts of a net that are put together one at a time: its layers and blocks of some size.

    What is in none of them (small layers, a classifier) stays together for the whole pass.
    """
    least = LEAST * sum(p.numel() for p in net.parameters())

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(child, nn.Sequential | nn.ModuleList) or child is backbone:
                yield from below(child)
            elif sum(p.numel() for p in child.parameters()) > least:
                yield child

    backbone = getattr(net, "backbone", None)
    return below(net)


def _states() -> Any:
    """PyTorch's states of distributed modules, which take most of a second to import."""
    from torch.distributed.checkpoint import state_dict

    return state_dict


def _contiguous(module: M) -> M:
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
    return module
