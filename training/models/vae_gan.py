"""VAE/GAN (Larsen and others, arXiv 1512.09300): likeness as a discriminator sees it (before hop 1).

A variational autoencoder whose decoder is the generator of a GAN. Tile and drawing are compared by the discriminator's
features instead of their pixels; drawings of tiles and of new codes have to pass for tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer, RMSprop

from training.models.adversarial import as_real, cross_entropy, frozen, unlikely, update
from training.models.ae import Encoder
from training.models.base import Backward, Judgement
from training.models.ganomaly import Criticism, Decoder, Discriminator, initialise
from training.models.losses import divergence, half_square, mean_square
from training.models.vae import Posterior, Vae, VaeJudge, posterior

GAMMA = 1e-2  # weight of likeness against deceiving, of the decoder


class VaeGanJudge(VaeJudge):
    """The deployed half, and what the discriminator says of the tile and of the drawing beside it."""

    def __init__(self, encoder: Encoder, decoder: Decoder, discriminator: Discriminator) -> None:
        super().__init__(encoder, decoder)
        self.discriminator = discriminator

    def forward(self, tile: Tensor) -> Judgement:
        judged = super().forward(tile)
        real: Criticism = self.discriminator(tile)
        drawn: Criticism = self.discriminator(judged.image)
        judged.scores["features"] = mean_square(real.features, drawn.features)
        judged.scores["discriminator"] = unlikely(real.logits)
        return judged

    def measured(self, tile: Tensor) -> None:
        """Training shows the discriminator tiles and drawings."""
        self.discriminator(tile)
        self.discriminator(self.draw(tile))


class VaeGan(Vae):
    """Encoder, decoder and discriminator, each with a loss of its own."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__(size, channels, width, latent)
        self.discriminator = Discriminator(size, channels, width).apply(initialise)

    def optimizers(self, learning_rate: float) -> dict[str, Optimizer]:
        return {
            name: RMSprop(network.parameters(), lr=learning_rate, alpha=0.9)
            for name, network in self.networks().items()
        }

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        codes, encoder = self.encoder_step(batch, optimizers["encoder"], backward)
        drawn, decoder = self.decoder_step(batch, codes.sample(), optimizers["decoder"], backward)
        loss = self.discriminator_step(batch, drawn, optimizers["discriminator"], backward)
        return {**encoder, **decoder, "discriminator": loss}

    def encoder_step(
        self, batch: Tensor, optimizer: Optimizer, backward: Backward
    ) -> tuple[Posterior, dict[str, Tensor]]:
        """Update the encoder on prior and likeness; returns the detached distributions of codes."""
        with frozen(self.decoder, self.discriminator):
            codes = posterior(self.encoder(batch).code)
            prior = divergence(*codes).mean()
            likeness = self.likeness(batch, self.discriminator(self.decoder(codes.sample())))
            update(prior + likeness, backward, optimizer)
        return Posterior(*(part.detach() for part in codes)), {"prior": prior.detach(), "likeness": likeness.detach()}

    def decoder_step(
        self, batch: Tensor, code: Tensor, optimizer: Optimizer, backward: Backward
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Update the decoder on likeness and deceiving; returns its detached drawings of tiles and of new codes."""
        with frozen(self.discriminator):
            image, invented = self.decoder(code), self.decoder(torch.randn_like(code))
            seen: Criticism = self.discriminator(image)
            deceiving = as_real(torch.cat([seen.logits, self.discriminator(invented).logits]))
            update(GAMMA * self.likeness(batch, seen) + deceiving, backward, optimizer)
        return torch.cat([image, invented]).detach(), {"decoder": deceiving.detach()}

    def discriminator_step(self, real: Tensor, drawn: Tensor, optimizer: Optimizer, backward: Backward) -> Tensor:
        """Update the discriminator on tiles and on both kinds of drawings, which count as much together."""
        loss = cross_entropy(self.discriminator(real).logits, self.discriminator(drawn).logits)
        update(loss, backward, optimizer)
        return loss.detach()

    def likeness(self, batch: Tensor, drawn: Criticism) -> Tensor:
        """Mean over the tiles of half the square differences of features."""
        with torch.no_grad():
            real: Criticism = self.discriminator(batch)
        return half_square(drawn.features, real.features).mean()

    def deployed(self) -> VaeGanJudge:
        return VaeGanJudge(self.encoder, self.decoder, self.discriminator)
