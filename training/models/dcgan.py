"""A plain GAN (Goodfellow 2014, arXiv 1406.2661; DCGAN, arXiv 1511.06434): a part is what its discriminator doubts.

A generator draws tiles from noise and a discriminator learns to tell them from tiles; then the generator is put away
(before hop 1). The score is 1 - D(x). Nothing draws the tile at hand again, so the reconstruction is the tile itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer, RMSprop

from training.models.adversarial import (
    Late,
    as_real,
    criticised,
    cross_entropy,
    frozen,
    minimax,
    noise,
    update,
    wasserstein,
)
from training.models.base import Backward, Deployed, Judgement
from training.models.ganomaly import Decoder, Stem, initialise, pyramid

N_CRITIC = 5  # updates of a Wasserstein critic for one of the generator
CLIP = 0.01  # largest weight of such a critic
CRITIC_RATE = 0.25  # of the learning rate: 5e-5 where the others have 2e-4
FREEZE_FROM = 0.5  # share of the budget after which the generator is frozen, of that variant


class Game(NamedTuple):
    """What the discriminator loses by its verdicts on tiles and drawings, and what the generator by the latter."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


GAMES = {
    "non_saturating": Game(cross_entropy, as_real),
    "minimax": Game(cross_entropy, minimax),
    "wasserstein": Game(wasserstein, criticised),
    "frozen_generator": Game(cross_entropy, as_real),
}


class Criticism(NamedTuple):
    """One pass of the discriminator: features [N, K, h, w], and the vote of each of their places, [N, 1, h, w]."""

    features: Tensor
    votes: Tensor

    def verdicts(self) -> Tensor:
        """Logits [N], high = real: the sum of the votes."""
        return self.votes.sum(dim=(1, 2, 3))


class Discriminator(nn.Module):
    """DCGAN's: its last convolution spans all places, each of which has a vote of its own."""

    updates: Tensor

    def __init__(self, size: int, channels: int, width: int) -> None:
        super().__init__()
        stages, side = pyramid(size, width)
        self.stem = Stem(size, channels, width)
        self.head = nn.Parameter(torch.empty(1, stages[-1], side, side))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # saved, so that a resumed run goes on
        nn.init.normal_(self.head, 0.0, 0.02)

    def forward(self, tile: Tensor) -> Criticism:
        features = self.stem(tile)
        return Criticism(features, (features * self.head).sum(dim=1, keepdim=True))


class Judge(Deployed):
    """The deployed half: the discriminator. The map is what 1 - D(x) would be if all places voted as this one does."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, tile: Tensor) -> Judgement:
        found: Criticism = self.discriminator(tile)
        side = found.votes.shape[-1]
        doubts = torch.sigmoid(-side * side * found.votes)
        spread = F.interpolate(doubts, scale_factor=tile.shape[-1] / side, mode="bilinear", align_corners=False)
        return Judgement(tile, spread, {"discriminator": torch.sigmoid(-found.verdicts())})


class Dcgan(Late):
    """Generator and discriminator; ``loss`` names the game that they play."""

    loss = "non_saturating"

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.generator = Decoder(size, channels, width, latent)
        self.discriminator = Discriminator(size, channels, width)
        self._latent = latent
        self.apply(initialise)

    @classmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> Dcgan:
        return cls(size, channels, width, latent)

    def optimizers(self, learning_rate: float) -> dict[str, Optimizer]:
        if self.loss == "wasserstein":
            return {
                name: RMSprop(network.parameters(), lr=CRITIC_RATE * learning_rate)
                for name, network in self.networks().items()
            }
        return super().optimizers(learning_rate)

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        self.used = share
        losses = {"discriminator": self.discriminator_step(batch, optimizers["discriminator"], backward)}
        if self.generator_learns(share):
            losses["generator"] = self.generator_step(batch, optimizers["generator"], backward)
        return {name: loss.detach() for name, loss in losses.items()}

    def generator_learns(self, share: float) -> bool:
        """Whether the generator moves after the discriminator's latest update."""
        if self.loss == "wasserstein":
            return int(self.discriminator.updates) % N_CRITIC == 0
        return self.loss != "frozen_generator" or share < FREEZE_FROM

    def discriminator_step(self, batch: Tensor, optimizer: Optimizer, backward: Backward) -> Tensor:
        """Update the discriminator on tiles and on as many drawings of new codes."""
        with torch.no_grad():
            drawn = self.generator(noise(batch, self._latent, 1, 1))
        critic = self.discriminator
        loss = GAMES[self.loss].discriminator(critic(batch).verdicts(), critic(drawn).verdicts())
        update(loss, backward, optimizer)
        critic.updates += 1
        if self.loss == "wasserstein":
            with torch.no_grad():
                for weights in critic.parameters():
                    weights.clamp_(-CLIP, CLIP)
        return loss

    def generator_step(self, like: Tensor, optimizer: Optimizer, backward: Backward) -> Tensor:
        """Update the generator on drawings of new codes, as many as ``like`` has tiles; the discriminator is frozen."""
        with frozen(self.discriminator):
            drawn = self.generator(noise(like, self._latent, 1, 1))
            loss = GAMES[self.loss].generator(self.discriminator(drawn).verdicts())
            update(loss, backward, optimizer)
        return loss

    def deployed(self) -> Deployed:
        return Judge(self.discriminator)
