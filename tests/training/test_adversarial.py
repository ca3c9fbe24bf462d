"""The adversarial losses on values computed by hand, and a player's move that touches no other player."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from training.export import export
from training.graph import Inspector
from training.models import MODELS, model_class
from training.models.adversarial import (
    as_drawn,
    as_real,
    critic_loss,
    cross_entropy,
    feature_matching,
    frozen,
    update,
    wasserstein,
)

# D = 0.8 and 0.5 on tiles, 0.25 on a drawing
REAL = torch.tensor([math.log(4.0), 0.0])
DRAWN = torch.tensor([math.log(1 / 3)])


def test_cross_entropies_by_hand() -> None:
    assert float(as_real(REAL)) == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)
    assert float(as_drawn(DRAWN)) == pytest.approx(-math.log(0.75))
    assert float(cross_entropy(REAL, DRAWN)) == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2 - math.log(0.75))


def test_a_sure_verdict_is_no_infinity() -> None:
    assert float(as_real(torch.tensor([-1e4]))) == pytest.approx(1e4)
    assert float(as_drawn(torch.tensor([-1e4]))) == 0.0


def test_wasserstein_by_hand() -> None:
    real, drawn = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.5])
    assert float(wasserstein(real, drawn)) == pytest.approx(-0.5 - 1.5)
    assert float(critic_loss(real, drawn, torch.tensor(0.25))) == pytest.approx(-0.5 - 1.5 + 10 * 0.25)


def test_feature_matching_compares_the_batches_means() -> None:
    real, drawn = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    assert float(feature_matching(real, drawn)) == pytest.approx((4.0 + 4.0) / 2)
    assert float(feature_matching(real, real.flip(0))) == 0.0


def test_a_frozen_network_passes_the_gradient_on_and_takes_none() -> None:
    generator, critic = nn.Linear(2, 2), nn.Linear(2, 1)
    before = critic.weight.detach().clone()
    optimizers = [torch.optim.SGD(network.parameters(), lr=1.0) for network in (generator, critic)]
    with frozen(critic):
        update(critic(generator(torch.ones(1, 2))).sum(), torch.autograd.backward, *optimizers)
    assert torch.equal(critic.weight, before) and critic.weight.grad is None
    assert generator.weight.grad is not None and bool(generator.weight.grad.any())
    assert all(weight.requires_grad for weight in critic.parameters())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "score"),
    [(name, score) for name in ("egbad", "skip_ganomaly", "dcgan", "wgan_gp_l1") for score in MODELS[name].scores],
)
def test_every_score_of_the_players_is_proven_in_onnx_runtime(name: str, score: str, tmp_path: Path) -> None:
    """In colour, at a side that does not halve to four pixels."""
    torch.manual_seed(0)
    kind = model_class(name)
    judge = kind.build(size=80, channels=3, width=4, latent=8).deployed()
    random = torch.Generator().manual_seed(0)
    golden = torch.randint(0, 256, (3, 80, 80, 3), dtype=torch.uint8, generator=random)
    expected = export(Inspector(judge, 80, score, kind.pooling), tmp_path / "graph.onnx", golden)
    assert len(set(expected.score.tolist())) == 3
