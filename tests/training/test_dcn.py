"""k-means and drawing as one loss: its terms and the centres' way by hand, and which step moves which network."""

from __future__ import annotations

import pytest
import torch

from tests.training.stepping import all_weights, backward, changed, equal, gradients, noise, weights, with_centres
from training.models.clusters import CLUSTERS
from training.models.dcn import WEIGHT, Dcn


@pytest.fixture
def model() -> Dcn:
    torch.manual_seed(0)
    return with_centres(Dcn(64, 1, 4, 8))


def test_the_losses_of_a_step_by_hand(model: Dcn) -> None:
    batch = noise(4)
    with torch.no_grad():
        code = model.encoder(batch).code
        image = model.decoder(code)
        apart = (code.flatten(1)[:, None] - model.clusters.centres.now()).square().sum(dim=2)
    found = model.training_step(batch, model.optimizers(2e-4), backward, 0.6)
    torch.testing.assert_close(found["likeness"], (image - batch).square().sum(dim=(1, 2, 3)).mean())
    torch.testing.assert_close(found["distance"], 0.5 * apart.amin(dim=1).mean())


def test_encoder_and_decoder_learn_by_the_sum_of_both(model: Dcn) -> None:
    batch = noise(4)
    code = model.encoder(batch).code
    apart = (code.flatten(1)[:, None] - model.clusters.centres.now().detach()).square().sum(dim=2).amin(dim=1)
    backward((model.decoder(code) - batch).square().sum(dim=(1, 2, 3)).mean() + WEIGHT / 2 * apart.mean())
    expected = [*gradients(model.encoder), *gradients(model.decoder)]
    model.training_step(batch, model.optimizers(2e-4), backward, 0.6)
    for weight, gradient in zip([*model.encoder.parameters(), *model.decoder.parameters()], expected, strict=True):
        assert weight.grad is not None and gradient is not None
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-5)


def test_a_centre_is_the_mean_of_all_that_it_was_ever_given() -> None:
    """Two tiles at (1, 1) so far; then (4, 4), and (2, 2) in the same batch as (7, 1)."""
    model = Dcn(64, 1, 4, 4)
    with torch.no_grad():
        model.clusters.centres.placed[1] = 1.0
        model.clusters.given[1] = 2.0
    optimizer = model.optimizers(2e-4)["clusters"]
    others = model.clusters.centres.now().detach().clone()[2:]
    model.follow(torch.full((1, 4), 4.0), torch.tensor([1]), optimizer, backward)
    torch.testing.assert_close(model.clusters.centres.now()[1].detach(), torch.full((4,), 2.0))
    batch = torch.tensor([[2.0, 2.0, 2.0, 2.0], [7.0, 1.0, 7.0, 1.0]])
    model.follow(batch, torch.tensor([1, 1]), optimizer, backward)
    expected = torch.tensor([1.0 + 1 + 4 + 2 + 7, 1.0 + 1 + 4 + 2 + 1] * 2) / 5
    torch.testing.assert_close(model.clusters.centres.now()[1].detach(), expected)
    assert torch.equal(model.clusters.centres.now().detach()[2:], others)
    assert model.clusters.given.tolist() == [0.0, 5.0] + [0.0] * (CLUSTERS - 2)


def test_centres_that_follow_touch_no_other_network(model: Dcn) -> None:
    before = all_weights(model.networks())
    codes = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    model.follow(codes, torch.tensor([0, 1, 2, 2]), model.optimizers(2e-4)["clusters"], backward)
    assert changed(before, model.networks()) == {"clusters"}


def test_the_networks_step_moves_no_centre(model: Dcn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "follow", lambda *given: None)
    centres, encoder = weights(model.clusters), weights(model.encoder)
    model.training_step(noise(4), model.optimizers(2e-4), backward, 0.6)
    assert equal(centres, model.clusters) and not equal(encoder, model.encoder)


def test_the_more_the_distance_counts_the_nearer_codes_come(model: Dcn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.models.dcn.WEIGHT", 1e4)
    batch, optimizers = noise(8), model.optimizers(2e-4)
    found = [float(model.training_step(batch, optimizers, backward, 0.6)["distance"]) for _ in range(20)]
    assert found[-1] < 0.5 * found[0]
