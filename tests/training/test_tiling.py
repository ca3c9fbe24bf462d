"""Cutting parts that nobody cut: large textures are cut, small parts and parts of one layout stay whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from contract.dataset import load_dataset
from contract.errors import ConfigError, ImageError
from contract.recipe import Tiling
from training.cli import parse_tiles
from training.data import make_recipe
from training.settings import TrainSettings
from training.tiling import MOST_TILES, choose_tiling

PARTS = 8


def write_parts(folder: Path, hw: tuple[int, int], layout: bool) -> Path:
    """Parts of coarse noise: each its own, or all the same but for grain."""
    (folder / "train" / "good").mkdir(parents=True)
    for number in range(PARTS):
        random = np.random.default_rng(0 if layout else number)
        coarse = cv2.resize(random.normal(128, 50, (12, 12)).astype(np.float32), hw[::-1])
        grain = np.random.default_rng(100 + number).normal(0, 5, hw)
        picture = np.clip(coarse + grain, 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(folder / "train" / "good" / f"part_{number:03}.png"), picture)
    return folder


@pytest.mark.parametrize(
    ("hw", "layout", "expected"),
    [
        ((300, 280), False, Tiling()),
        ((512, 512), False, Tiling()),
        ((640, 640), False, Tiling(rows=2, columns=2, overlap_px=32)),
        ((400, 1100), False, Tiling(rows=1, columns=3, overlap_px=32)),
        ((640, 640), True, Tiling()),
        ((200, 2600), False, Tiling(rows=1, columns=MOST_TILES, overlap_px=32)),
    ],
)
def test_what_is_cut(tmp_path: Path, hw: tuple[int, int], layout: bool, expected: Tiling) -> None:
    data = write_parts(tmp_path, hw, layout)
    assert choose_tiling(load_dataset(data).train, 256) == expected


def test_the_default_model_chooses_and_the_others_stay_whole(tmp_path: Path) -> None:
    data = write_parts(tmp_path, (640, 640), layout=False)
    samples = load_dataset(data).train
    recipes = {
        model: make_recipe(TrainSettings(data=data, out=data, model=model), samples)
        for model in ("ganomaly_d", "ganomaly", "f_anogan")
    }
    assert {model: recipe.tiles for model, recipe in recipes.items()} == {"ganomaly_d": 4, "ganomaly": 1, "f_anogan": 1}
    assert recipes["ganomaly_d"].canvas_hw(recipes["ganomaly_d"].views[0]) == (480, 480)
    asked = TrainSettings(data=data, out=data, model="ganomaly_d", tiles=(1, 1))
    assert make_recipe(asked, samples).tiles == 1


def test_words() -> None:
    assert parse_tiles("Auto") == "auto"
    assert parse_tiles("2x3") == (2, 3)
    with pytest.raises(ConfigError, match="or auto"):
        parse_tiles("many")


def test_an_overlap_belongs_to_tiles_that_were_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --tiles as well"):
        TrainSettings(data=tmp_path, out=tmp_path, overlap=16)


def test_a_broken_image_is_named_with_the_way_out(tmp_path: Path) -> None:
    data = write_parts(tmp_path, (300, 280), layout=False)
    broken = data / "train" / "good" / "part_003.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"part_003\.png.*Remove the file or replace it"):
        make_recipe(TrainSettings(data=data, out=data, channels="grey"), load_dataset(data).train)
