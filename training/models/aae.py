"""Adversarial autoencoder (Makhzani and others, arXiv 1511.05644): codes that look like N(0, I) (before hop 1).

Each step has two phases. Encoder and decoder learn to draw the tile again; then a discriminator learns to tell the
codes of tiles from draws of N(0, I), and the encoder to deceive it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.models.adversarial import as_real, cross_entropy, frozen, unlikely, update
from training.models.ae import Ae, Encoder, Judge
from training.models.base import Backward
from training.models.ganomaly import Decoder
from training.models.losses import half_square

UNITS = 1000  # in each of the two hidden layers


class CodeDiscriminator(nn.Sequential):
    """Code [N, latent, 1, 1] -> logits [N, 1], high = drawn from N(0, I)."""

    def __init__(self, latent: int) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(latent, UNITS), nn.ReLU(), nn.Linear(UNITS, UNITS), nn.ReLU(), nn.Linear(UNITS, 1)
        )


class AaeJudge(Judge):
    """The deployed half; a code is judged by the density of N(0, I) there, and by the discriminator."""

    def __init__(self, encoder: Encoder, decoder: Decoder, discriminator: CodeDiscriminator) -> None:
        super().__init__(encoder, decoder)
        self.discriminator = discriminator

    def compare(self, code: Tensor, recode: Tensor) -> dict[str, Tensor]:
        verdict = unlikely(self.discriminator(code)).squeeze(1)
        return {"latent": half_square(code, torch.zeros_like(code)), "discriminator": verdict}


class Aae(Ae):
    """Encoder, decoder and the discriminator of codes."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__(size, channels, width, latent)
        self.discriminator = CodeDiscriminator(latent)

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        return {
            "likeness": self.drawing_step(batch, optimizers["encoder"], optimizers["decoder"], backward),
            "discriminator": self.discriminator_step(batch, optimizers["discriminator"], backward),
            "encoder": self.encoder_step(batch, optimizers["encoder"], backward),
        }

    def drawing_step(self, batch: Tensor, encoder: Optimizer, decoder: Optimizer, backward: Backward) -> Tensor:
        """Update encoder and decoder on how unlike the drawing is."""
        loss = half_square(self.decoder(self.encoder(batch).code), batch).mean()
        update(loss, backward, encoder, decoder)
        return loss.detach()

    def discriminator_step(self, batch: Tensor, optimizer: Optimizer, backward: Backward) -> Tensor:
        """Update the discriminator on draws of N(0, I) and on the codes of tiles."""
        with torch.no_grad():
            code = self.encoder(batch).code
        loss = cross_entropy(self.discriminator(torch.randn_like(code)), self.discriminator(code))
        update(loss, backward, optimizer)
        return loss.detach()

    def encoder_step(self, batch: Tensor, optimizer: Optimizer, backward: Backward) -> Tensor:
        """Update the encoder on how surely its codes are known; the discriminator is frozen."""
        with frozen(self.discriminator):
            loss = as_real(self.discriminator(self.encoder(batch).code))
            update(loss, backward, optimizer)
        return loss.detach()

    def deployed(self) -> AaeJudge:
        return AaeJudge(self.encoder, self.decoder, self.discriminator)
