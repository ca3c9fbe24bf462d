"""GANomaly against the paper: shapes, losses computed by hand, and the errors that published code makes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.models.ganomaly import (
    MAX_CHANNELS,
    Decoder,
    Discriminator,
    Ganomaly,
    Generator,
    GeneratorLosses,
    Passage,
    discriminator_loss,
    generator_losses,
    pyramid,
)


def backward(loss: Tensor) -> None:
    torch.autograd.backward(loss)


@pytest.fixture
def model() -> Ganomaly:
    torch.manual_seed(0)
    return Ganomaly(64, 1, 4, 8).train()


@pytest.fixture
def batch() -> Tensor:
    return torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _weights(network: torch.nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in network.parameters()]


def _same(before: list[Tensor], network: torch.nn.Module) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("size", "stages", "side"),
    [(64, [64, 128, 256, 256], 4), (128, [64, 128, 256, 256, 256], 4), (256, [64, 128, 256, 256, 256, 256], 4)],
)
def test_the_pyramid_halves_to_four_pixels_with_capped_channels(size: int, stages: list[int], side: int) -> None:
    assert pyramid(size, 64) == (stages, side)


@pytest.mark.parametrize("size", range(64, 257, 16))
def test_every_multiple_of_sixteen_comes_back_in_its_size(size: int) -> None:
    generator = Generator(size, 3, 4, 8).eval()
    with torch.no_grad():
        drawn = generator(torch.zeros(1, 3, size, size))
    assert drawn.image.shape == (1, 3, size, size)
    assert drawn.code.shape == drawn.recode.shape == (1, 8, 1, 1)
    assert max(weight.shape[0] for weight in generator.parameters()) <= MAX_CHANNELS


def test_the_output_stays_in_what_tanh_can_draw() -> None:
    decoder = Decoder(64, 1, 4, 8).eval()
    with torch.no_grad():
        assert float(decoder(1e4 * torch.randn(2, 8, 1, 1)).abs().max()) <= 1.0


def test_the_two_encoders_share_their_shape_and_no_weight(model: Ganomaly) -> None:
    first, second = model.generator.encoder, model.generator.second_encoder
    assert [weight.shape for weight in first.parameters()] == [weight.shape for weight in second.parameters()]
    ids = {id(weight) for weight in first.parameters()}
    assert ids.isdisjoint(id(weight) for weight in second.parameters())
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_weights_start_as_dcgan_does() -> None:
    torch.manual_seed(0)
    discriminator = Ganomaly(64, 1, 32, 8).discriminator
    convolution = discriminator.stem.get_submodule("2").get_parameter("weight")
    assert abs(float(convolution.detach().std()) - 0.02) < 0.001
    assert float(discriminator.stem.get_submodule("3").get_parameter("bias").detach().abs().max()) == 0.0


def test_generator_losses_by_hand() -> None:
    tile = torch.tensor([[[[0.5, -0.5]]]])
    drawn = Passage(torch.tensor([[[[0.25, 0.5]]]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))
    losses = generator_losses(tile, drawn, torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 3.0]]))
    assert float(losses.adversarial) == pytest.approx((1.0 + 0.0) / 2)
    assert float(losses.contextual) == pytest.approx((0.25 + 1.0) / 2)
    assert float(losses.encoder) == pytest.approx((1.0 + 4.0) / 2)
    assert float(losses.total()) == pytest.approx(0.5 + 50 * 0.625 + 2.5)


def test_the_weights_are_one_fifty_one() -> None:
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert [
        float(GeneratorLosses(*terms).total()) for terms in [(one, zero, zero), (zero, one, zero), (zero, zero, one)]
    ] == [
        1.0,
        50.0,
        1.0,
    ]


def test_discriminator_loss_by_hand() -> None:
    # sigmoid(log 3) = 3/4 and sigmoid(0) = 1/2
    real, fake = torch.tensor([math.log(3.0)]), torch.tensor([0.0])
    expected = 0.5 * (-math.log(0.75) - math.log(0.5))
    assert float(discriminator_loss(real, fake)) == pytest.approx(expected, rel=1e-6)


def test_the_generator_step_leaves_the_discriminator_untouched(model: Ganomaly, batch: Tensor) -> None:
    before, own = _weights(model.discriminator), _weights(model.generator)
    model.generator_step(batch, model.optimizers(2e-4)["generator"], backward)
    assert _same(before, model.discriminator)
    assert all(weight.grad is None and weight.requires_grad for weight in model.discriminator.parameters())
    assert not _same(own, model.generator)


def test_the_discriminator_step_leaves_the_generator_untouched(model: Ganomaly, batch: Tensor) -> None:
    optimizers = model.optimizers(2e-4)
    drawn, _ = model.generator_step(batch, optimizers["generator"], backward)
    before, own = _weights(model.generator), _weights(model.discriminator)
    gradients = [None if weight.grad is None else weight.grad.clone() for weight in model.generator.parameters()]
    fake = drawn.image.detach()
    model.discriminator_step(batch, fake, optimizers["discriminator"], backward)
    assert _same(before, model.generator)
    assert all(
        old is not None and weight.grad is not None and torch.equal(old, weight.grad)
        for old, weight in zip(gradients, model.generator.parameters(), strict=True)
    )
    assert not _same(own, model.discriminator)


def test_the_adversarial_loss_compares_features_not_verdicts(model: Ganomaly, batch: Tensor) -> None:
    def adversarial() -> float:
        torch.manual_seed(0)
        fresh = Ganomaly(64, 1, 4, 8).train()
        fresh.discriminator.load_state_dict(model.discriminator.state_dict())
        _, losses = fresh.generator_step(batch, fresh.optimizers(2e-4)["generator"], backward)
        return float(losses.adversarial)

    plain = adversarial()
    with torch.no_grad():
        model.discriminator.head.weight.mul_(-100.0)
    assert adversarial() == plain
    with torch.no_grad():
        next(model.discriminator.stem.parameters()).mul_(3.0)
    assert adversarial() != plain


def test_a_collapsed_discriminator_starts_afresh(model: Ganomaly) -> None:
    before = _weights(model.discriminator)
    assert not model.mend({"discriminator": 0.01})
    assert _same(before, model.discriminator)
    assert model.mend({"discriminator": 1e-6})
    assert not _same(before, model.discriminator)


def test_features_are_the_last_stage() -> None:
    seen = Discriminator(64, 1, 8)(torch.zeros(2, 1, 64, 64))
    assert seen.features.shape == (2, 64, 4, 4)
    assert seen.logits.shape == (2,)


def test_the_latent_score_is_the_l1_norm_of_the_codes_difference(model: Ganomaly, batch: Tensor) -> None:
    judge = model.deployed().eval()
    with torch.no_grad():
        drawn = model.generator(batch)
        expected = (drawn.code - drawn.recode).flatten(1).abs().sum(dim=1)
        torch.testing.assert_close(judge(batch).scores["latent"], expected)
