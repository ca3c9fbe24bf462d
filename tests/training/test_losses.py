"""Losses and distances that models share, against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.models.losses import city_block, deviation, divergence, half_square, mean_square

ONE = torch.tensor([[[[0.5, -0.5]], [[0.0, 1.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])  # two images, two channels, 1 x 2
OTHER = torch.tensor([[[[0.0, 0.5]], [[0.0, 0.5]]], [[[0.0, 0.0]], [[0.0, 2.0]]]])


def column(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_a_deviation_is_the_mean_over_the_channels() -> None:
    assert torch.equal(deviation(ONE, OTHER), torch.tensor([[[[0.25, 0.75]]], [[[0.0, 1.0]]]]))


def test_each_image_has_its_own_square_difference() -> None:
    assert mean_square(ONE, OTHER).tolist() == [(0.25 + 1.0 + 0.25) / 4, 4.0 / 4]
    assert half_square(ONE, OTHER).tolist() == [(0.25 + 1.0 + 0.25) / 2, 4.0 / 2]


def test_a_city_block_is_the_sum_of_absolute_differences() -> None:
    assert city_block(ONE, OTHER).tolist() == [0.5 + 1.0 + 0.0 + 0.5, 2.0]


def test_half_square_is_the_normal_density_less_its_constant() -> None:
    normal = torch.distributions.Normal(OTHER[0].flatten(), 1.0)
    expected = -normal.log_prob(ONE[0].flatten()).sum() - 4 * 0.5 * math.log(2 * math.pi)
    assert float(half_square(ONE, OTHER)[0]) == pytest.approx(float(expected), rel=1e-6)


def test_the_divergence_by_hand_and_by_torch() -> None:
    assert float(divergence(column(0.0), column(0.0))) == 0.0
    # mean 2 and variance 4: (4 + 4 - 1 - log 4) / 2
    assert float(divergence(column(2.0), column(math.log(4.0)))) == pytest.approx(0.5 * (7.0 - math.log(4.0)))
    mean, log_variance = torch.randn(3, 5, 1, 1), torch.randn(3, 5, 1, 1)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(divergence(mean, log_variance), expected)
