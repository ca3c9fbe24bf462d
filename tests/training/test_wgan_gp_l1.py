"""The autoencoder against a critic: its loss computed by hand, and who learns when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.stepping import backward, equal, noise, weights
from training.cli import make_settings
from training.models.f_anogan import N_CRITIC, Critic
from training.models.wgan_gp_l1 import WganGpL1


@pytest.fixture
def model() -> WganGpL1:
    torch.manual_seed(0)
    return WganGpL1(64, 1, 4, 8).train()


@pytest.fixture
def batch() -> Tensor:
    return noise(4)


def test_the_critic_learns_five_times_as_often(model: WganGpL1, batch: Tensor) -> None:
    optimizers, learnt = model.optimizers(1e-3), []
    for _ in range(2 * N_CRITIC):
        players = (model.encoder, model.decoder, model.critic)
        before = [weights(network) for network in players]
        losses = model.training_step(batch, optimizers, backward, 0.0)
        moved = [not equal(old, new) for old, new in zip(before, players, strict=True)]
        assert moved[0] == moved[1] == ("contextual" in losses) and moved[2]
        learnt.append(moved[0])
    assert learnt == [False] * 4 + [True] + [False] * 4 + [True]


def test_a_step_of_the_drawing_half_leaves_the_critic_untouched(model: WganGpL1, batch: Tensor) -> None:
    optimizers, critic = model.optimizers(1e-3), weights(model.critic)
    encoder = weights(model.encoder)
    model.generator_step(batch, (optimizers["encoder"], optimizers["decoder"]), backward)
    assert equal(critic, model.critic) and not equal(encoder, model.encoder)
    assert all(weight.grad is None and weight.requires_grad for weight in model.critic.parameters())


def test_the_loss_by_hand(model: WganGpL1, batch: Tensor) -> None:
    seen: list[Tensor] = []
    with torch.no_grad():
        image = model.decoder(model.encoder(batch).code)
        expected = -model.critic(image).verdicts.mean() + 50 * (image - batch).abs().mean()

    def note(loss: Tensor) -> None:
        seen.append(loss.detach())
        backward(loss)

    idle = torch.optim.SGD(model.parameters(), lr=0.0)
    model.generator_step(batch, (idle,), note)
    torch.testing.assert_close(seen[0], expected)


def test_it_is_the_autoencoder_with_another_game(model: WganGpL1) -> None:
    assert isinstance(model.critic, Critic)
    assert {name for name, _ in model.deployed().named_children()} == {"encoder", "decoder"}  # no critic in the graph
    settings = make_settings({"data": "parts", "out": "bundle", "model": "wgan_gp_l1"})
    assert (settings.score, settings.learning_rate) == ("residual", 1e-4)
    assert model.optimizers(1e-4)["critic"].param_groups[0]["betas"] == (0.0, 0.9)
