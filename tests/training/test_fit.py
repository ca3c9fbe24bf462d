"""The loop: stopping and resuming change nothing, bad numbers are said, weights are chosen on good images alone."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from tests.bundles import draw_part
from training import fit as fit_module
from training.checkpoint import checkpoint_path, load_checkpoint
from training.errors import StoppedError, TrainingError
from training.fit import (
    Fitted,
    Tiles,
    fit,
    measure_statistics,
    new_model,
    refuse_collapse,
)
from training.models import ganomaly
from training.models.base import Deployed, Judgement
from training.models.ganomaly import Ganomaly
from training.pictures import GAP_PX
from training.report import Progress, Quiet
from training.settings import TrainSettings


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    drawn = torch.from_numpy(np.stack([draw_part(index, side=64) for index in range(24)])[..., np.newaxis])
    return Tiles(drawn[:20], drawn[20:])


@pytest.fixture(autouse=True)
def _no_collapse_check(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A dozen steps do not learn to draw; the check has tests of its own."""
    if "collapse" not in request.node.name:
        monkeypatch.setattr(fit_module, "refuse_collapse", lambda *found: None)


def _settings(out: Path, **changes: Any) -> TrainSettings:
    small: dict[str, Any] = {
        "model": "ganomaly",
        "steps": 12,
        "width": 4,
        "latent": 8,
        "batch": 6,
        "device": "cpu",
        "seed": 3,
    }
    return TrainSettings(data=out, out=out, **{**small, **changes})


def _fit(tiles: Tiles, settings: TrainSettings, reporter: Quiet | None = None, resume: bool = False) -> Fitted:
    state = load_checkpoint(checkpoint_path(settings.out), settings.learnt(), "data") if resume else None
    return fit(new_model(settings, 1), tiles, settings, "data", reporter, state)


class _Interrupts(Quiet):
    """Sends this process what Ctrl-C sends, at a milestone."""

    def __init__(self, at: int) -> None:
        self.at = at

    def milestone(self, progress: Progress) -> None:
        if progress.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_is_the_same_each_time(tiles: Tiles, tmp_path: Path) -> None:
    first = _fit(tiles, _settings(tmp_path / "a"))
    second = _fit(tiles, _settings(tmp_path / "b"))
    torch.testing.assert_close(second.judge.state_dict(), first.judge.state_dict(), rtol=0, atol=0)
    other = _fit(tiles, _settings(tmp_path / "c", seed=4))
    assert other.losses != first.losses


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_ctrl_c_saves_and_a_resumed_run_equals_an_uninterrupted_one(
    precision: str, tiles: Tiles, tmp_path: Path
) -> None:
    straight = _fit(tiles, _settings(tmp_path / "straight", precision=precision))
    settings = _settings(tmp_path / "stopped", precision=precision)
    with pytest.raises(StoppedError, match=r"stopped at step 7.*--resume") as stop:
        _fit(tiles, settings, _Interrupts(at=7))
    assert stop.value.exit_code == 130
    resumed = _fit(tiles, settings, resume=True)
    assert resumed.steps == straight.steps == 12
    assert resumed.best_step == straight.best_step
    assert resumed.losses == straight.losses
    assert resumed.validation_loss == straight.validation_loss
    measured = ("seconds", "images_per_s")
    assert [{key: row[key] for key in row if key not in measured} for row in resumed.history] == [
        {key: row[key] for key in row if key not in measured} for row in straight.history
    ]
    torch.testing.assert_close(resumed.judge.state_dict(), straight.judge.state_dict(), rtol=0, atol=0)
    ends = [torch.load(checkpoint_path(tmp_path / name), weights_only=True) for name in ("straight", "stopped")]
    for kept in ("networks", "optimizers", "averaged", "best"):
        torch.testing.assert_close(ends[1][kept], ends[0][kept], rtol=0, atol=0)


def test_slow_validations_come_less_often_but_at_the_end(
    tiles: Tiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "VALIDATING_SHARE", 1e-9)
    timed = _fit(tiles, _settings(tmp_path / "timed", steps=None, minutes=0.02))
    assert [row["share"] for row in timed.history][1:] == [1.0], "once at the start, once at the end"
    by_steps = _fit(tiles, _settings(tmp_path / "steps", steps=8))
    assert [row["step"] for row in by_steps.history] == list(range(1, 9)), "by steps a run is the same each time"


