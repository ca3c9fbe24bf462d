"""What tests of adversarial models share: a batch, and whether a step has touched a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def backward(loss: Tensor) -> None:
    torch.autograd.backward(loss)


def some_tiles(count: int = 4) -> Tensor:
    return torch.rand(count, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def weights(network: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in network.parameters()]


def equal(before: list[Tensor], network: nn.Module) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
