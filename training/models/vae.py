"""Variational autoencoder (Kingma and Welling, arXiv 1312.6114; as a score: An and Cho 2015) (before hop 1).

The encoder gives a normal distribution of codes for each tile, the decoder draws from a code that is sampled from it,
and the distributions are kept near N(0, I). Deployed, the code is the distribution's mean: the graph draws no lots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.models.adversarial import update
from training.models.ae import Ae, Judge
from training.models.base import Backward
from training.models.losses import divergence, half_square


class Posterior(NamedTuple):
    """Mean and log variance of the codes of a tile, each [N, latent, 1, 1]."""

    mean: Tensor
    log_variance: Tensor

    def sample(self) -> Tensor:
        """A code for each tile, through which gradients flow to both."""
        return self.mean + (0.5 * self.log_variance).exp() * torch.randn_like(self.mean)


def posterior(code: Tensor) -> Posterior:
    """What an encoder says in 2 * latent numbers, [N, 2 * latent, 1, 1]."""
    return Posterior(*code.chunk(2, dim=1))


class VaeJudge(Judge):
    """The deployed half, at the mean; a tile's distance in codes is that of its distribution from N(0, I)."""

    def draw(self, tile: Tensor) -> Tensor:
        """Training draws from a sample, not from the mean."""
        drawn: Tensor = self.decoder(posterior(self.encoder(tile).code).sample())
        return drawn

    def point(self, code: Tensor) -> Tensor:
        return posterior(code).mean

    def compare(self, code: Tensor, recode: Tensor) -> dict[str, Tensor]:
        return {"latent": divergence(*posterior(code))}


class Vae(Ae):
    """Encoder and decoder, trained for the evidence lower bound with one sample a tile."""

    codes = 2

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        codes = posterior(self.encoder(batch).code)
        likeness = half_square(self.decoder(codes.sample()), batch).mean()
        prior = divergence(*codes).mean()
        update(likeness + prior, backward, optimizers["encoder"], optimizers["decoder"])
        return {"likeness": likeness.detach(), "prior": prior.detach()}

    def deployed(self) -> VaeJudge:
        return VaeJudge(self.encoder, self.decoder)