def test_a_finished_run_goes_on_with_a_larger_budget_and_is_validated_there(tiles: Tiles, tmp_path: Path) -> None:
    finished = _fit(tiles, _settings(tmp_path, steps=6))
    longer = _fit(tiles, _settings(tmp_path, steps=9), resume=True)
    assert [row["step"] for row in longer.history] == [*(row["step"] for row in finished.history), 7, 8, 9]


def test_resuming_with_other_settings_or_images_is_refused(tiles: Tiles, tmp_path: Path) -> None:
    settings = _settings(tmp_path, steps=2)
    _fit(tiles, settings)
    with pytest.raises(TrainingError, match=r"width = 4.*asks for 8"):
        load_checkpoint(checkpoint_path(tmp_path), _settings(tmp_path, width=8).learnt(), "data")
    with pytest.raises(TrainingError, match="images or their groups have changed"):
        load_checkpoint(checkpoint_path(tmp_path), settings.learnt(), "other data")
    longer = load_checkpoint(checkpoint_path(tmp_path), _settings(tmp_path, steps=99).learnt(), "data")
    assert longer["step"] == 2


def test_a_torn_or_missing_checkpoint_is_named(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path)
    with pytest.raises(TrainingError, match="no checkpoint to resume"):
        load_checkpoint(path, {}, "data")
    path.parent.mkdir()
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: damaged .*--overwrite"):
        load_checkpoint(path, {}, "data")


def test_a_checkpoint_that_cannot_be_written_is_said(tiles: Tiles, tmp_path: Path) -> None:
    (tmp_path / ".training").write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match=r"checkpoint cannot be written .*Make room"):
        _fit(tiles, _settings(tmp_path))


def test_too_little_gpu_memory_is_said(tiles: Tiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Ganomaly, "training_step", full)
    with pytest.raises(
        TrainingError,
        match=r"a batch of 6 tiles: the GPU's memory does not .*--batch 6, --size 64.*smaller",
    ):
        _fit(tiles, _settings(tmp_path))


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_last_good_checkpoint(
    tiles: Tiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Ganomaly.training_step

    def poisoned(self: Ganomaly, *given: Any) -> dict[str, Tensor]:
        losses = step(self, *given)
        poisoned.calls += 1  # type: ignore[attr-defined]
        return {**losses, "encoder": torch.tensor(math.nan)} if poisoned.calls > 5 else losses  # type: ignore[attr-defined]

    poisoned.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Ganomaly, "training_step", poisoned)
    with pytest.raises(TrainingError, match=r"step 6: .*not a number.*encoder = nan.*--learning-rate below"):
        _fit(tiles, _settings(tmp_path))
    assert torch.load(checkpoint_path(tmp_path), weights_only=True)["step"] == 5


def test_a_discriminator_that_keeps_collapsing_is_said(
    tiles: Tiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ganomaly, "COLLAPSED_BELOW", 1e9)
    monkeypatch.setattr(fit_module, "MAX_MENDS", 4)
    with pytest.raises(TrainingError, match=r"discriminator collapsed 4 times"):
        _fit(tiles, _settings(tmp_path))


