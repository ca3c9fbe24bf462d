"""The denoising autoencoder: what is damaged, what is drawn, and that nothing is damaged once it judges."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.training.stepping import all_weights, backward, changed, noise
from training.models.dae import CELLS, HIDDEN_SHARE, NOISE, Dae, damage


@pytest.fixture
def model() -> Dae:
    torch.manual_seed(0)
    return Dae(64, 1, 4, 8).train()


def test_a_quarter_is_hidden_in_squares_at_other_places_in_each_tile() -> None:
    torch.manual_seed(0)
    damaged = damage(torch.ones(64, 3, 64, 64))
    hidden = damaged == 0.0
    assert torch.equal(hidden[:, :1].expand_as(hidden), hidden)  # in all channels
    side = 64 // CELLS
    share = F.avg_pool2d(hidden[:, :1].float(), side)
    assert set(share.flatten().tolist()) == {0.0, 1.0}
    assert float(share.mean()) == pytest.approx(HIDDEN_SHARE, abs=0.02)
    assert len({tuple(cells.flatten().tolist()) for cells in share}) == 64
    seen = damaged[~hidden]
    assert float(seen.mean()) == pytest.approx(1.0, abs=0.002)
    assert float(seen.std()) == pytest.approx(NOISE, rel=0.01)


def test_what_has_to_be_drawn_is_the_tile_as_it_was(model: Dae) -> None:
    batch = noise(4)
    with torch.no_grad():
        torch.manual_seed(5)
        image = model.decoder(model.encoder(damage(batch)).code)
    torch.manual_seed(5)
    before = all_weights(model.networks())
    found = model.training_step(batch, model.optimizers(2e-4), backward, 0.0)
    torch.testing.assert_close(found["contextual"], (image - batch).square().mean())
    assert changed(before, model.networks()) == {"encoder", "decoder"}


def test_statistics_are_measured_on_damaged_tiles(model: Dae) -> None:
    torch.manual_seed(2)
    shown = model.shown(noise(2))
    torch.manual_seed(2)
    assert torch.equal(shown, damage(noise(2)))


def test_the_judge_damages_nothing(model: Dae) -> None:
    judge, batch = model.deployed().eval(), noise(2)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(judge(batch).image, model.decoder(model.encoder(batch).code))
    assert torch.equal(torch.get_rng_state(), state)
