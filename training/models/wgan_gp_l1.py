"""The autoencoder against a Wasserstein critic with gradient penalty, and |x - x_hat| beside it (before hop 1).

The critic keeps drawings sharp that a distance alone would blur: WGAN-GP, arXiv 1704.00028, with the L1 distance as
pix2pix has it, arXiv 1611.07004.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from training.models.adversarial import criticised, frozen, update
from training.models.ae import Ae
from training.models.base import Backward
from training.models.f_anogan import BETAS, Critic, critic_step
from training.models.f_anogan import initialise as initialise_critic

WEIGHT_CONTEXTUAL = 50.0  # GANomaly's


class WganGpL1(Ae):
    """Encoder and decoder, which are one player, and the critic."""

    betas = BETAS

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__(size, channels, width, latent)
        self.critic = Critic(size, channels, width).apply(initialise_critic)

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            drawn = self.decoder(self.encoder(batch).code)
        losses = critic_step(self.critic, batch, drawn, optimizers["critic"], backward)
        if self.critic.is_ahead():
            losses |= self.generator_step(batch, (optimizers["encoder"], optimizers["decoder"]), backward)
        return losses

    def generator_step(self, batch: Tensor, optimizers: tuple[Optimizer, ...], backward: Backward) -> dict[str, Tensor]:
        """Update encoder and decoder; the critic is frozen."""
        with frozen(self.critic):
            image = self.decoder(self.encoder(batch).code)
            contextual, adversarial = F.l1_loss(image, batch), criticised(self.critic(image).verdicts)
            update(adversarial + WEIGHT_CONTEXTUAL * contextual, backward, *optimizers)
        return {"contextual": contextual.detach(), "adversarial": adversarial.detach()}
