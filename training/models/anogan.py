"""AnoGAN (Schlegl and others 2017, arXiv 1703.05921): a plain GAN, and a search for each tile's code (before hop 1).

The generator is never inverted: for the tile at hand its code is found by gradient descent through the frozen networks.
What it cannot draw from any code deviates. A search is no graph: it is evaluated, not exported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Adam

from training.models.adversarial import noise
from training.models.base import Judgement, NotExported
from training.models.dcgan import Criticism, Dcgan, Discriminator
from training.models.ganomaly import Decoder
from training.models.losses import city_block, deviation

LAMBDA = 0.1  # weight of the features in the score, and in what the search lowers
SEARCH_STEPS = 500
SEARCH_RATE = 0.01


def anomaly(tile: Tensor, image: Tensor, of_tile: Tensor, of_image: Tensor) -> Tensor:
    """A(x) of the paper, [N]: (1 - lambda) |x - G(z)|_1 + lambda |f(x) - f(G(z))|_1."""
    return (1.0 - LAMBDA) * city_block(tile, image) + LAMBDA * city_block(of_tile, of_image)


class Search(NotExported):
    """Finds each tile's code, from the same start whatever the tile: a score is its tile's own, and the same again."""

    name = "anogan"
    start: Tensor

    def __init__(self, generator: Decoder, discriminator: Discriminator, latent: int) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.steps = SEARCH_STEPS
        self.register_buffer("start", torch.randn(1, latent, 1, 1, generator=torch.Generator().manual_seed(0)))

    def forward(self, tile: Tensor) -> Judgement:
        with torch.no_grad():
            of_tile: Criticism = self.discriminator(tile)
        code = self.find(tile, of_tile.features)
        with torch.no_grad():
            image = self.generator(code)
            of_image: Criticism = self.discriminator(image)
        scores = {"features": anomaly(tile, image, of_tile.features, of_image.features)}
        return Judgement(image, deviation(tile, image), scores)

    def measured(self, tile: Tensor) -> None:
        """Training draws from N(0, I), and a search would rest on the statistics that are to be measured."""
        self.discriminator(tile)
        self.generator(noise(tile, *self.start.shape[1:]))

    @torch.enable_grad()
    def find(self, tile: Tensor, features: Tensor) -> Tensor:
        """The codes [N, latent, 1, 1] that lower A(x) of each tile; Adam moves each number by itself."""
        code = self.start.repeat(len(tile), 1, 1, 1).requires_grad_(True)
        optimizer = Adam([code], lr=SEARCH_RATE)
        for _ in range(self.steps):
            image = self.generator(code)
            found = anomaly(tile, image, features, self.discriminator(image).features).sum()
            (code.grad,) = torch.autograd.grad(found, code)
            optimizer.step()
        return code.detach()


class Anogan(Dcgan):
    """DCGAN's two networks, both deployed."""

    @classmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> Anogan:
        return cls(size, channels, width, latent)

    def deployed(self) -> Search:
        return Search(self.generator, self.discriminator, self._latent)

    def selection_loss(self, judge: nn.Module, tiles: Tensor) -> float:
        """The last weights: to look for the codes of all validation tiles takes longer than to learn."""
        return 1.0 - self.used
