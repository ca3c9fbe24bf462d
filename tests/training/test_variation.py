"""Varied good tiles: still tiles, each its own, repeated by the seed."""

from __future__ import annotations

import torch

from training.variation import vary


def _tiles(channels: int = 1) -> torch.Tensor:
    ramp = torch.linspace(-0.9, 0.9, 64)
    return (ramp.view(1, 1, 1, -1) * torch.ones(8, channels, 64, 1)).contiguous()


def test_a_varied_tile_stays_within_the_levels_of_its_own() -> None:
    torch.manual_seed(0)
    for channels in (1, 3):
        varied = vary(_tiles(channels))
        assert varied.shape == (8, channels, 64, 64)
        assert float(varied.abs().max()) <= 0.9 + 1e-5


def test_each_tile_is_varied_by_itself_and_the_seed_repeats_it() -> None:
    torch.manual_seed(1)
    first = vary(_tiles())
    assert not torch.allclose(first[0], first[1], atol=0.01)
    torch.manual_seed(1)
    assert torch.equal(vary(_tiles()), first)


def test_windows_look_closer_and_never_beyond_the_tile_and_most_keep_a_border() -> None:
    torch.manual_seed(2)
    varied = torch.cat([vary(_tiles()) for _ in range(40)])[:, 0, 32]
    own = 1.8 / 63
    steps = varied.diff(dim=1)
    assert float(steps.min()) > -1e-6  # nothing mirrored comes in
    slopes = steps.median(dim=1).values
    assert float(slopes.max()) < 1.01 * own
    assert float(slopes.min()) < 0.8 * own
    left, right = (varied[:, 0] < -0.87), (varied[:, -1] > 0.87)
    assert float((left | right).float().mean()) > 0.7


def test_without_variety_tiles_stay_where_they_are() -> None:
    torch.manual_seed(3)
    torch.testing.assert_close(vary(_tiles(), variety=0.0), _tiles(), rtol=0, atol=1e-5)
