"""The adversarial autoencoder: losses and scores by hand, and phases that touch no network but their own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.training.stepping import all_weights, backward, changed, gradients, noise
from training.models.aae import Aae, AaeJudge, CodeDiscriminator
from training.models.adversarial import cross_entropy


@pytest.fixture
def model() -> Aae:
    torch.manual_seed(0)
    return Aae(64, 1, 4, 8).train()


def test_drawing_changes_encoder_and_decoder_by_half_the_square_difference(model: Aae) -> None:
    batch, optimizers, before = noise(4), model.optimizers(2e-4), all_weights(model.networks())
    with torch.no_grad():
        image = model.decoder(model.encoder(batch).code)
    loss = model.drawing_step(batch, optimizers["encoder"], optimizers["decoder"], backward)
    torch.testing.assert_close(loss, 0.5 * (image - batch).square().sum(dim=(1, 2, 3)).mean())
    assert changed(before, model.networks()) == {"encoder", "decoder"}


def test_the_discriminators_step_leaves_the_others_untouched(model: Aae) -> None:
    batch, optimizers = noise(4), model.optimizers(2e-4)
    model.drawing_step(batch, optimizers["encoder"], optimizers["decoder"], backward)
    before, kept = all_weights(model.networks()), gradients(model.encoder)
    model.discriminator_step(batch, optimizers["discriminator"], backward)
    assert changed(before, model.networks()) == {"discriminator"}
    assert all(
        old is not None and weight.grad is not None and torch.equal(old, weight.grad)
        for old, weight in zip(kept, model.encoder.parameters(), strict=True)
    )


def test_the_encoders_step_leaves_the_others_untouched(model: Aae) -> None:
    batch, before = noise(4), all_weights(model.networks())
    model.encoder_step(batch, model.optimizers(2e-4)["encoder"], backward)
    assert changed(before, model.networks()) == {"encoder"}
    assert all(weight.grad is None and weight.requires_grad for weight in model.discriminator.parameters())
    assert all(weight.grad is None for weight in model.decoder.parameters())


def test_draws_of_the_prior_are_the_real_ones(model: Aae) -> None:
    batch, drawn = noise(4), torch.Generator().manual_seed(3)
    with torch.no_grad():
        code = model.encoder(batch).code
        real = model.discriminator(torch.randn(code.shape, generator=drawn))
        expected = cross_entropy(real, model.discriminator(code))
    torch.manual_seed(3)
    loss = model.discriminator_step(batch, model.optimizers(2e-4)["discriminator"], backward)
    torch.testing.assert_close(loss, expected)


def test_the_game_draws_far_codes_towards_the_prior() -> None:
    torch.manual_seed(0)
    critic, code = CodeDiscriminator(2), nn.Parameter(torch.full((16, 2, 1, 1), 6.0))
    learner = torch.optim.Adam(critic.parameters(), lr=1e-3)
    mover = torch.optim.SGD([code], lr=0.5)
    for _ in range(30):
        learner.zero_grad()
        backward(cross_entropy(critic(torch.randn(64, 2, 1, 1)), critic(code.detach())))
        learner.step()
        mover.zero_grad()
        backward(nn.functional.softplus(-critic(code)).sum())
        mover.step()
    assert float(code.detach().square().mean()) < 36.0 / 2


class Fixed(nn.Module):
    """Gives its logit whatever the code."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, code: Tensor) -> Tensor:
        return torch.full((len(code), 1), self.logit)


def test_the_scores_by_hand(model: Aae) -> None:
    judge = AaeJudge(model.encoder, model.decoder, Fixed(math.log(3.0)))  # type: ignore[arg-type]
    code = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).view(2, 2, 1, 1)
    found = judge.compare(code, code)
    assert found["latent"].tolist() == [12.5, 0.0]  # half the squared distance from the prior's middle
    assert found["discriminator"].tolist() == pytest.approx([-math.log(0.75)] * 2)


def test_a_step_goes_through_all_phases(model: Aae) -> None:
    before = all_weights(model.networks())
    found = model.training_step(noise(4), model.optimizers(2e-4), backward, 0.0)
    assert set(found) == {"likeness", "discriminator", "encoder"}
    assert changed(before, model.networks()) == {"encoder", "decoder", "discriminator"}
