"""The losses of the adversarial game and one move of a player, shared by every model that plays it (before hop 1).

Verdicts are logits, high = real: D(x) = sigmoid(verdict). Of a Wasserstein critic they are unbounded scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from training.models.base import Backward, Trainable

LAMBDA = 10.0  # weight of the gradient penalty
SELECT_FROM = 0.8  # share of the budget after which weights are selected
MOST_DEVIATION = 2.0  # between tiles in [-1, 1]
COLLAPSED_BELOW = 1e-5  # a discriminator this sure gives the generator nothing to learn from


def unlikely(verdicts: Tensor) -> Tensor:
    """-log D of each verdict: how far it is from being called real."""
    return F.softplus(-verdicts)


def as_real(verdicts: Tensor) -> Tensor:
    """Cross entropy of calling these real, mean of -log D: of a discriminator on tiles, of a generator on drawings."""
    return unlikely(verdicts).mean()


def as_drawn(verdicts: Tensor) -> Tensor:
    """Cross entropy of calling these drawn, mean of -log(1 - D)."""
    return F.softplus(verdicts).mean()


def cross_entropy(real: Tensor, drawn: Tensor) -> Tensor:
    """What a discriminator loses on tiles and drawings."""
    return as_real(real) + as_drawn(drawn)


def minimax(verdicts: Tensor) -> Tensor:
    """Mean of log(1 - D): what the generator lowers in the game as it was first written."""
    return -as_drawn(verdicts)


def wasserstein(real: Tensor, drawn: Tensor) -> Tensor:
    """Negative estimate of the Wasserstein distance: what a critic loses."""
    return drawn.mean() - real.mean()


def criticised(verdicts: Tensor) -> Tensor:
    """Negative mean score by a critic: what a generator loses to it."""
    return -verdicts.mean()


def critic_loss(real: Tensor, drawn: Tensor, penalty: Tensor) -> Tensor:
    """``wasserstein`` and the weighted gradient penalty (arXiv 1704.00028)."""
    return wasserstein(real, drawn) + LAMBDA * penalty


def gradient_penalty(judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Mean of (|gradient| - 1)^2 at a random point between each pair of ``real`` and ``fake`` [N, C, H, W].

    Each pair has its own place and its own gradient norm. ``judge`` maps such tiles to verdicts [N].
    """
    place = torch.rand((len(real), 1, 1, 1), device=real.device)
    between = (real + place * (fake - real)).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(judge(between).sum(), between, create_graph=True)
    excess: Tensor = gradient.flatten(1).norm(dim=1) - 1.0
    return excess.square().mean()


def feature_matching(real: Tensor, drawn: Tensor) -> Tensor:
    """Mean square difference of two batches' mean features [N, ...] (Salimans and others 2016, arXiv 1606.03498)."""
    return F.mse_loss(drawn.mean(dim=0), real.mean(dim=0))


def noise(like: Tensor, *shape: int) -> Tensor:
    """Draws of N(0, 1), [N, *shape]: as many as ``like`` has tiles, where it is."""
    return torch.randn((len(like), *shape), device=like.device)


class Late(Trainable):
    """Selects weights in the last fifth of the budget: earlier ones can deviate little by chance.

    A generator that draws the average tile does, and so does a discriminator that calls everything real.
    """

    used = 0.0  # share of the budget, told by every step

    def selection_loss(self, judge: nn.Module, tiles: Tensor) -> float:
        """Mean deviation on good tiles; before the last fifth worse than any, and later is better."""
        if self.used < SELECT_FROM:
            return MOST_DEVIATION + 1.0 - self.used
        return super().selection_loss(judge, tiles)

    @staticmethod
    def judged(row: dict[str, float]) -> dict[str, float]:
        """A row of the history without its validation loss where that only says that it was too early."""
        return {name: value for name, value in row.items() if name != "validation" or value <= MOST_DEVIATION}


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """The networks' weights take no gradient: what lies before them in the graph still does."""
    for network in networks:
        network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            network.requires_grad_(True)


def update(loss: Tensor, backward: Backward, *optimizers: Optimizer) -> None:
    """One step of each optimizer on ``loss``."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    backward(loss)
    for optimizer in optimizers:
        optimizer.step()
