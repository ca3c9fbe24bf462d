"""VAE/GAN: three losses computed by hand, three steps that touch no network but their own, and its scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.training.stepping import all_weights, backward, changed, noise
from training.models.ganomaly import Criticism
from training.models.vae import posterior
from training.models.vae_gan import GAMMA, VaeGan


@pytest.fixture
def model() -> VaeGan:
    torch.manual_seed(0)
    return VaeGan(64, 1, 4, 8).train()


class Spy:
    """A backward pass that notes the loss."""

    def __init__(self) -> None:
        self.loss = torch.tensor(float("nan"))

    def __call__(self, loss: Tensor) -> None:
        self.loss = loss.detach()
        backward(loss)


def far(one: Tensor, other: Tensor) -> Tensor:
    return 0.5 * (one - other).square().sum(dim=(1, 2, 3)).mean()


def test_the_encoder_learns_from_prior_and_likeness_alone(model: VaeGan) -> None:
    batch, spy, before = noise(4), Spy(), all_weights(model.networks())
    with torch.no_grad():
        torch.manual_seed(7)
        codes = posterior(model.encoder(batch).code)
        drawn = model.discriminator(model.decoder(codes.sample())).features
        likeness = far(drawn, model.discriminator(batch).features)
    torch.manual_seed(7)
    found, losses = model.encoder_step(batch, model.optimizers(3e-4)["encoder"], spy)
    torch.testing.assert_close(losses["likeness"], likeness)
    torch.testing.assert_close(spy.loss, losses["prior"] + losses["likeness"])
    torch.testing.assert_close(found.mean, codes.mean)
    assert changed(before, model.networks()) == {"encoder"}
    for name in ("decoder", "discriminator"):
        assert all(weight.grad is None and weight.requires_grad for weight in model.networks()[name].parameters())


def test_the_decoder_is_to_deceive_and_a_little_to_be_like(model: VaeGan) -> None:
    batch, spy, before, code = noise(4), Spy(), all_weights(model.networks()), torch.randn(4, 8, 1, 1)
    with torch.no_grad():
        torch.manual_seed(7)
        image, invented = model.decoder(code), model.decoder(torch.randn_like(code))
        seen, other = model.discriminator(image), model.discriminator(invented)
        deceiving = -F.logsigmoid(torch.cat([seen.logits, other.logits])).mean()
        expected = GAMMA * far(seen.features, model.discriminator(batch).features) + deceiving
    torch.manual_seed(7)
    drawn, losses = model.decoder_step(batch, code, model.optimizers(3e-4)["decoder"], spy)
    torch.testing.assert_close(spy.loss, expected)
    torch.testing.assert_close(losses["decoder"], deceiving)
    torch.testing.assert_close(drawn, torch.cat([image, invented]))
    assert not drawn.requires_grad
    assert changed(before, model.networks()) == {"decoder"}
    assert all(weight.grad is None and weight.requires_grad for weight in model.discriminator.parameters())
    assert all(weight.grad is None for weight in model.encoder.parameters())


def test_the_discriminator_tells_tiles_from_both_kinds_of_drawings(model: VaeGan) -> None:
    real, drawn, spy, before = noise(4), noise(8).flip(0), Spy(), all_weights(model.networks())
    with torch.no_grad():
        on_real = -F.logsigmoid(model.discriminator(real).logits).mean()
        on_drawn = -F.logsigmoid(-model.discriminator(drawn).logits).mean()
    model.discriminator_step(real, drawn, model.optimizers(3e-4)["discriminator"], spy)
    torch.testing.assert_close(spy.loss, on_real + on_drawn)
    assert changed(before, model.networks()) == {"discriminator"}
    assert all(weight.grad is None for name in ("encoder", "decoder") for weight in model.networks()[name].parameters())


def test_a_step_updates_all_three(model: VaeGan) -> None:
    before = all_weights(model.networks())
    found = model.training_step(noise(4), model.optimizers(3e-4), backward, 0.0)
    assert set(found) == {"prior", "likeness", "decoder", "discriminator"}
    assert changed(before, model.networks()) == {"encoder", "decoder", "discriminator"}


def test_the_optimizers_are_the_authors(model: VaeGan) -> None:
    for optimizer in model.optimizers(3e-4).values():
        assert isinstance(optimizer, torch.optim.RMSprop)
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["alpha"]) == (3e-4, 0.9)


def test_the_scores_of_the_discriminator(model: VaeGan) -> None:
    judge, batch = model.deployed().eval(), noise(3)
    with torch.no_grad():
        judged = judge(batch)
        real: Criticism = model.discriminator(batch)
        drawn: Criticism = model.discriminator(model.decoder(posterior(model.encoder(batch).code).mean))
    for index in range(3):
        torch.testing.assert_close(
            judged.scores["features"][index], (real.features[index] - drawn.features[index]).square().mean()
        )
        torch.testing.assert_close(judged.scores["discriminator"][index], -torch.sigmoid(real.logits[index]).log())
