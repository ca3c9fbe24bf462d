"""The variational autoencoder: its bound and its scores by hand, and a judge that draws no lots."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.training.stepping import all_weights, backward, changed, noise
from training.fit import measure_statistics
from training.models.ae import Coded
from training.models.vae import Posterior, Vae, VaeJudge, posterior


@pytest.fixture
def model() -> Vae:
    torch.manual_seed(0)
    return Vae(64, 1, 4, 8).train()


def test_a_sample_is_mean_and_deviation_times_noise() -> None:
    codes = Posterior(torch.tensor([2.0, -1.0]), torch.tensor([math.log(9.0), -200.0]))
    torch.manual_seed(4)
    lots = torch.randn(2)
    torch.manual_seed(4)
    torch.testing.assert_close(codes.sample(), torch.tensor([2.0 + 3.0 * float(lots[0]), -1.0]))


def test_the_first_half_is_the_mean() -> None:
    codes = posterior(torch.arange(6.0).view(1, 6, 1, 1))
    assert codes.mean.flatten().tolist() == [0.0, 1.0, 2.0]
    assert codes.log_variance.flatten().tolist() == [3.0, 4.0, 5.0]


def test_the_loss_is_the_negative_bound_of_one_sample(model: Vae) -> None:
    batch = noise(3)
    with torch.no_grad():
        torch.manual_seed(7)
        codes = posterior(model.encoder(batch).code)
        image = model.decoder(codes.sample())
    unit = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(codes.mean, (0.5 * codes.log_variance).exp()), unit
    ).sum(dim=(1, 2, 3))
    losses: list[Tensor] = []

    def spy(loss: Tensor) -> None:
        losses.append(loss.detach())
        backward(loss)

    before = all_weights(model.networks())
    torch.manual_seed(7)
    found = model.training_step(batch, model.optimizers(2e-4), spy, 0.0)
    torch.testing.assert_close(found["prior"], expected.mean())
    torch.testing.assert_close(found["likeness"], 0.5 * (image - batch).square().sum(dim=(1, 2, 3)).mean())
    torch.testing.assert_close(losses, [found["prior"] + found["likeness"]])
    assert changed(before, model.networks()) == {"encoder", "decoder"}


def test_gradients_reach_mean_and_variance_through_the_sample() -> None:
    code = torch.zeros(2, 6, 1, 1, requires_grad=True)
    torch.manual_seed(0)
    posterior(code).sample().square().sum().backward()  # type: ignore[no-untyped-call]
    assert code.grad is not None and bool((code.grad != 0).all())


class Says(nn.Module):
    """An encoder that says the same of every tile."""

    def __init__(self, *code: float) -> None:
        super().__init__()
        self.code = torch.tensor(code).view(1, -1, 1, 1)

    def forward(self, tile: Tensor) -> Coded:
        return Coded(tile, self.code.expand(len(tile), -1, -1, -1))


class Fills(nn.Module):
    """A decoder that fills the tile with the code's first number."""

    def forward(self, code: Tensor) -> Tensor:
        return code[:, :1].expand(-1, 1, 64, 64)


def test_the_judge_by_hand() -> None:
    judge = VaeJudge(Says(0.5, 2.0, math.log(4.0), 0.0), Fills())  # type: ignore[arg-type]
    judged = judge(torch.zeros(2, 1, 64, 64))
    assert set(judged.image.flatten().tolist()) == {0.5}  # the mean, whatever the variance
    latent = 0.5 * ((0.25 + 4.0 - 1.0 - math.log(4.0)) + (4.0 + 1.0 - 1.0 - 0.0))
    assert judged.scores["latent"].tolist() == pytest.approx([latent, latent])
    assert judged.scores["hidden"].tolist() == [0.25, 0.25]
    assert set(judged.deviation.flatten().tolist()) == {0.5}


def test_the_decoder_is_measured_on_samples_which_it_learns_from(model: Vae) -> None:
    """The codes' means are all alike here: only what is sampled about them varies."""
    judge = model.deployed().eval()
    judge.encoder = Says(*[0.0] * 16)  # type: ignore[assignment]
    first = next(layer for layer in judge.decoder.modules() if isinstance(layer, nn.BatchNorm2d))
    measure_statistics(judge, torch.zeros(8, 64, 64, 1, dtype=torch.uint8), model.shown)
    assert first.running_var is not None and first.running_var.min() > 1e-4


def test_the_judge_draws_no_lots_and_judges_each_tile_by_itself(model: Vae) -> None:
    judge, batch = model.deployed().eval(), noise(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        together, alone = judge(batch), judge(batch[1:2])
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(together.image[1:2], alone.image)
    for name, score in together.scores.items():
        torch.testing.assert_close(score[1:2], alone.scores[name])
