"""The autoencoder: shapes, its loss and scores by hand, and what one step changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.stepping import all_weights, backward, changed, noise
from training.models.ae import Ae, Coded, Encoder
from training.models.ganomaly import MAX_CHANNELS


@pytest.fixture
def model() -> Ae:
    torch.manual_seed(0)
    return Ae(64, 1, 4, 8).train()


@pytest.mark.parametrize("size", range(64, 257, 16))
def test_every_multiple_of_sixteen_comes_back_in_its_size(size: int) -> None:
    judge = Ae(size, 3, 4, 8).deployed().eval()
    with torch.no_grad():
        judged = judge(torch.zeros(1, 3, size, size))
    assert judged.image.shape == (1, 3, size, size)
    assert max(weight.shape[0] for weight in judge.parameters()) <= MAX_CHANNELS


def test_the_code_is_short() -> None:
    seen: Coded = Encoder(64, 1, 8, 5)(torch.zeros(2, 1, 64, 64))
    assert seen.features.shape == (2, 64, 4, 4)
    assert seen.code.shape == (2, 5, 1, 1)


def test_the_loss_is_the_mean_squared_difference(model: Ae) -> None:
    batch = noise(4)
    with torch.no_grad():
        image = model.decoder(model.encoder(batch).code)
    found = model.training_step(batch, model.optimizers(2e-4), backward, 0.0)
    torch.testing.assert_close(found["contextual"], ((image - batch) ** 2).mean())


def test_a_step_brings_the_drawing_nearer_and_changes_both_networks(model: Ae) -> None:
    batch, optimizers = noise(4), model.optimizers(2e-3)
    before = all_weights(model.networks())
    losses = [float(model.training_step(batch, optimizers, backward, 0.0)["contextual"]) for _ in range(20)]
    assert changed(before, model.networks()) == {"encoder", "decoder"}
    assert losses[-1] < 0.9 * losses[0]


def test_the_scores_compare_what_the_encoder_sees_in_tile_and_drawing(model: Ae) -> None:
    judge, batch = model.deployed().eval(), noise(3)
    with torch.no_grad():
        judged = judge(batch)
        seen, again = model.encoder(batch), model.encoder(model.decoder(model.encoder(batch).code))
    for index in range(3):
        hidden = (seen.features[index] - again.features[index]).square().mean()
        latent = (seen.code[index] - again.code[index]).square().mean()
        torch.testing.assert_close(judged.scores["hidden"][index], hidden)
        torch.testing.assert_close(judged.scores["latent"][index], latent)
    torch.testing.assert_close(judged.deviation[:, 0], (batch - judged.image).abs().mean(dim=1))


def test_what_is_drawn_perfectly_has_no_score(model: Ae) -> None:
    judge = model.deployed().eval()

    class Perfect(torch.nn.Module):
        def forward(self, code: Tensor) -> Tensor:
            return batch

    batch = noise(2)
    judge.decoder = Perfect()  # type: ignore[assignment]
    with torch.no_grad():
        judged = judge(batch)
    assert all(score.tolist() == [0.0, 0.0] for score in judged.scores.values())
    assert float(judged.deviation.max()) == 0.0
