"""Good tiles as other good parts could look: seen closer, turned a little, moved (before hop 1).

A few dozen parts show a few dozen surfaces. Varied ones keep the discriminator from learning by heart which marks
these very parts bear.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CLOSER = 0.3  # logarithm of the greatest factor, each axis by itself
TURN = 0.04  # radians, either way
KEPT_SHARE = 0.7  # of the windows keep a border of the tile, on each axis


def vary(tiles: Tensor, variety: float = 1.0) -> Tensor:
    """Each of ``tiles``, float32 [N, C, H, W], seen through a window of its own.

    ``variety``: 0 to 1, as ``training.augment`` measures it: where everything has its place on a part, moving it about
    would hide that something is missing.

    Windows stay within the tile but for the turn: content mirrored in from beyond the border taught that anything may
    be there, and chips at the border were missed.
    """
    count, device = len(tiles), tiles.device
    zoom = torch.exp(-torch.rand(count, 2) * CLOSER * variety)
    turn = _either_way(count) * TURN * variety
    window = torch.zeros(count, 2, 3)
    window[:, 0, 0], window[:, 0, 1] = zoom[:, 0] * turn.cos(), -zoom[:, 1] * turn.sin()
    window[:, 1, 0], window[:, 1, 1] = zoom[:, 0] * turn.sin(), zoom[:, 1] * turn.cos()
    where = _either_way(count, 2)
    where = torch.where(torch.rand(count, 2) < KEPT_SHARE, where.sign(), where)
    window[:, :, 2] = where * (1.0 - zoom)
    grid = F.affine_grid(window.to(device), list(tiles.shape), align_corners=False)
    return F.grid_sample(tiles, grid, mode="bilinear", padding_mode="reflection", align_corners=False).clamp(-1.0, 1.0)


def _either_way(*shape: int) -> Tensor:
    return 2.0 * torch.rand(*shape) - 1.0