class _Constant(nn.Module):
    """Draws every tile as one level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self._level = level

    def forward(self, tile: Tensor) -> Judgement:
        image = torch.full_like(tile, self._level)
        return Judgement(image, (tile - image).abs(), {})


class _Mean(nn.Module):
    """Draws every tile as the mean of all."""

    def forward(self, tile: Tensor) -> Judgement:
        image = tile.mean(dim=0, keepdim=True).expand_as(tile)
        return Judgement(image, (tile - image).abs(), {})


class _Blurred(nn.Module):
    """Draws every tile as the mean of all at half the side, as well as that can be done."""

    def forward(self, tile: Tensor) -> Judgement:
        small = F.avg_pool2d(tile.mean(dim=0, keepdim=True), 2)
        image = F.interpolate(small, scale_factor=2.0, mode="bilinear").expand_as(tile)
        return Judgement(image, (tile - image).abs(), {})


@pytest.mark.parametrize("level", [1.0, -1.0, 0.0])
def test_collapse_to_white_black_or_grey_is_refused(level: float, tiles: Tiles, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"every image is drawn alike.*no bundle is written"):
        refuse_collapse(_Constant(level), tiles.fit, 500, tmp_path)


def test_aligned_parts_drawn_as_their_mean_are_no_collapse(tiles: Tiles, tmp_path: Path) -> None:
    refuse_collapse(_Mean(), tiles.fit, 500, tmp_path)


def test_a_coarse_drawing_of_fine_detail_is_no_collapse(tmp_path: Path) -> None:
    stripes = torch.where(torch.arange(64) % 2 == 0, 60.0, 200.0).expand(16, 64, 64)
    torch.manual_seed(1)
    tiles = (stripes + 2 * torch.randn(16, 64, 64)).round().to(torch.uint8)[..., None]
    refuse_collapse(_Blurred(), tiles, 500, tmp_path)
    with pytest.raises(TrainingError, match="every image is drawn alike"):
        refuse_collapse(_Constant(1.0), tiles, 500, tmp_path)


def test_collapse_ends_the_whole_run_with_the_checkpoint_kept(
    tiles: Tiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path, steps=2)
    model = new_model(settings, 1)
    with torch.no_grad():
        [*model.networks()["generator"].get_submodule("decoder").parameters()][-1].zero_()  # tanh of nothing: mid-grey
    monkeypatch.setattr(Ganomaly, "training_step", lambda *given: {"discriminator": torch.tensor(1.0)})
    with pytest.raises(TrainingError, match=r"drawn alike \(mean grey level 12[78]\)"):
        fit(model, tiles, settings, "data")
    assert checkpoint_path(tmp_path).is_file()


def test_the_weights_are_chosen_on_the_good_validation_tiles_alone(tiles: Tiles, tmp_path: Path) -> None:
    settings = _settings(tmp_path, steps=20, learning_rate=2e-3)
    model = new_model(settings, 1)
    fitted = fit(model, tiles, settings, "data")
    assert model.selection_loss(fitted.judge, tiles.validation) == pytest.approx(fitted.validation_loss, rel=1e-5)
    state = torch.load(checkpoint_path(tmp_path), weights_only=True)
    assert fitted.validation_loss == state["best_loss"] <= state["validation_loss"]


def test_what_is_handed_over_is_in_evaluation_mode(tiles: Tiles, tmp_path: Path) -> None:
    judge = _fit(tiles, _settings(tmp_path, steps=3)).judge
    assert not any(module.training for module in judge.modules())
    shown = torch.rand(5, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        together = judge(shown).deviation[:1]
        alone = judge(shown[:1]).deviation
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)


class Plain(Deployed):
    """A layer and nothing else."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, tile: Tensor) -> Tensor:
        passed: Tensor = self.layer(tile)
        return passed


def test_normalisation_statistics_are_those_of_what_training_shows() -> None:
    layer = nn.BatchNorm2d(1, momentum=0.3)
    judge = Plain(layer).eval()
    white = torch.full((10, 8, 8, 1), 255, dtype=torch.uint8)
    measure_statistics(judge, white, lambda tiles: tiles)
    assert layer.running_mean is not None
    assert float(layer.running_mean) == pytest.approx(1.0)
    measure_statistics(judge, white, lambda tiles: tiles * torch.rand_like(tiles))
    noisy = float(layer.running_mean)
    assert noisy == pytest.approx(0.5, abs=0.1)
    state = torch.random.get_rng_state()
    measure_statistics(judge, white, lambda tiles: tiles * torch.rand_like(tiles))
    assert float(layer.running_mean) == noisy
    assert torch.equal(torch.random.get_rng_state(), state)
    assert layer.momentum == 0.3
    assert not layer.training


def test_a_time_budget_ends_the_run(tiles: Tiles, tmp_path: Path) -> None:
    fitted = _fit(tiles, _settings(tmp_path, steps=None, minutes=0.02))
    assert 1.2 <= fitted.seconds < 10
    assert fitted.steps > 0
    assert fitted.images_per_s > 0


def test_the_board_gets_scalars_and_pictures_of_good_and_defective_tiles(tiles: Tiles, tmp_path: Path) -> None:
    _fit(tiles, _settings(tmp_path, steps=2, tensorboard=True))
    written = EventAccumulator(str(tmp_path / ".training" / "tensorboard"), size_guidance={"images": 0})
    written.Reload()
    assert {"contextual", "validation", "images_per_s"} <= set(written.Tags()["scalars"])
    shown = written.Tags()["images"]
    assert sum(name.startswith("good validation/") for name in shown) == 4
    assert sum(name.startswith("synthetic defect/") for name in shown) == 4
    assert [picture.step for picture in written.Images("good validation/0")] == [1, 2]
    assert written.Images("good validation/0")[0].width == 3 * 64 + 2 * GAP_PX
