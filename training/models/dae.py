"""Denoising autoencoder (Vincent and others 2008 and 2010): a quarter hidden and noise on the rest (before hop 1).

What it is shown is damaged, what it has to draw is not: copying no longer pays, and a defect is one more damage.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from training.models.ae import Ae

HIDDEN_SHARE = 0.25  # of a tile
CELLS = 8  # a side: what is hidden, is hidden in squares, since single pixels could be guessed from their neighbours
NOISE = 0.1  # standard deviation, in [-1, 1]


def damage(tiles: Tensor) -> Tensor:
    """``tiles`` [N, C, H, W] with noise on every pixel and squares of mid-grey at random places of each."""
    noisy = tiles + NOISE * torch.randn_like(tiles)
    cells = torch.rand((len(tiles), 1, CELLS, CELLS), device=tiles.device) >= HIDDEN_SHARE
    return noisy * F.interpolate(cells.to(tiles.dtype), size=tiles.shape[2:], mode="nearest")


class Dae(Ae):
    """An autoencoder that learns from damaged tiles and judges whole ones."""

    def shown(self, tiles: Tensor) -> Tensor:
        return damage(tiles)
