"""Pictures of what a model draws: which parts are shown, and that tile, drawing and map stand side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.finished import Finished
from benchmarks.model_pictures import GAP_PX, first_of_each_class, main, picture
from contract.dataset import load_dataset
from contract.errors import ConfigError
from contract.recipe import Recipe, Tiling, View
from tests.bundles import draw_data, draw_part
from training.graph import Inspector
from training.models.base import Deployed, Judgement
from training.settings import TrainSettings

SIDE = 64


class Mean(Deployed):
    """Draws the mean part, whatever it is shown."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        parts = np.stack([draw_part(number, side=SIDE) for number in range(20)])
        self.register_buffer("mean", torch.from_numpy(parts).float().mean(dim=0)[None, None] / 127.5 - 1)

    def forward(self, tile: torch.Tensor) -> Judgement:
        image = self.mean.expand_as(tile)
        return Judgement(image, (tile - image).abs(), {})


def finished(data: Path, recipe: Recipe) -> Finished:
    settings = TrainSettings(data=data, out=data, model="ae", width=4)
    judge = Mean()
    return Finished("parts", settings, recipe, judge, Inspector(judge, SIDE, "residual").state_dict())


def test_a_good_part_then_a_defective_one(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "parts", side=SIDE)
    shown = first_of_each_class(load_dataset(data).test)
    assert [sample.label for sample in shown] == ["good", "spot"]
    large = cv2.cvtColor(picture(finished(data, Recipe(channels=1, tile_hw=(SIDE, SIDE))), shown), cv2.COLOR_RGB2BGR)
    found = large[::2, ::2]  # small tiles in larger pixels
    np.testing.assert_array_equal(found.repeat(2, axis=0).repeat(2, axis=1), large)
    assert found.shape[0] == 2 * SIDE + GAP_PX
    rows = [found[row * (SIDE + GAP_PX) :][:SIDE].astype(np.float32) for row in range(2)]
    for row, sample in zip(rows, shown, strict=True):
        np.testing.assert_array_equal(row[:, :SIDE], cv2.imread(str(sample.path)))
    drawn = slice(SIDE + GAP_PX, 2 * SIDE + GAP_PX)
    np.testing.assert_array_equal(rows[0][:, drawn], rows[1][:, drawn])  # the mean part
    assert rows[1][:, -SIDE:].max() > rows[0][:, -SIDE:].max()  # one scale: the spot shines, the good part does not


def test_parts_that_are_cut_are_refused(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "parts", side=2 * SIDE)
    recipe = Recipe(channels=1, tile_hw=(SIDE, SIDE), views=[View(tiling=Tiling(rows=2, columns=2))])
    with pytest.raises(ConfigError, match="cuts a part into 4 tiles"):
        picture(finished(data, recipe), load_dataset(data).test[:1])


def test_parts_that_were_not_drawn_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What real parts look like is not for docs."""
    cell = tmp_path / "work" / "tiles" / "ae-0" / "seed0"
    assert main(["--out", str(tmp_path / "out"), str(cell)]) != 0
    assert "only those of --data synthetic:// are pictured" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
