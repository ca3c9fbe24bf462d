"""Walks the table of models: every entry keeps the contract of the loop and of the exporter."""

from __future__ import annotations

import pytest
import torch

from contract.errors import ConfigError
from training.models import MODELS, model_class


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
    assert judged.latent.shape == (4,)
    assert float(judged.deviation.min()) >= 0
    assert float(judged.image.abs().max()) <= 1


def test_an_unknown_model_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'gan'.*ganomaly"):
        model_class("gan")
