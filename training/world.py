"""One run in several processes: each has its share of every batch, the first decides and writes (before hop 1).

    torchrun --nproc-per-node 4 -m flawline train --data parts --out bundle

Fabric finds the processes and their devices. Gradients are averaged when an optimizer steps, not by a wrapper around
each network: a step of adversarial networks calls one of them several times, frozen, or as a part of another.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from contract.errors import ConfigError


class World:
    """The processes of this run: ``size`` of them, of which this is number ``rank``, on ``device``."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.size: int = fabric.world_size
        self.rank: int = fabric.global_rank
        self.device: torch.device = fabric.device

    @property
    def first(self) -> bool:
        """Whether this process writes, reports and validates."""
        return self.rank == 0

    def share_networks(self, networks: dict[str, nn.Module], optimizers: dict[str, Optimizer]) -> None:
        """Give all processes the first one's weights, average gradients at every step and normalise over all shares."""
        if self.size == 1:
            return
        for network in networks.values():
            for value in network.state_dict().values():
                distributed.broadcast(value, 0)
            for module in network.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = SharedBatchNorm2d  # in place: others hold references to this very layer
        for optimizer in optimizers.values():
            optimizer.register_step_pre_hook(_average_gradients)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, equal on all of them; ``values`` itself where there is one."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def agree(self, mine: float, wish: bool) -> tuple[float, bool]:
        """The first process's number, and whether any of them wishes."""
        if self.size == 1:
            return mine, wish
        said = torch.tensor([mine if self.first else -1.0, float(wish)], dtype=torch.float64, device=self.device)
        distributed.all_reduce(said, distributed.ReduceOp.MAX)
        return float(said[0]), bool(said[1] > 0)

    def wait(self) -> None:
        """Until every process has come here."""
        self.fabric.barrier()

    def leave(self) -> None:
        """Let go of the other processes."""
        if self.size > 1:
            distributed.destroy_process_group()


def join(device: str, batch: int) -> World:
    """This process's place among those that torchrun started, or a world of its own.

    ``device``: auto, cpu or cuda. Raises ConfigError where ``batch`` cannot be shared evenly, or cards are missing.
    """
    if alone():
        return World(Fabric(accelerator=device, devices=1))
    here, size = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ["WORLD_SIZE"])
    if batch % size:
        raise ConfigError(f"--batch {batch} cannot be shared evenly by {size} processes; expected a multiple of {size}")
    if batch < 2 * size:
        raise ConfigError(
            f"--batch {batch} leaves {batch // size} tile to each of {size} processes; expected {2 * size} or more"
        )
    cards = torch.cuda.device_count() if device != "cpu" else 0
    if device == "auto":
        device = "cuda" if cards else "cpu"
    if device == "cuda" and cards < here:
        raise ConfigError(
            f"{here} processes and {cards} NVIDIA GPU(s) on this machine; start as many processes as there are GPUs "
            f"(--nproc-per-node {max(1, cards)}), or train with --device cpu"
        )
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # each process would report its arrival
    fabric = Fabric(accelerator=device, devices=here, num_nodes=size // here, strategy="ddp")
    fabric.launch()
    return World(fabric)


def alone() -> bool:
    """Whether no launcher started other processes beside this one."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1


def is_first() -> bool:
    """Whether this process is the one that speaks, before torch has found the others."""
    return os.environ.get("RANK", "0") == "0"


@torch.no_grad()
def everyones(rows: Tensor) -> Tensor:
    """``rows`` [N, ...] of all processes, one after the other and equal on all of them; no gradient flows through."""
    if not distributed.is_initialized():
        return rows
    found = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, rows.contiguous())
    return torch.cat(found)


@torch.no_grad()
def _average_gradients(optimizer: Optimizer, *given: Any) -> None:
    """Average all gradients of one optimizer in one exchange."""
    gradients = [
        weights.grad for group in optimizer.param_groups for weights in group["params"] if weights.grad is not None
    ]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(together)
    together /= distributed.get_world_size()
    for gradient, part in zip(gradients, torch.split(together, [each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics in training are those of the whole batch, over all processes.

    torch's own SyncBatchNorm refuses CPUs, where the equality with one process is tested.
    """

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        exact = features.float()
        mean = _mean_over_processes(exact.mean(dim=(0, 2, 3)))
        apart = exact - mean[:, None, None]
        variance = _mean_over_processes(apart.square().mean(dim=(0, 2, 3)))
        self._remember(mean.detach(), variance.detach(), distributed.get_world_size() * exact[:, 0].numel())
        normal = apart * torch.rsqrt(variance + self.eps)[:, None, None]
        shaped: Tensor = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return shaped.to(features.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)


def _mean_over_processes(values: Tensor) -> Tensor:
    """Mean over all processes; gradients flow back to all of them."""
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total / distributed.get_world_size()


class _Sum(torch.autograd.Function):
    """Sum over all processes; what comes back of it is the sum of what all processes make of it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed: Tensor = _Sum.apply(*gradients)  # type: ignore[no-untyped-call]
        return summed
