"""Centres among the codes of an autoencoder: what ``dec`` and ``dcn`` share (before hop 1).

In the first half of the budget an autoencoder learns to draw, as ``ae`` does, and its latest codes are remembered. Then
k-means places centres among them, and codes and centres learn together, each model by its own loss. A tile is judged by
how far its code lies from the nearest centre as well.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.models.adversarial import Late, update
from training.models.ae import Ae, Encoder, Judge
from training.models.base import Backward
from training.models.ganomaly import Decoder
from training.models.kmeans import kmeans
from training.models.losses import half_square
from training.world import everyones

CLUSTERS = 10  # of both papers, and more than one product has kinds of good tiles: those too many do no harm
GATHER_FROM = 0.5  # share of the budget after which codes are gathered, with the encoder at rest
CLUSTER_FROM = 0.55  # share after which there are centres at the latest; averages catch up by 0.8
REMEMBERED = 512  # codes: with that many there are centres at once


class Centres(nn.Module):
    """Where the centres are; deployed with the judge.

    What the loop averages is how far they have moved since they were placed: an average of where they are would hold
    the time before there were any.
    """

    placed: Tensor
    spread: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.moved = nn.Parameter(torch.zeros(CLUSTERS, latent))
        self.register_buffer("placed", torch.zeros(CLUSTERS, latent))
        self.register_buffer("spread", torch.ones(()))

    def now(self) -> Tensor:
        """The centres, [K, L]."""
        return self.placed + self.moved

    def place(self, codes: Tensor) -> Tensor:
        """Place the centres among codes [M, L]; returns how many are nearest to each, [K].

        Distances count in the codes' spread about them from here on, whatever the scale and the length of a code.
        """
        self.placed.copy_(kmeans(codes, CLUSTERS))
        self.moved.zero_()
        self.spread.fill_(1.0)
        distance, nearest = self(codes).min(dim=1)
        spread = distance.mean().sqrt()
        self.spread.copy_(torch.where(spread > 0, spread, 1.0))
        return torch.bincount(nearest, minlength=CLUSTERS)

    def forward(self, code: Tensor) -> Tensor:
        """Square distances [N, K] of codes [N, L, ...] from the centres; 1 = as far as usual when they were placed."""
        apart = (code.flatten(1).unsqueeze(1) - self.now()) / self.spread
        return apart.square().mean(dim=2)


class Clusters(nn.Module):
    """The centres, and what is needed to place and to move them: only the former is deployed."""

    memory: Tensor
    seen: Tensor
    given: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.centres = Centres(latent)
        # Saved, so that a resumed run goes on.
        self.register_buffer("memory", torch.zeros(REMEMBERED, latent))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("given", torch.zeros(CLUSTERS))  # how many tiles each centre has been given

    def forward(self, code: Tensor) -> Tensor:
        distances: Tensor = self.centres(code)
        return distances

    @property
    def placed(self) -> bool:
        """Whether there are centres."""
        return bool(self.given.any())

    @torch.no_grad()
    def remember(self, code: Tensor) -> None:
        """Keep codes [N, L, 1, 1] while there is room; those of all processes, so that all have the same."""
        room = self.memory[int(self.seen) :]
        codes = everyones(code.flatten(1))[: len(room)]
        room[: len(codes)] = codes
        self.seen += len(codes)

    @property
    def full(self) -> bool:
        """Whether enough codes are remembered."""
        return int(self.seen) == len(self.memory)

    @torch.no_grad()
    def place(self) -> None:
        """Place the centres among the codes that are remembered."""
        known = self.memory[: int(self.seen)]
        known = known[known[:, 0].argsort()]  # several processes bring them in another order than one
        self.given.copy_(self.centres.place(known))


class ClusterJudge(Judge):
    """The deployed half, and the square distance of a tile's code from the nearest centre."""

    def __init__(self, encoder: Encoder, decoder: Decoder, centres: Centres) -> None:
        super().__init__(encoder, decoder)
        self.centres = centres

    def compare(self, code: Tensor, recode: Tensor) -> dict[str, Tensor]:
        return {**super().compare(code, recode), "cluster": self.centres(code).amin(dim=1)}


class Clustered(Late, Ae):
    """Encoder, decoder and centres: drawing alone at first, then what the model makes of the centres."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__(size, channels, width, latent)
        self.clusters = Clusters(latent)

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        self.used = share
        if not self.clusters.placed:
            if share < GATHER_FROM:
                return self.drawing_step(batch, optimizers, backward)
            losses = self.gathering_step(batch, optimizers["decoder"], backward)
            if share < CLUSTER_FROM and not self.clusters.full:
                return losses
            self.clusters.place()
        return self.clustering_step(batch, optimizers, backward)

    def drawing_step(self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward) -> dict[str, Tensor]:
        """Update encoder and decoder on how unlike the drawing is."""
        loss = self.unlike(self.encoder(batch).code, batch)
        update(loss, backward, optimizers["encoder"], optimizers["decoder"])
        return {"likeness": loss.detach()}

    def gathering_step(self, batch: Tensor, optimizer: Optimizer, backward: Backward) -> dict[str, Tensor]:
        """Remember the codes and update the decoder alone: codes of different weights would group by their age."""
        with torch.no_grad():
            code = self.encoder(batch).code
        self.clusters.remember(code)
        loss = self.unlike(code, batch)
        update(loss, backward, optimizer)
        return {"likeness": loss.detach()}

    @abstractmethod
    def clustering_step(self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward) -> dict[str, Tensor]:
        """Update codes, centres and decoder; returns detached scalar losses."""

    def unlike(self, code: Tensor, batch: Tensor) -> Tensor:
        """Sum of the square differences between a tile and what is drawn of its code, mean over the tiles."""
        return 2.0 * half_square(self.decoder(code), batch).mean()

    def deployed(self) -> ClusterJudge:
        return ClusterJudge(self.encoder, self.decoder, self.clusters.centres)
