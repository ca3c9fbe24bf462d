"""Convolutional autoencoder (Hinton and Salakhutdinov 2006; on images of parts: arXiv 1807.02011) (before hop 1).

A tile is coded in few numbers and drawn again from them, with the least squared difference. Its networks and its judge
are those of the whole family: what ``dae``, ``vae``, ``aae`` and ``vae_gan`` change is said in each of them.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from training.models.adversarial import update
from training.models.base import Backward, Deployed, Judgement, Trainable
from training.models.ganomaly import Decoder, Stem, initialise, pyramid
from training.models.losses import deviation, mean_square


class Coded(NamedTuple):
    """One pass of an encoder: features [N, K, h, w] of its last halving stage and the code [N, latent, 1, 1]."""

    features: Tensor
    code: Tensor


class Encoder(nn.Module):
    """Tile [N, C, H, W] -> code, and what was seen on the way."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        stages, side = pyramid(size, width)
        self.stem = Stem(size, channels, width)
        self.head = nn.Conv2d(stages[-1], latent, side, 1, 0, bias=False)

    def forward(self, tile: Tensor) -> Coded:
        features = self.stem(tile)
        return Coded(features, self.head(features))


class Judge(Deployed):
    """The deployed half: the drawing, and how differently the encoder sees tile and drawing."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, tile: Tensor) -> Judgement:
        seen: Coded = self.encoder(tile)
        image = self.decoder(self.point(seen.code))
        again: Coded = self.encoder(image)
        scores = {"hidden": mean_square(seen.features, again.features), **self.compare(seen.code, again.code)}
        return Judgement(image, deviation(tile, image), scores)

    def measured(self, tile: Tensor) -> None:
        """Training shows the encoder no drawing."""
        self.draw(tile)

    def draw(self, tile: Tensor) -> Tensor:
        """The tile as training draws it, [N, C, H, W]."""
        drawn: Tensor = self.decoder(self.encoder(tile).code)
        return drawn

    def point(self, code: Tensor) -> Tensor:
        """The code that the drawing is made from, [N, latent, 1, 1]; nothing random."""
        return code

    def compare(self, code: Tensor, recode: Tensor) -> dict[str, Tensor]:
        """The scores, [N], that rest on the codes of tile and drawing."""
        return {"latent": mean_square(code, recode)}


class Ae(Trainable):
    """Encoder and decoder, trained as one."""

    codes = 1  # numbers that the encoder gives for each one of the code

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = Encoder(size, channels, width, self.codes * latent)
        self.decoder = Decoder(size, channels, width, latent)
        self.apply(initialise)

    @classmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> Self:
        return cls(size, channels, width, latent)

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            shown = self.shown(batch)
        loss = F.mse_loss(self.decoder(self.encoder(shown).code), batch)
        update(loss, backward, optimizers["encoder"], optimizers["decoder"])
        return {"contextual": loss.detach()}

    def deployed(self) -> Judge:
        return Judge(self.encoder, self.decoder)
