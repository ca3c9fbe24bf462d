"""Deep Clustering Network (Yang and others 2017, arXiv 1610.04794): k-means and drawing as one loss (before hop 1).

Encoder and decoder learn to draw the tile and to have its code near its centre; a centre is the mean of all codes that
were ever given to it.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim import SGD, Optimizer

from training.models.adversarial import update
from training.models.base import Backward
from training.models.clusters import CLUSTERS, Clustered
from training.models.losses import half_square
from training.world import everyones

WEIGHT = 0.05  # lambda of the paper, as for its digits


class Dcn(Clustered):
    """An autoencoder whose codes are kept near centres that follow them."""

    def optimizers(self, learning_rate: float) -> dict[str, Optimizer]:
        return {**super().optimizers(learning_rate), "clusters": SGD(self.clusters.parameters(), lr=1.0)}

    def clustering_step(self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward) -> dict[str, Tensor]:
        """Update encoder and decoder on drawing and distance from the centres as they are, then the centres."""
        code = self.encoder(batch).code
        nearest = self.clusters(code).argmin(dim=1)
        likeness = self.unlike(code, batch)
        distance = half_square(code.flatten(1), self.clusters.centres.now().detach()[nearest]).mean()
        update(likeness + WEIGHT * distance, backward, optimizers["encoder"], optimizers["decoder"])
        self.follow(everyones(code.detach().flatten(1)), everyones(nearest), optimizers["clusters"], backward)
        return {"likeness": likeness.detach(), "distance": distance.detach()}

    def follow(self, codes: Tensor, nearest: Tensor, optimizer: Optimizer, backward: Backward) -> None:
        """Move centres to the codes [N, L] whose ``nearest`` [N] they are: a step of 1 / (how many it was given)."""
        given = self.clusters.given
        given += nearest.bincount(minlength=CLUSTERS)
        loss = (half_square(codes, self.clusters.centres.now()[nearest]) / given[nearest]).sum()
        update(loss, backward, optimizer)
