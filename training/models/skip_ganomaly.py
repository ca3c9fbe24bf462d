"""Skip-GANomaly (Akcay and others 2019, arXiv 1901.08954): a U-shaped generator and its discriminator (before hop 1).

The generator draws each tile again, with connections that skip past its narrow middle: sharp, and defects are tempted
to come along. The discriminator's features of tile and drawing are brought together in training and compared in the
score.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from training.models.adversarial import as_real, cross_entropy, frozen, update
from training.models.base import Backward, Deployed, Judgement, Trainable
from training.models.ganomaly import MAX_CHANNELS, Criticism, Stem, initialise, pyramid, start_afresh, weighted
from training.models.losses import deviation, mean_square

SCORE_CONTEXTUAL, SCORE_LATENT = 0.9, 0.1


class Losses(NamedTuple):
    """The three terms of the generator's loss, unweighted scalars."""

    adversarial: Tensor
    contextual: Tensor
    latent: Tensor

    def total(self) -> Tensor:
        """The weighted sum 1 : 50 : 1 of the code."""
        return weighted(*self)


def halvings(size: int, width: int) -> list[int]:
    """Channels of each halving, down to an odd side: 64 px, 16 wide -> [16, 32, 64, 128, 128, 128] and 1 px."""
    channels: list[int] = []
    while size % 2 == 0:
        channels.append(min(width * 2 ** min(len(channels), 3), MAX_CHANNELS))
        size //= 2
    return channels


class Generator(nn.Module):
    """U-Net of pix2pix: tile [N, C, H, W] -> tile in [-1, 1]; every stage on the way up sees that on the way down."""

    def __init__(self, size: int, channels: int, width: int) -> None:
        super().__init__()
        widths = halvings(size, width)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, after in enumerate(widths):
            outer, inner = level == 0, level == len(widths) - 1
            before = channels if outer else widths[level - 1]
            down: list[nn.Module] = [] if outer else [nn.LeakyReLU(0.2)]
            down.append(nn.Conv2d(before, after, 4, 2, 1, bias=False))
            if not outer and not inner:  # the innermost may be a single pixel
                down.append(nn.BatchNorm2d(after))
            up = [nn.ReLU(), nn.ConvTranspose2d(after if inner else 2 * after, before, 4, 2, 1, bias=False)]
            self.downs.append(nn.Sequential(*down))
            self.ups.append(nn.Sequential(*up, nn.Tanh() if outer else nn.BatchNorm2d(before)))

    def forward(self, tile: Tensor) -> Tensor:
        seen = [tile]
        for down in self.downs:
            seen.append(down(seen[-1]))
        features = seen.pop()
        for level in range(len(self.ups) - 1, 0, -1):
            features = torch.cat([seen.pop(), self.ups[level](features)], dim=1)
        return cast("Tensor", self.ups[0](features))


class Discriminator(nn.Module):
    """DCGAN's stages, then ``latent`` features of the whole tile, and a logit of them."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        stages, side = pyramid(size, width)
        self.stem = Stem(size, channels, width)
        self.features = nn.Conv2d(stages[-1], latent, side, 1, 0, bias=False)
        self.head = nn.Conv2d(latent, 1, 1, bias=False)

    def forward(self, tile: Tensor) -> Criticism:
        features = self.features(self.stem(tile))
        return Criticism(features, self.head(features).flatten())


def generator_losses(tile: Tensor, image: Tensor, real: Criticism, drawn: Criticism) -> Losses:
    """Cross entropy of the drawing called real, absolute difference of pixels, squared difference of features."""
    return Losses(as_real(drawn.logits), F.l1_loss(image, tile), F.mse_loss(drawn.features, real.features))


def anomaly(tile: Tensor, image: Tensor, of_tile: Tensor, of_image: Tensor) -> Tensor:
    """The paper's score, [N]: 0.9 of the mean square residual of pixels, 0.1 of that of features."""
    return SCORE_CONTEXTUAL * mean_square(tile, image) + SCORE_LATENT * mean_square(of_tile, of_image)


class Judge(Deployed):
    """The deployed half: generator and discriminator."""

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator

    def forward(self, tile: Tensor) -> Judgement:
        image = self.generator(tile)
        features = anomaly(tile, image, self.discriminator(tile).features, self.discriminator(image).features)
        return Judgement(image, deviation(tile, image), {"features": features})


class SkipGanomaly(Trainable):
    """Generator and discriminator with the paper's losses and optimizers."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.generator = Generator(size, channels, width)
        self.discriminator = Discriminator(size, channels, width, latent)
        self.apply(initialise)

    @classmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> SkipGanomaly:
        return cls(size, channels, width, latent)

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        image, losses = self.generator_step(batch, optimizers["generator"], backward)
        judged = self.discriminator_step(batch, image, optimizers["discriminator"], backward)
        return {**{name: term.detach() for name, term in losses._asdict().items()}, "discriminator": judged.detach()}

    def generator_step(self, batch: Tensor, optimizer: Optimizer, backward: Backward) -> tuple[Tensor, Losses]:
        """Update the generator; returns its drawings, detached. The discriminator is frozen."""
        with frozen(self.discriminator):
            image: Tensor = self.generator(batch)
            with torch.no_grad():
                real: Criticism = self.discriminator(batch)
            losses = generator_losses(batch, image, real, self.discriminator(image))
            update(losses.total(), backward, optimizer)
        return image.detach(), losses

    def discriminator_step(self, real: Tensor, drawn: Tensor, optimizer: Optimizer, backward: Backward) -> Tensor:
        """Update the discriminator on tiles and on drawings, which must be detached from the generator."""
        loss = cross_entropy(self.discriminator(real).logits, self.discriminator(drawn).logits)
        update(loss, backward, optimizer)
        return loss

    def deployed(self) -> Judge:
        return Judge(self.generator, self.discriminator)

    def mend(self, losses: dict[str, float]) -> bool:
        return start_afresh(self.discriminator, losses)
