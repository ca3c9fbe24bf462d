"""Walks the table of models: every entry keeps the contract of the loop and of the exporter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contract.errors import ConfigError
from tests.bundles import draw_part
from training.cli import make_settings
from training.fit import Loop, Tiles, measure_statistics, new_model
from training.graph import Inspector
from training.models import MODELS, model_class
from training.settings import TrainSettings


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_trains_and_judges(name: str, channels: int) -> None:
    torch.manual_seed(0)
    model = model_class(name).build(size=64, channels=channels, width=4, latent=8)
    optimizers = model.optimizers(2e-4)
    assert set(optimizers) == set(model.networks())
    batch = torch.rand(4, channels, 64, 64) * 2 - 1
    losses = model.train().training_step(batch, optimizers, torch.autograd.backward, 0.0)
    assert losses
    assert all(value.ndim == 0 and torch.isfinite(value) and not value.requires_grad for value in losses.values())
    with torch.no_grad():
        judged = model.deployed().eval()(batch)
    assert judged.image.shape == batch.shape
    assert judged.deviation.shape == (4, 1, 64, 64)
    assert set(judged.scores) == set(MODELS[name].scores) - {"residual"}
    assert all(score.shape == (4,) and torch.isfinite(score).all() for score in judged.scores.values())
    assert float(judged.deviation.min()) >= 0
    assert float(judged.image.abs().max()) <= 1


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_normalisation_is_measured_and_once_a_batch_but_in_discriminators(name: str) -> None:
    """A discriminator is shown tiles and drawings; what draws is not, and would be measured on both."""
    torch.manual_seed(0)
    model = model_class(name).build(size=64, channels=1, width=4, latent=8)
    judge, calls = model.deployed().eval(), Counter[str]()
    for path, layer in judge.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda *passed, path=path: calls.update([path]))
    measure_statistics(judge, torch.zeros(4, 64, 64, 1, dtype=torch.uint8), model.shown)
    assert set(calls) == {path for path, layer in judge.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert {path.split(".")[0] for path, count in calls.items() if count > 1} <= {"discriminator"}
    assert max(calls.values(), default=0) <= 2


@pytest.fixture(autouse=True)
def _short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.models.anogan.SEARCH_STEPS", 5)


@pytest.fixture(scope="module")
def tiles() -> Tensor:
    return torch.from_numpy(np.stack([draw_part(number, side=64) for number in range(12)]))[..., None]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_twenty_steps_are_saved_and_reloaded_to_equal_scores(name: str, tiles: Tensor, tmp_path: Path) -> None:
    settings = TrainSettings(
        data=tmp_path, out=tmp_path, model=name, steps=20, size=64, width=4, latent=8, batch=4, device="cpu",
        precision="32-true",
    )  # fmt: skip
    loop = Loop(new_model(settings, 1), Tiles(tiles, tiles[:6]), settings, "")
    untrained = {key: value.clone() for key, value in loop.averaged.state_dict().items()}
    while loop.share() < 1.0:
        loop.check(loop.train_once())
    loop.validate()
    trained = loop.averaged.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as it is handed over
    save_file(trained.state_dict(), tmp_path / "weights")
    again = new_model(settings.model_copy(update={"seed": 1}), 1).deployed()
    again.load_state_dict(load_file(tmp_path / "weights"))
    assert not all(torch.equal(value, untrained[key]) for key, value in trained.state_dict().items())
    for score in MODELS[name].scores:
        ours, theirs = (
            Inspector(judge, 64, score, model_class(name).pooling).inspect(tiles) for judge in (trained, again)
        )
        assert bool(torch.isfinite(ours.score).all())
        assert len(set(ours.score.tolist())) > 1
        assert torch.equal(ours.score, theirs.score) and torch.equal(ours.map, theirs.map)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_score_of_a_model_can_be_asked_for_and_no_other(name: str) -> None:
    asked = {"data": "parts", "out": "bundle", "model": name}
    for score in MODELS[name].scores:
        assert make_settings({**asked, "score": score}).score == score
    with pytest.raises(ConfigError, match=rf"score 'beauty': {name} has {', '.join(MODELS[name].scores)}$"):
        make_settings({**asked, "score": "beauty"})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_loss_of_a_model_can_be_asked_for_and_no_other(name: str) -> None:
    asked = {"data": "parts", "out": "bundle", "model": name, "width": 4, "latent": 8}
    for loss in MODELS[name].losses:
        assert new_model(make_settings({**asked, "loss": loss}), 1).loss == loss
    with pytest.raises(ConfigError, match=rf"loss 'none': {name} has (no choice|{', '.join(MODELS[name].losses)}$)"):
        make_settings({**asked, "loss": "none"})


def test_an_unknown_model_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'gan'.*ganomaly"):
        model_class("gan")
