"""The plain GAN: its losses, score and map computed by hand, who learns when, and each variant of the game."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.training.stepping import backward, equal, noise, weights
from training.models.adversarial import criticised, minimax
from training.models.dcgan import (
    CLIP,
    FREEZE_FROM,
    GAMES,
    N_CRITIC,
    Criticism,
    Dcgan,
    Discriminator,
    Judge,
)

ADVERSARIAL = [name for name in GAMES if name != "wasserstein"]


@pytest.fixture
def model() -> Dcgan:
    torch.manual_seed(0)
    return Dcgan(64, 1, 4, 8).train()


@pytest.fixture
def batch() -> Tensor:
    return noise(4)


def test_the_generators_losses_by_hand() -> None:
    drawn = torch.tensor([math.log(1 / 3), math.log(4.0)])  # D = 0.25 and 0.8
    assert float(minimax(drawn)) == pytest.approx((math.log(0.75) + math.log(0.2)) / 2)
    assert float(GAMES["non_saturating"].generator(drawn)) == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)
    assert float(criticised(torch.tensor([0.5, -1.5]))) == pytest.approx(0.5)


def test_both_games_pull_the_generator_the_same_way_and_the_first_one_weakly_where_it_loses() -> None:
    slopes = {}
    for name in ("minimax", "non_saturating"):
        verdict = torch.tensor([-5.0], requires_grad=True)  # a drawing that is seen through
        GAMES[name].generator(verdict).backward()
        assert verdict.grad is not None
        slopes[name] = float(verdict.grad)
    assert slopes["minimax"] == pytest.approx(-1 / (1 + math.exp(5)), rel=1e-4)
    assert slopes["non_saturating"] == pytest.approx(-1 / (1 + math.exp(-5)), rel=1e-4)


class Voter(nn.Module):
    """D = 0.8 of a tile: one place of 2 x 2 votes for a drawing, the others for a tile."""

    def forward(self, tile: Tensor) -> Criticism:
        votes = torch.tensor([[[[-1.0, 0.5], [0.5, math.log(4.0)]]]])
        return Criticism(tile, votes)


def test_score_and_map_by_hand() -> None:
    judged = Judge(Voter())(torch.zeros(1, 1, 64, 64))  # type: ignore[arg-type]
    assert float(judged.scores["discriminator"]) == pytest.approx(0.2)
    assert float(judged.deviation[0, 0, 0, 0]) == pytest.approx(1 / (1 + math.exp(-4.0)))
    assert float(judged.deviation[0, 0, -1, -1]) == pytest.approx(1 / (1 + 4.0**4))
    assert torch.equal(judged.image, torch.zeros(1, 1, 64, 64))


def test_the_votes_make_dcgans_last_convolution(batch: Tensor) -> None:
    critic = Discriminator(64, 1, 4).eval()
    with torch.no_grad():
        found = critic(batch)
        expected = nn.functional.conv2d(critic.stem(batch), critic.head).flatten()
    torch.testing.assert_close(found.verdicts(), expected)


@pytest.mark.parametrize("loss", GAMES)
def test_a_step_of_the_discriminator_leaves_the_generator_untouched_and_the_reverse(
    loss: str, model: Dcgan, batch: Tensor
) -> None:
    model.loss = loss
    optimizers = model.optimizers(1e-3)
    generator, critic = weights(model.generator), weights(model.discriminator)
    model.discriminator_step(batch, optimizers["discriminator"], backward)
    assert equal(generator, model.generator) and not equal(critic, model.discriminator)
    assert all(weight.grad is None for weight in model.generator.parameters())
    critic = weights(model.discriminator)
    model.generator_step(batch, optimizers["generator"], backward)
    assert equal(critic, model.discriminator) and not equal(generator, model.generator)


@pytest.mark.parametrize("loss", ADVERSARIAL)
def test_an_untrained_discriminator_loses_as_a_coin_does(loss: str, model: Dcgan, batch: Tensor) -> None:
    model.loss = loss
    with torch.no_grad():
        model.discriminator.head.zero_()
    losses = model.training_step(batch, model.optimizers(1e-9), backward, 0.0)
    assert float(losses["discriminator"]) == pytest.approx(2 * math.log(2), rel=1e-4)
    expected = -math.log(2) if loss == "minimax" else math.log(2)
    assert float(losses["generator"]) == pytest.approx(expected, rel=1e-3)


def test_a_wasserstein_critic_is_clipped_and_learns_five_times_as_often(model: Dcgan, batch: Tensor) -> None:
    model.loss = "wasserstein"
    optimizers, learnt = model.optimizers(2e-4), []
    for _ in range(2 * N_CRITIC):
        generator = weights(model.generator)
        model.training_step(batch, optimizers, backward, 0.0)
        learnt.append(not equal(generator, model.generator))
        assert max(float(weight.detach().abs().max()) for weight in model.discriminator.parameters()) <= CLIP
    assert learnt == [False] * 4 + [True] + [False] * 4 + [True]
    assert all(isinstance(optimizer, torch.optim.RMSprop) for optimizer in optimizers.values())
    assert optimizers["generator"].param_groups[0]["lr"] == pytest.approx(5e-5)


def test_a_frozen_generator_is_what_the_discriminator_learns_against_in_the_end(model: Dcgan, batch: Tensor) -> None:
    model.loss = "frozen_generator"
    optimizers = model.optimizers(1e-3)
    assert "generator" in model.training_step(batch, optimizers, backward, FREEZE_FROM - 0.01)
    generator, critic = weights(model.generator), weights(model.discriminator)
    assert set(model.training_step(batch, optimizers, backward, FREEZE_FROM)) == {"discriminator"}
    assert equal(generator, model.generator) and not equal(critic, model.discriminator)


def test_the_score_of_an_image_does_not_depend_on_the_batch(model: Dcgan, batch: Tensor) -> None:
    judge = model.deployed().eval()
    with torch.no_grad():
        together, alone = judge(batch), judge(batch[2:3])
    torch.testing.assert_close(together.scores["discriminator"][2:3], alone.scores["discriminator"])
    torch.testing.assert_close(together.deviation[2:3], alone.deviation)
