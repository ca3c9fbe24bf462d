"""GANomaly (Akcay and others 2018, arXiv 1805.06725): encoder, decoder, second encoder (before hop 1).

The generator codes a tile, draws it again from the code and codes the drawing. Trained on good tiles alone, it draws
what a good tile would look like; where the drawing differs from the tile, the part deviates.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from training.models.adversarial import COLLAPSED_BELOW, cross_entropy, frozen, update
from training.models.base import Backward, Deployed, Judgement, Trainable
from training.models.losses import city_block, deviation

MAX_CHANNELS = 256  # without a cap the generator has 38 million parameters at 128 px and 144 million at 256 px
WEIGHT_ADVERSARIAL, WEIGHT_CONTEXTUAL, WEIGHT_ENCODER = 1.0, 50.0, 1.0


class Passage(NamedTuple):
    """One pass of the generator: drawn tile [N, C, H, W] in [-1, 1], code and code of the drawing [N, latent, 1, 1]."""

    image: Tensor
    code: Tensor
    recode: Tensor


class Criticism(NamedTuple):
    """One pass of the discriminator: features [N, K, h, w] of the last stage and logits [N], high = real."""

    features: Tensor
    logits: Tensor


class GeneratorLosses(NamedTuple):
    """The three terms of the generator's loss, unweighted scalars."""

    adversarial: Tensor
    contextual: Tensor
    encoder: Tensor

    def total(self) -> Tensor:
        """The weighted sum 1 : 50 : 1 of the paper."""
        return weighted(*self)


def weighted(adversarial: Tensor, contextual: Tensor, coded: Tensor) -> Tensor:
    """The sum 1 : 50 : 1 of a generator's three terms."""
    return WEIGHT_ADVERSARIAL * adversarial + WEIGHT_CONTEXTUAL * contextual + WEIGHT_ENCODER * coded


def pyramid(size: int, width: int) -> tuple[list[int], int]:
    """Channels of each halving stage and the side that remains: 64 px -> 4 stages and 4 px."""
    channels = [min(width, MAX_CHANNELS)]
    side = size // 2
    while side > 7 and side % 2 == 0:
        channels.append(min(2 * channels[-1], MAX_CHANNELS))
        side //= 2
    return channels, side


class Stem(nn.Sequential):
    """DCGAN's halving stages: tile [N, C, H, W] -> features [N, K, h, w]; no normalisation after the first."""

    def __init__(self, size: int, channels: int, width: int) -> None:
        stages, _ = pyramid(size, width)
        layers: list[nn.Module] = [nn.Conv2d(channels, stages[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        for before, after in pairwise(stages):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        super().__init__(*layers)


class Encoder(nn.Sequential):
    """Tile [N, C, H, W] -> code [N, latent, 1, 1]."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        stages, side = pyramid(size, width)
        super().__init__(Stem(size, channels, width), nn.Conv2d(stages[-1], latent, side, 1, 0, bias=False))


class Decoder(nn.Sequential):
    """Code [N, latent, 1, 1] -> tile [N, C, H, W] in [-1, 1]: the encoder mirrored."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        stages, side = pyramid(size, width)
        stages = stages[::-1]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent, stages[0], side, 1, 0, bias=False)]
        for before, after in pairwise(stages):
            layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(stages[-1]), nn.ReLU()]
        super().__init__(*layers, nn.ConvTranspose2d(stages[-1], channels, 4, 2, 1, bias=False), nn.Tanh())


class Generator(nn.Module):
    """Encoder, decoder, encoder; the two encoders share their shape and no weight."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = Encoder(size, channels, width, latent)
        self.decoder = Decoder(size, channels, width, latent)
        self.second_encoder = Encoder(size, channels, width, latent)

    def forward(self, tile: Tensor) -> Passage:
        code = self.encoder(tile)
        image = self.decoder(code)
        return Passage(image, code, self.second_encoder(image))


class Discriminator(nn.Module):
    """Tells tiles from drawings; its features are what the generator has to match."""

    def __init__(self, size: int, channels: int, width: int) -> None:
        super().__init__()
        stages, side = pyramid(size, width)
        self.stem = Stem(size, channels, width)
        self.head = nn.Conv2d(stages[-1], 1, side, 1, 0, bias=False)

    def forward(self, tile: Tensor) -> Criticism:
        features = self.stem(tile)
        return Criticism(features, self.head(features).flatten())


class Judge(Deployed):
    """The deployed half: the generator, the mean absolute difference over channels, and the distance of the codes."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, tile: Tensor) -> Judgement:
        drawn = self.generator(tile)
        # The paper scores with the L1 norm of the codes' difference, one number an image.
        return Judgement(drawn.image, deviation(tile, drawn.image), {"latent": city_block(drawn.code, drawn.recode)})


def initialise(module: nn.Module) -> None:
    """DCGAN's weights: convolutions and matrices N(0, 0.02), normalisation scale N(1, 0.02), shifts 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
        module.reset_running_stats()


def generator_losses(tile: Tensor, drawn: Passage, real_features: Tensor, fake_features: Tensor) -> GeneratorLosses:
    """Feature matching (squared), contextual (absolute) and encoder (squared) losses, each a mean."""
    return GeneratorLosses(
        F.mse_loss(fake_features, real_features), F.l1_loss(drawn.image, tile), F.mse_loss(drawn.recode, drawn.code)
    )


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of both binary cross entropies: ``real`` and ``fake`` are logits [N]."""
    return 0.5 * cross_entropy(real, fake)


def start_afresh(discriminator: nn.Module, losses: dict[str, float]) -> bool:
    """Initialise the discriminator once its loss has vanished; whether it had."""
    if losses["discriminator"] >= COLLAPSED_BELOW:
        return False
    discriminator.apply(initialise)
    return True


class Ganomaly(Trainable):
    """Generator and discriminator with the paper's losses and optimizers."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.generator = Generator(size, channels, width, latent)
        self.discriminator = Discriminator(size, channels, width)
        self.apply(initialise)

    @classmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> Ganomaly:
        return cls(size, channels, width, latent)

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        drawn, losses = self.generator_step(batch, optimizers["generator"], backward)
        critic = self.discriminator_step(batch, drawn.image.detach(), optimizers["discriminator"], backward)
        return {
            "contextual": losses.contextual,
            "adversarial": losses.adversarial,
            "encoder": losses.encoder,
            "discriminator": critic.detach(),
        }

    def generator_step(
        self, batch: Tensor, optimizer: Optimizer, backward: Backward
    ) -> tuple[Passage, GeneratorLosses]:
        """Update the generator; the discriminator's weights are frozen and take no gradient."""
        critic = self.discriminator
        with frozen(critic):
            drawn: Passage = self.generator(batch)
            with torch.no_grad():
                real_features = critic(batch).features
            losses = generator_losses(batch, drawn, real_features, critic(drawn.image).features)
            update(losses.total(), backward, optimizer)
        return drawn, GeneratorLosses(*(term.detach() for term in losses))

    def discriminator_step(self, real: Tensor, fake: Tensor, optimizer: Optimizer, backward: Backward) -> Tensor:
        """Update the discriminator on tiles and on drawings, which must be detached from the generator."""
        loss = discriminator_loss(self.discriminator(real).logits, self.discriminator(fake).logits)
        update(loss, backward, optimizer)
        return loss

    def deployed(self) -> Judge:
        return Judge(self.generator)

    def mend(self, losses: dict[str, float]) -> bool:
        return start_afresh(self.discriminator, losses)
