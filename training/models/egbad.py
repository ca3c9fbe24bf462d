"""EGBAD (Zenati and others 2018, arXiv 1802.06222): a BiGAN whose pairs of tile and code are judged (before hop 1).

A generator draws tiles from codes while an encoder codes tiles; the discriminator is shown a tile *with* its code and
has to tell (x, E(x)) from (G(z), z). Where both win, the encoder inverts the generator: what it draws of a tile's code
is what a good tile would look like, in one pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.models.adversarial import (
    Late,
    as_drawn,
    as_real,
    cross_entropy,
    feature_matching,
    frozen,
    noise,
    unlikely,
    update,
)
from training.models.base import Backward, Deployed, Judgement
from training.models.ganomaly import Decoder, Encoder, Stem, initialise, pyramid
from training.models.losses import city_block, deviation

CODE_FEATURES, JOINT_FEATURES = 512, 1024
DROPOUT = 0.5
LEAK = 0.1
WEIGHT = 0.1  # of the discriminator in the score


class Criticism(NamedTuple):
    """One pass of the discriminator: features [N, K] of pairs and logits [N], high = a tile with its code."""

    features: Tensor
    logits: Tensor


class Discriminator(nn.Module):
    """Tells a tile with its code from a drawing with the code that it was drawn from."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        stages, side = pyramid(size, width)
        self.of_tile = nn.Sequential(Stem(size, channels, width), nn.Flatten(), nn.Dropout(DROPOUT))
        self.of_code = _dense(latent, CODE_FEATURES)
        self.of_both = _dense(stages[-1] * side * side + CODE_FEATURES, JOINT_FEATURES)
        self.head = nn.Linear(JOINT_FEATURES, 1)

    def forward(self, tile: Tensor, code: Tensor) -> Criticism:
        features = self.of_both(torch.cat([self.of_tile(tile), self.of_code(code.flatten(1))], dim=1))
        return Criticism(features, self.head(features).squeeze(1))


def _dense(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, after), nn.LeakyReLU(LEAK), nn.Dropout(DROPOUT))


def with_verdict(tile: Tensor, image: Tensor, logits: Tensor) -> Tensor:
    """The paper's score by cross entropy, [N]: (1 - w) |x - G(E(x))|_1 + w (-log D(x, E(x)))."""
    return (1.0 - WEIGHT) * city_block(tile, image) + WEIGHT * unlikely(logits)


def with_features(tile: Tensor, image: Tensor, of_tile: Tensor, of_image: Tensor) -> Tensor:
    """The paper's score by feature matching, [N]: (1 - w) |x - G(E(x))|_1 + w |f(x, E(x)) - f(G(E(x)), E(x))|_1."""
    return (1.0 - WEIGHT) * city_block(tile, image) + WEIGHT * city_block(of_tile, of_image)


class Judge(Deployed):
    """The deployed half: all three networks, whose statistics are measured as they judge.

    Measured on noise, as it learns, the generator would draw all tiles alike until their codes are like that noise.
    """

    def __init__(self, encoder: Encoder, generator: Decoder, discriminator: Discriminator) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = generator
        self.discriminator = discriminator

    def forward(self, tile: Tensor) -> Judgement:
        code = self.encoder(tile)
        image = self.generator(code)
        real: Criticism = self.discriminator(tile, code)
        drawn: Criticism = self.discriminator(image, code)
        scores = {
            "discriminator": with_verdict(tile, image, real.logits),
            "features": with_features(tile, image, real.features, drawn.features),
        }
        return Judgement(image, deviation(tile, image), scores)


class Egbad(Late):
    """Encoder, generator and discriminator; ``loss`` says what the first two learn by."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = Encoder(size, channels, width, latent)
        self.generator = Decoder(size, channels, width, latent)
        self.discriminator = Discriminator(size, channels, width, latent)
        self._latent = latent
        self.apply(initialise)

    @classmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> Egbad:
        return cls(size, channels, width, latent)

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        self.used = share
        judged = self.discriminator_step(batch, optimizers["discriminator"], backward)
        drawn = self.generator_step(batch, optimizers["generator"], optimizers["encoder"], backward)
        return {"discriminator": judged.detach(), "generator": drawn.detach()}

    def discriminator_step(self, batch: Tensor, optimizer: Optimizer, backward: Backward) -> Tensor:
        """Update the discriminator on tiles with their codes and on drawings with theirs."""
        with torch.no_grad():
            code, drawn_from = self.encoder(batch), noise(batch, self._latent, 1, 1)
            image = self.generator(drawn_from)
        loss = cross_entropy(self.discriminator(batch, code).logits, self.discriminator(image, drawn_from).logits)
        update(loss, backward, optimizer)
        return loss

    def generator_step(self, batch: Tensor, generator: Optimizer, encoder: Optimizer, backward: Backward) -> Tensor:
        """Update generator and encoder, which both try to be taken for the other; the discriminator is frozen."""
        drawn_from = noise(batch, self._latent, 1, 1)
        with frozen(self.discriminator):
            of_tile: Criticism = self.discriminator(batch, self.encoder(batch))
            of_drawing: Criticism = self.discriminator(self.generator(drawn_from), drawn_from)
            if self.loss == "features":
                loss = feature_matching(of_tile.features, of_drawing.features)
            else:
                loss = as_drawn(of_tile.logits) + as_real(of_drawing.logits)
            update(loss, backward, generator, encoder)
        return loss

    def deployed(self) -> Judge:
        return Judge(self.encoder, self.generator, self.discriminator)
