"""EGBAD against the paper: losses and scores computed by hand, who learns when, and all four variants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training.stepping import backward, equal, noise, weights
from training.cli import make_settings
from training.fit import new_model
from training.models.egbad import Egbad, with_features, with_verdict


@pytest.fixture
def model() -> Egbad:
    torch.manual_seed(0)
    return Egbad(64, 1, 4, 8).train()


@pytest.fixture
def batch() -> Tensor:
    return noise(4)


def silence(model: Egbad) -> None:
    """No dropout, so that two passes are one."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


TILE, IMAGE = torch.tensor([[[[0.5, -0.5]]]]), torch.tensor([[[[0.0, 0.5]]]])


def test_the_score_by_cross_entropy_by_hand() -> None:
    found = with_verdict(TILE, IMAGE, torch.tensor([math.log(4.0)]))  # D = 0.8
    assert float(found) == pytest.approx(0.9 * 1.5 - 0.1 * math.log(0.8))


def test_the_score_by_feature_matching_by_hand() -> None:
    found = with_features(TILE, IMAGE, torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0]]))
    assert float(found) == pytest.approx(0.9 * 1.5 + 0.1 * 4.0)


def test_the_judge_shows_the_discriminator_the_tile_and_its_drawing_with_the_tiles_code(
    model: Egbad, batch: Tensor
) -> None:
    judge = model.deployed().eval()
    with torch.no_grad():
        judged = judge(batch)
        code = model.encoder(batch)
        real, drawn = model.discriminator(batch, code), model.discriminator(model.generator(code), code)
    residual = (batch - judged.image).abs().sum(dim=(1, 2, 3))
    torch.testing.assert_close(judged.scores["discriminator"], 0.9 * residual - 0.1 * F.logsigmoid(real.logits))
    matching = (real.features - drawn.features).abs().sum(dim=1)
    torch.testing.assert_close(judged.scores["features"], 0.9 * residual + 0.1 * matching)


@pytest.mark.parametrize("loss", ["cross_entropy", "features"])
def test_a_step_of_the_discriminator_leaves_the_others_untouched_and_the_reverse(
    loss: str, model: Egbad, batch: Tensor
) -> None:
    model.loss = loss
    optimizers = model.optimizers(1e-3)
    encoder, generator, critic = (weights(network) for network in model.networks().values())
    model.discriminator_step(batch, optimizers["discriminator"], backward)
    assert equal(encoder, model.encoder) and equal(generator, model.generator)
    assert not equal(critic, model.discriminator)
    assert all(weight.grad is None for name in ("encoder", "generator") for weight in getattr(model, name).parameters())
    critic = weights(model.discriminator)
    model.generator_step(batch, optimizers["generator"], optimizers["encoder"], backward)
    assert equal(critic, model.discriminator)
    assert not equal(encoder, model.encoder) and not equal(generator, model.generator)
    assert all(weight.requires_grad for weight in model.discriminator.parameters())


def test_the_losses_are_the_papers(model: Egbad, batch: Tensor) -> None:
    silence(model)
    idle = torch.optim.SGD(model.parameters(), lr=0.0)
    torch.manual_seed(5)
    codes = torch.randn(4, 8, 1, 1)
    with torch.no_grad():
        real = model.discriminator(batch, model.encoder(batch))
        drawn = model.discriminator(model.generator(codes), codes)
    ones, zeros = torch.ones(4), torch.zeros(4)
    entropy = F.binary_cross_entropy_with_logits
    torch.manual_seed(5)
    found = model.discriminator_step(batch, idle, backward)
    torch.testing.assert_close(found.detach(), entropy(real.logits, ones) + entropy(drawn.logits, zeros))
    for loss, expected in (
        ("cross_entropy", entropy(real.logits, zeros) + entropy(drawn.logits, ones)),
        ("features", (real.features.mean(dim=0) - drawn.features.mean(dim=0)).square().mean()),
    ):
        model.loss = loss
        torch.manual_seed(5)
        torch.testing.assert_close(model.generator_step(batch, idle, idle, backward).detach(), expected)


def test_the_optimizers_are_the_papers(model: Egbad) -> None:
    asked = {"data": "parts", "out": "bundle", "model": "egbad"}
    settings = make_settings(asked)
    assert (settings.learning_rate, settings.batch, settings.latent) == (1e-5, 100, 200)
    for optimizer in model.optimizers(settings.learning_rate).values():
        assert isinstance(optimizer, torch.optim.Adam)
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (1e-5, (0.5, 0.999))


def test_all_four_variants_can_be_asked_for() -> None:
    asked = {"data": "parts", "out": "bundle", "model": "egbad", "width": 4, "latent": 8}
    for loss in ("cross_entropy", "features"):
        for score in ("discriminator", "features"):
            settings = make_settings({**asked, "loss": loss, "score": score})
            assert (new_model(settings, 1).loss, settings.score) == (loss, score)


def test_the_score_of_an_image_does_not_depend_on_the_batch(model: Egbad, batch: Tensor) -> None:
    judge = model.deployed().eval()
    with torch.no_grad():
        together, alone = judge(batch), judge(batch[2:3])
    for name in ("discriminator", "features"):
        torch.testing.assert_close(together.scores[name][2:3], alone.scores[name])
