"""Deep Embedded Clustering (Xie and others 2016, arXiv 1511.06335): codes drawn to their centres (before hop 1).

Every tile belongs to every centre by a share that falls with the distance of its code. Codes and centres learn to make
the larger shares larger. The decoder, which is put away in the paper, goes on learning to draw from those codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from training.models.adversarial import update
from training.models.base import Backward
from training.models.clusters import Clustered
from training.world import everyones

FORGOTTEN = 0.01  # of what each centre has been given, at each step: codes move, and so do the shares


def shares(distances: Tensor) -> Tensor:
    """q of the paper, [N, K], of square distances: Student's t with one degree of freedom, of sum 1 for each tile."""
    near = 1.0 / (1.0 + distances)
    return near / near.sum(dim=1, keepdim=True)


def target(q: Tensor, given: Tensor) -> Tensor:
    """p of the paper, [N, K]: the shares squared, each over what its centre is given, [K], of sum 1 for each tile."""
    sharper = q.square() / given
    return sharper / sharper.sum(dim=1, keepdim=True)


class Dec(Clustered):
    """An autoencoder whose encoder, once there are centres, learns by the divergence of shares and target alone."""

    def clustering_step(self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward) -> dict[str, Tensor]:
        """Update encoder and centres on KL(P || Q), and the decoder on its drawing, which moves no code."""
        code = self.encoder(batch).code
        q = shares(self.clusters(code))
        with torch.no_grad():
            self.clusters.given.mul_(1.0 - FORGOTTEN).add_(everyones(q).sum(dim=0))
            p = target(q, self.clusters.given)
        divergence = F.kl_div(q.log(), p, reduction="batchmean")
        likeness = self.unlike(code.detach(), batch)
        update(divergence + likeness, backward, *optimizers.values())
        return {"divergence": divergence.detach(), "likeness": likeness.detach()}
