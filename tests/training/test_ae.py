"""The autoencoder: shapes, its loss and scores by hand, and what one step changes."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from tests.training.stepping import all_weights, backward, changed, noise
from training.data import scale
from training.export import export
from training.fit import measure_statistics
from training.graph import Inspector
from training.models import MODELS, model_class
from training.models.ae import Ae, Coded, Encoder
from training.models.ganomaly import MAX_CHANNELS

FAMILY = ("ae", "dae", "vae", "aae", "vae_gan", "dec", "dcn")


@pytest.fixture
def model() -> Ae:
    torch.manual_seed(0)
    return Ae(64, 1, 4, 8).train()


@pytest.mark.parametrize("size", range(64, 257, 16))
def test_every_multiple_of_sixteen_comes_back_in_its_size(size: int) -> None:
    judge = Ae(size, 3, 4, 8).deployed().eval()
    with torch.no_grad():
        judged = judge(torch.zeros(1, 3, size, size))
    assert judged.image.shape == (1, 3, size, size)
    assert max(weight.shape[0] for weight in judge.parameters()) <= MAX_CHANNELS


def test_the_code_is_short() -> None:
    seen: Coded = Encoder(64, 1, 8, 5)(torch.zeros(2, 1, 64, 64))
    assert seen.features.shape == (2, 64, 4, 4)
    assert seen.code.shape == (2, 5, 1, 1)


def test_the_loss_is_the_mean_squared_difference(model: Ae) -> None:
    batch = noise(4)
    with torch.no_grad():
        image = model.decoder(model.encoder(batch).code)
    found = model.training_step(batch, model.optimizers(2e-4), backward, 0.0)
    torch.testing.assert_close(found["contextual"], ((image - batch) ** 2).mean())


def test_a_step_brings_the_drawing_nearer_and_changes_both_networks(model: Ae) -> None:
    batch, optimizers = noise(4), model.optimizers(2e-3)
    before = all_weights(model.networks())
    losses = [float(model.training_step(batch, optimizers, backward, 0.0)["contextual"]) for _ in range(20)]
    assert changed(before, model.networks()) == {"encoder", "decoder"}
    assert losses[-1] < 0.9 * losses[0]


def test_the_scores_compare_what_the_encoder_sees_in_tile_and_drawing(model: Ae) -> None:
    judge, batch = model.deployed().eval(), noise(3)
    with torch.no_grad():
        judged = judge(batch)
        seen, again = model.encoder(batch), model.encoder(model.decoder(model.encoder(batch).code))
    for index in range(3):
        hidden = (seen.features[index] - again.features[index]).square().mean()
        latent = (seen.code[index] - again.code[index]).square().mean()
        torch.testing.assert_close(judged.scores["hidden"][index], hidden)
        torch.testing.assert_close(judged.scores["latent"][index], latent)
    torch.testing.assert_close(judged.deviation[:, 0], (batch - judged.image).abs().mean(dim=1))


def test_what_is_drawn_perfectly_has_no_score(model: Ae) -> None:
    judge = model.deployed().eval()

    class Perfect(torch.nn.Module):
        def forward(self, code: Tensor) -> Tensor:
            return batch

    batch = noise(2)
    judge.decoder = Perfect()  # type: ignore[assignment]
    with torch.no_grad():
        judged = judge(batch)
    assert all(score.tolist() == [0.0, 0.0] for score in judged.scores.values())
    assert float(judged.deviation.max()) == 0.0


@pytest.mark.parametrize("name", [*FAMILY, "wgan_gp_l1"])
def test_the_encoder_is_measured_on_tiles_alone(name: str) -> None:
    """Training shows it no drawing, which the judge does."""
    torch.manual_seed(0)
    model = model_class(name).build(size=64, channels=1, width=4, latent=8)
    judge, tiles = model.deployed().eval(), torch.randint(0, 256, (6, 64, 64, 1), dtype=torch.uint8)
    expected = copy.deepcopy(judge.encoder).train()
    for layer in expected.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    torch.manual_seed(0)  # as it is measured: of damaged tiles, where those are shown
    with torch.no_grad():
        expected(model.shown(scale(tiles)))
    measure_statistics(judge, tiles, model.shown)
    torch.testing.assert_close(judge.encoder.state_dict(), expected.state_dict())


OF_THE_DISCRIMINATOR = {"features", "discriminator"}
SHOWN = {("vae_gan", "features"), ("dec", "cluster")}  # all others in the long tests


@pytest.mark.parametrize(
    ("name", "score"),
    [
        pytest.param(name, score, marks=() if (name, score) in SHOWN else pytest.mark.long)
        for name in FAMILY
        for score in MODELS[name].scores
    ],
)
def test_every_score_of_the_family_is_the_networks_own(name: str, score: str, tmp_path: Path) -> None:
    """In colour, at a side that does not halve to four pixels."""
    torch.manual_seed(0)
    judge = model_class(name).build(size=80, channels=3, width=4, latent=8).deployed()
    for weights in judge.parameters():
        if weights.dim() == 4:  # a model's first weights are so small that its codes are rounding
            torch.nn.init.kaiming_normal_(weights)
    random = torch.Generator().manual_seed(0)
    golden = torch.randint(0, 256, (3, 80, 80, 3), dtype=torch.uint8, generator=random)
    export(Inspector(judge, 80, score), tmp_path / "graph.onnx", golden)  # which proves it in ONNX Runtime
    kept = [value.name for value in onnx.load(tmp_path / "graph.onnx").graph.initializer]
    # What is not asked for is not carried along.
    assert any("discriminator" in name for name in kept) == (score in OF_THE_DISCRIMINATOR)
