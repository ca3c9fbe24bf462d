"""Skip-GANomaly against the paper: shapes, losses and score computed by hand, and who learns when."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.training.stepping import backward, equal, noise, weights
from training.models.adversarial import cross_entropy
from training.models.ganomaly import Criticism
from training.models.skip_ganomaly import SkipGanomaly, anomaly, generator_losses, halvings


@pytest.fixture
def model() -> SkipGanomaly:
    torch.manual_seed(0)
    return SkipGanomaly(64, 1, 4, 8).train()


@pytest.fixture
def batch() -> Tensor:
    return noise(4)


@pytest.mark.parametrize(
    ("size", "channels"),
    [(64, [64, 128, 256, 256, 256, 256]), (256, [64, 128, 256, 256, 256, 256, 256, 256]), (80, [64, 128, 256, 256])],
)
def test_the_u_has_as_many_halvings_as_the_side(size: int, channels: list[int]) -> None:
    assert halvings(size, 64) == channels


@pytest.mark.parametrize("size", range(64, 257, 16))
def test_every_multiple_of_sixteen_comes_back_in_its_size(size: int) -> None:
    judge = SkipGanomaly(size, 3, 4, 8).deployed().eval()
    with torch.no_grad():
        judged = judge(torch.zeros(2, 3, size, size))
    assert judged.image.shape == (2, 3, size, size)
    assert judged.deviation.shape == (2, 1, size, size)


def test_what_skips_the_middle_reaches_the_drawing(model: SkipGanomaly, batch: Tensor) -> None:
    with torch.no_grad():
        model.generator.eval().ups[-1][1].weight.zero_()
        first, second = model.generator(batch[:1]), model.generator(batch[1:2])
    assert not torch.equal(first, second)


def test_the_losses_by_hand() -> None:
    tile, image = torch.tensor([[[[0.5, -0.5]]]]), torch.tensor([[[[0.0, 0.5]]]])
    real = Criticism(torch.tensor([[[[1.0]], [[3.0]]]]), torch.tensor([0.0]))
    drawn = Criticism(torch.tensor([[[[2.0]], [[3.0]]]]), torch.tensor([math.log(1 / 3)]))  # D = 0.25
    found = generator_losses(tile, image, real, drawn)
    assert [float(term) for term in found] == pytest.approx([-math.log(0.25), 0.75, 0.5])
    assert float(found.total()) == pytest.approx(-math.log(0.25) + 50 * 0.75 + 0.5)


def test_the_score_by_hand() -> None:
    tile, image = torch.tensor([[[[0.5, -0.5]]]]), torch.tensor([[[[0.0, 0.5]]]])
    found = anomaly(tile, image, torch.tensor([[[[1.0]], [[3.0]]]]), torch.tensor([[[[2.0]], [[3.0]]]]))
    assert float(found) == pytest.approx(0.9 * (0.25 + 1.0) / 2 + 0.1 * 0.5)


def test_a_step_of_the_discriminator_leaves_the_generator_untouched_and_the_reverse(
    model: SkipGanomaly, batch: Tensor
) -> None:
    optimizers = model.optimizers(1e-3)
    generator, critic = weights(model.generator), weights(model.discriminator)
    image, _ = model.generator_step(batch, optimizers["generator"], backward)
    assert equal(critic, model.discriminator) and not equal(generator, model.generator)
    assert not image.requires_grad
    generator = weights(model.generator)
    with torch.no_grad():  # cross entropies alone: the features' difference is the generator's to lower
        expected = cross_entropy(model.discriminator(batch).logits, model.discriminator(image).logits)
    loss = model.discriminator_step(batch, image, optimizers["discriminator"], backward)
    assert equal(generator, model.generator) and not equal(critic, model.discriminator)
    torch.testing.assert_close(loss.detach(), expected)


def test_a_discriminator_that_is_too_sure_starts_afresh(model: SkipGanomaly) -> None:
    generator, critic = weights(model.generator), weights(model.discriminator)
    assert not model.mend({"discriminator": 0.1}) and equal(critic, model.discriminator)
    assert model.mend({"discriminator": 1e-6}) and not equal(critic, model.discriminator)
    assert equal(generator, model.generator)


def test_the_score_of_an_image_does_not_depend_on_the_batch(model: SkipGanomaly, batch: Tensor) -> None:
    judge = model.deployed().eval()
    with torch.no_grad():
        together, alone = judge(batch), judge(batch[2:3])
    torch.testing.assert_close(together.scores["features"][2:3], alone.scores["features"])
