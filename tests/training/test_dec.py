"""Deep embedded clustering: shares, target and divergence by hand, and which loss moves which network."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.stepping import all_weights, backward, changed, gradients, noise, with_centres
from training.models.dec import FORGOTTEN, Dec, shares, target


@pytest.fixture
def model() -> Dec:
    torch.manual_seed(0)
    return with_centres(Dec(64, 1, 4, 8))


def test_shares_by_hand() -> None:
    """1 / (1 + d): 1, 1/2 and 1/4 of 7/4; alike where distances are."""
    found = shares(torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[4 / 7, 2 / 7, 1 / 7], [1 / 3, 1 / 3, 1 / 3]]))


def test_the_target_by_hand() -> None:
    """Squares over what each is given: of (0.5, 0.5) and (1, 3) it is (1/4, 1/12), of sum 1."""
    found = target(torch.tensor([[0.5, 0.5], [0.8, 0.2]]), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(found[0], torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(found[1], torch.tensor([0.64, 0.04 / 3]) / (0.64 + 0.04 / 3))
    torch.testing.assert_close(
        target(torch.tensor([[0.8, 0.2]]), torch.ones(2)), torch.tensor([[0.64 / 0.68, 0.04 / 0.68]])
    )


def test_the_losses_of_a_step_by_hand(model: Dec) -> None:
    batch, given = noise(4), model.clusters.given.clone()
    with torch.no_grad():
        code = model.encoder(batch).code
        q = shares(model.clusters(code))
        image = model.decoder(code)
        expected = (1 - FORGOTTEN) * given + q.sum(dim=0)
    found = model.training_step(batch, model.optimizers(2e-4), backward, 0.6)
    torch.testing.assert_close(model.clusters.given, expected)
    total = 0.0
    for tile in q.tolist():
        sharper = [share * share / size for share, size in zip(tile, expected.tolist(), strict=True)]
        p = [value / sum(sharper) for value in sharper]
        total += sum(ours * math.log(ours / theirs) for ours, theirs in zip(p, tile, strict=True))
    assert float(found["divergence"]) == pytest.approx(total / 4, rel=1e-4)
    torch.testing.assert_close(found["likeness"], (image - batch).square().sum(dim=(1, 2, 3)).mean())


def test_drawing_moves_the_decoder_and_the_divergence_all_else(model: Dec) -> None:
    batch = noise(4)
    code = model.encoder(batch).code
    q = shares(model.clusters(code))
    with torch.no_grad():
        p = target(q, (1 - FORGOTTEN) * model.clusters.given + q.sum(dim=0))
    backward((p * (p / q).log()).sum() / 4)
    expected = [gradients(model.encoder), gradients(model.clusters)]
    assert all(weight.grad is None for weight in model.decoder.parameters())
    optimizers, before = model.optimizers(2e-4), all_weights(model.networks())
    model.training_step(batch, optimizers, backward, 0.6)
    for network, by_hand in zip((model.encoder, model.clusters), expected, strict=True):
        for weight, gradient in zip(network.parameters(), by_hand, strict=True):
            assert weight.grad is not None and gradient is not None
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-7)
    assert changed(before, model.networks()) == {"encoder", "decoder", "clusters"}


def test_tiles_come_to_belong_to_one_centre(model: Dec) -> None:
    batch, optimizers = noise(8), model.optimizers(2e-3)
    with torch.no_grad():
        before = shares(model.clusters(model.encoder(batch).code)).amax(dim=1).mean()
    for _ in range(20):
        model.training_step(batch, optimizers, backward, 0.6)
    with torch.no_grad():
        after = shares(model.clusters(model.encoder(batch).code)).amax(dim=1).mean()
    assert float(after) > float(before)
