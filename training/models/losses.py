"""Distances of each image by itself, as losses and as scores; the game's are in ``adversarial`` (before hop 1)."""

from __future__ import annotations

from torch import Tensor


def deviation(tile: Tensor, image: Tensor) -> Tensor:
    """What a judge gives as such: absolute difference of [N, C, H, W], its mean over the channels, [N, 1, H, W]."""
    return (tile - image).abs().mean(dim=1, keepdim=True)


def mean_square(one: Tensor, other: Tensor) -> Tensor:
    """Mean square difference of each image by itself, [N], of pixels, features or codes."""
    return (one - other).square().flatten(1).mean(dim=1)


def city_block(one: Tensor, other: Tensor) -> Tensor:
    """Sum of absolute differences of each image, [N]: their L1 norm."""
    return (one - other).abs().flatten(1).sum(dim=1)


def half_square(one: Tensor, other: Tensor) -> Tensor:
    """Half the sum of square differences of each image, [N]: -log N(one; other, I) less its constant."""
    return 0.5 * (one - other).square().flatten(1).sum(dim=1)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, variance) from N(0, I) for each image, [N]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).flatten(1).sum(dim=1)
