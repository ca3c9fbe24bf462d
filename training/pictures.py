"""Tiles as a person wants to see them: beside what was drawn in their place and where they deviate (before hop 1)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data import scale
from training.models.base import EVAL_BATCH, Judgement

GAP_PX = 4
PAPER = 255


@torch.no_grad()
def judge_tiles(judge: nn.Module, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """What a judge in evaluation mode says of uint8 tiles [M, H, W, C].

    Returns the drawings, uint8 [M, H, W, C], and the deviations, float32 [M, H, W], on the CPU.
    """
    device = next(judge.parameters()).device
    drawings, deviations = [], []
    for part in torch.split(tiles, EVAL_BATCH):
        judged: Judgement = judge(scale(part.to(device)))
        levels = ((judged.image + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        drawings.append(levels.permute(0, 2, 3, 1).cpu())
        deviations.append(judged.deviation[:, 0].float().cpu())
    return torch.cat(drawings), torch.cat(deviations)


def strip(tile: Tensor, drawing: Tensor, deviation: Tensor, top: float) -> NDArray[np.uint8]:
    """Tile, drawing and map side by side, uint8 RGB [H, 3 W + 2 gaps, 3]; ``top`` is the map's brightest value.

    ``tile`` and ``drawing`` are uint8 [H, W, C], ``deviation`` float32 [H, W].
    """
    heat = (deviation / max(top, 1e-12)).clamp(0, 1).mul(255).to(torch.uint8).numpy()
    coloured = cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    gap = np.full((len(tile), GAP_PX, 3), PAPER, np.uint8)
    shown = [_rgb(tile), gap, _rgb(drawing), gap, np.asarray(coloured, np.uint8)]
    return np.concatenate(shown, axis=1)


def _rgb(tile: Tensor) -> NDArray[np.uint8]:
    shown: NDArray[np.uint8] = tile.expand(-1, -1, 3).numpy()
    return shown


def png(picture: NDArray[np.uint8]) -> bytes:
    """An RGB picture [H, W, 3] as a PNG file."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise ValueError(f"a picture of {picture.shape} cannot be written as PNG")
    return data.tobytes()
