"""The module that becomes the one ONNX graph: uint8 tiles in, score, map and reconstruction out (hop 4).

    uint8 NHWC -> cast, transpose, scale -> network -> smooth -> divide by what is typical there -> border mask
               -> map -> mean of the k highest values -> score

Everything an engine could compute differently is inside, every value belongs to one image alone, and nothing is
normalised over a set of images: thresholds are calibrated later, on raw scores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.data import scale
from training.models.base import RESIDUAL, Pooling

MAX_TOP_K = 3840  # TensorRT's limit
TYPICAL_DEVIATIONS = 2.0
TYPICAL_FLOOR = 0.25
LEAST_TYPICAL = 1.0 / 255.0
CHUNK = 64


class Inspection(NamedTuple):
    """Outputs of the graph: ``score`` float32 [N], ``map`` float32 [N, H, W], ``reconstruction`` uint8 [N, H, W, C]."""

    score: Tensor
    map: Tensor
    reconstruction: Tensor


def gaussian(sigma_px: float) -> Tensor:
    """Normalised Gaussian weights, float32 [2 r + 1] with r = 3 sigma rounded up."""
    radius = max(1, int(3 * sigma_px + 0.999))
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (at / sigma_px) ** 2)
    return (weights / weights.sum()).float()


def top_k(size: int, share: float) -> int:
    """How many map values make the score."""
    return max(8, min(MAX_TOP_K, round(share * size * size)))


class Inspector(nn.Module):
    """A judging network with the steps before and after it; ``typical`` is learnt from good tiles."""

    kernel: Tensor
    mask: Tensor
    typical: Tensor

    def __init__(self, judge: nn.Module, size: int, score: str, pooling: Pooling = RESIDUAL) -> None:
        super().__init__()
        self.judge = judge
        self._score = score
        self._by_place = pooling.by_place
        self._k = top_k(size, pooling.top_share)
        weights = gaussian(pooling.smoothing_px.get(size, size / 85.0))
        self._radius = len(weights) // 2
        border = max(1, size // 64)
        inner = torch.zeros(size, size)
        inner[border:-border, border:-border] = 1.0
        self.register_buffer("kernel", weights)
        self.register_buffer("mask", inner)
        self.register_buffer("typical", torch.ones(size, size))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``image``: uint8 [N, H, W, C] -> score, map, reconstruction as in ``Inspection``."""
        judged = self.judge(scale(image))
        deviation = self._smooth(judged.deviation).squeeze(1) / self.typical * self.mask
        if self._score == "residual":
            score = deviation.flatten(1).topk(self._k, dim=1).values.mean(dim=1)
        else:
            score = judged.scores[self._score]
        # Transpose before the cast: TensorRT refuses to transpose uint8.
        levels = ((judged.image + 1.0) * 127.5).round().clamp(0.0, 255.0)
        return score, deviation, levels.permute(0, 2, 3, 1).to(torch.uint8)

    def _smooth(self, deviation: Tensor) -> Tensor:
        """Separable Gaussian with mirrored edges: [N, 1, H, W] -> [N, 1, H, W]."""
        r = self._radius
        padded = F.pad(deviation, (r, r, r, r), mode="reflect")
        across = F.conv2d(padded, self.kernel.view(1, 1, 1, -1))
        return F.conv2d(across, self.kernel.view(1, 1, -1, 1))

    @torch.no_grad()
    def learn_typical(self, tiles: Tensor) -> None:
        """Set ``typical`` from good uint8 tiles [M, H, W, C]: mean + 2 standard deviations of the smoothed deviation.

        Edges that are never drawn well deviate on every good part; dividing by what is typical at each place keeps
        them from drowning a defect elsewhere. A floor keeps a few quiet pixels from becoming over-sensitive.
        Nothing is learnt where the model's own map is to stand as it is.
        """
        if not self._by_place:
            return
        total = torch.zeros_like(self.typical, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for part in torch.split(tiles, CHUNK):
            deviation = self._smooth(self.judge(scale(part)).deviation)[:, 0].double()
            total += deviation.sum(dim=0)
            squares += deviation.square().sum(dim=0)
        mean = total / len(tiles)
        spread = (squares / len(tiles) - mean.square()).clamp_(min=0.0).sqrt_()
        level = (mean + TYPICAL_DEVIATIONS * spread).float()
        # Smoothed, since the statistics of one pixel rest on few images.
        level = self._smooth(level[None, None])[0, 0]
        self.typical.copy_(level.clamp(min=max(LEAST_TYPICAL, TYPICAL_FLOOR * float(level.mean()))))

    @torch.no_grad()
    def inspect(self, tiles: Tensor) -> Inspection:
        """Outputs for uint8 tiles [M, H, W, C], computed in chunks."""
        parts = [self(part) for part in torch.split(tiles, CHUNK)]
        return Inspection(*(torch.cat(column) for column in zip(*parts, strict=True)))
