"""What the tests of single training steps share: the plain backward pass, and what of a network has changed."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from training.models.clusters import Clustered

Model = TypeVar("Model", bound=Clustered)


def backward(loss: Tensor) -> None:
    torch.autograd.backward(loss)


def noise(count: int, channels: int = 1, size: int = 64) -> Tensor:
    """Tiles [N, C, S, S] in [-1, 1]."""
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def weights(network: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in network.parameters()]


def equal(before: list[Tensor], network: nn.Module) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def gradients(network: nn.Module) -> list[Tensor | None]:
    return [None if weight.grad is None else weight.grad.clone() for weight in network.parameters()]


def changed(before: dict[str, list[Tensor]], networks: dict[str, nn.Module]) -> set[str]:
    """Names of the networks of which a weight is another than ``before``."""
    return {name for name, network in networks.items() if not equal(before[name], network)}


def all_weights(networks: dict[str, nn.Module]) -> dict[str, list[Tensor]]:
    return {name: weights(network) for name, network in networks.items()}


def with_centres(model: Model) -> Model:
    """``model`` after its first step with centres."""
    model.train().training_step(noise(8), model.optimizers(2e-4), backward, 0.6)
    model.zero_grad()
    return model
