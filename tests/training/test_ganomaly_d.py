"""GANomaly with a dense discriminator: shapes, losses that mean what they say, and that it learns to mark."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.bundles import draw_part
from training.data import scale
from training.defects import Drawn
from training.fit import measure_statistics
from training.heldout import set_exam
from training.models.ganomaly_d import GanomalyD, auroc, average_precision, examine, marks_loss, tile_loss


@pytest.mark.parametrize("size", [64, 80, 96, 112, 144, 256])
def test_every_size_is_judged_at_its_own_size(size: int) -> None:
    torch.manual_seed(0)
    judge = GanomalyD.build(size=size, channels=1, width=4, latent=8).deployed().eval()
    with torch.no_grad():
        judged = judge(torch.rand(2, 1, size, size) * 2 - 1)
    assert judged.image.shape == judged.deviation.shape == (2, 1, size, size)


def _drawn(size: int = 16) -> Drawn:
    defect = torch.zeros(2, 1, size, size)
    defect[0, :, 4:8, 4:8] = 1.0
    unsure = torch.zeros_like(defect)
    unsure[0, :, 8:10, 4:8] = 1.0
    return Drawn(torch.zeros_like(defect), defect, unsure)


def test_right_marks_cost_nothing_and_unsure_pixels_never_do() -> None:
    drawn = _drawn()
    right = 20.0 * (2.0 * drawn.defect[..., ::2, ::2] - 1.0)
    assert float(marks_loss(right, drawn)) == pytest.approx(0.0, abs=1e-6)
    either = right.clone()
    either[0, :, 4:5, 2:4] = 20.0  # where it is unsure
    assert float(marks_loss(either, drawn)) == pytest.approx(0.0, abs=1e-6)
    assert float(marks_loss(-right, drawn)) > 1.0


def test_a_tile_is_known_by_its_highest_marks() -> None:
    drawn = _drawn(64)
    logits = torch.full((2, 1, 32, 32), -10.0)
    missed = float(tile_loss(logits, drawn))
    logits[0, :, 2:5, 2:5] = 10.0
    assert float(tile_loss(logits, drawn)) < 0.05 * missed


def test_its_figures_are_those_of_scikit_learn() -> None:
    torch.manual_seed(5)
    low, high = torch.randn(40).round(decimals=1), (torch.randn(30) + 1).round(decimals=1)
    labels = np.r_[np.zeros(40), np.ones(30)]
    assert auroc(low, high) == pytest.approx(roc_auc_score(labels, torch.cat([low, high]).numpy()))
    values = torch.rand(70)
    expected = average_precision_score(labels, values.numpy())
    assert average_precision(values, torch.from_numpy(labels).bool()) == pytest.approx(expected)


def test_places_count_as_far_as_parts_share_a_layout() -> None:
    torch.manual_seed(0)
    model = GanomalyD.build(size=64, channels=1, width=4, latent=8)
    judge, tile = model.deployed().eval(), torch.rand(1, 1, 64, 64) * 2 - 1
    found = []
    with torch.no_grad():
        for variety in (1.0, 0.2):
            model.adapt(variety)
            before = judge(tile).deviation
            for name, value in model.named_parameters():
                if name.endswith("embedding"):
                    value.add_(1.0)
            found.append(torch.equal(judge(tile).deviation, before))
    assert found == [True, False]


def test_a_minute_fraction_of_a_training_marks_defects_it_was_never_shown() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = np.stack([draw_part(number, side=64) for number in range(48)])[..., np.newaxis]
    tiles = torch.from_numpy(parts)
    model = GanomalyD.build(size=64, channels=1, width=8, latent=16)
    optimizers = model.optimizers(2e-3)
    exam = set_exam(tiles[32:], 0, most=84)

    def figures() -> dict[str, float]:
        judge = model.deployed().eval()
        measure_statistics(judge, tiles[:32], model.shown)
        found = examine(judge, exam)
        model.train()
        return found

    before = figures()
    for step in range(120):
        torch.manual_seed(step)
        batch = scale(tiles[torch.randint(32, (16,))])
        losses = model.training_step(batch, optimizers, torch.autograd.backward, step / 120)
    after = figures()
    assert float(losses["contextual"]) < 0.2
    assert after["ranking"] > max(0.75, before["ranking"])
    assert after["marking"] > max(0.12, 2 * before["marking"])
