"""Good tiles as other good parts could look: zoomed, turned a little, moved (before hop 1).

A few dozen parts show a few dozen surfaces. Varied ones keep the discriminator from learning by heart which marks
these very parts bear; of all that was tried against that, this helped most.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ZOOM = 0.2  # logarithm of the factor, either way, each axis by itself
TURN = 0.07  # radians, either way
MOVE = 0.03  # of the side, beyond what a zoomed-in window can move anyway


def vary(tiles: Tensor) -> Tensor:
    """Each of ``tiles``, float32 [N, C, H, W], seen through a window of its own; what lies outside is mirrored."""
    count, device = len(tiles), tiles.device
    zoom = torch.exp(_either_way(count, 2) * ZOOM)
    turn = _either_way(count) * TURN
    window = torch.zeros(count, 2, 3)
    window[:, 0, 0], window[:, 0, 1] = zoom[:, 0] * turn.cos(), -zoom[:, 1] * turn.sin()
    window[:, 1, 0], window[:, 1, 1] = zoom[:, 0] * turn.sin(), zoom[:, 1] * turn.cos()
    window[:, :, 2] = _either_way(count, 2) * ((1.0 - zoom).clamp(min=0.0) + 2 * MOVE)
    grid = F.affine_grid(window.to(device), list(tiles.shape), align_corners=False)
    return F.grid_sample(tiles, grid, mode="bilinear", padding_mode="reflection", align_corners=False).clamp(-1.0, 1.0)


def _either_way(*shape: int) -> Tensor:
    return 2.0 * torch.rand(*shape) - 1.0
