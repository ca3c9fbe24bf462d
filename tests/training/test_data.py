"""The split, the pixels and the batches: parts stay together, test images stay closed, values fit tanh."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from contract.dataset import Dataset, Sample, load_dataset
from contract.errors import DatasetError, ImageError
from contract.preprocess import prepare
from contract.recipe import Recipe
from tests.bundles import draw_data, draw_part
from training.augment import Augmentation
from training.data import Batches, channels_of, groups_in, load_tiles, make_recipe, scale, split_by_group
from training.settings import TrainSettings

MIRRORED = Augmentation(horizontal=True, vertical=True)


def _dataset(groups: int, exposures: int) -> Dataset:
    samples = [
        Sample(Path(f"{group}_{number}.png"), "good", None, f"g{group}")
        for group in range(groups)
        for number in range(exposures)
    ]
    return Dataset(Path("parts"), samples, [], "by test")


@pytest.mark.parametrize("groups", [5, 12, 71, 300])
def test_no_part_stands_on_two_sides_and_none_is_lost(groups: int) -> None:
    dataset = _dataset(groups, 6)
    split = split_by_group(dataset, 0.3, 0.1, seed=3)
    sides = [{sample.group for sample in side} for side in (split.fit, split.validation, split.holdout)]
    assert sides[0].isdisjoint(sides[1]) and sides[0].isdisjoint(sides[2]) and sides[1].isdisjoint(sides[2])
    assert sum(map(len, sides)) == groups
    assert len(split.fit) + len(split.validation) + len(split.holdout) == len(dataset.train)
    assert all(sides)


def test_seventy_one_parts_keep_at_least_nineteen_for_calibration() -> None:
    split = split_by_group(_dataset(71, 6), TrainSettings.model_fields["holdout"].default, 0.1, seed=0)
    assert groups_in(split.holdout) >= 19


def test_the_split_depends_on_the_seed_alone() -> None:
    dataset = _dataset(30, 2)
    turned = dataset._replace(train=dataset.train[::-1])
    again = {sample.group for sample in split_by_group(turned, 0.3, 0.1, seed=1).holdout}
    assert {sample.group for sample in split_by_group(dataset, 0.3, 0.1, seed=1).holdout} == again
    assert {sample.group for sample in split_by_group(dataset, 0.3, 0.1, seed=2).holdout} != again


def test_three_images_instead_of_three_hundred_say_what_to_do(tmp_path: Path) -> None:
    draw_data(tmp_path, good=3, test_good=0, defective=0)
    with pytest.raises(DatasetError, match=r"found 3 good image\(s\) of 3 part\(s\).*100 to 300.*--group-pattern"):
        split_by_group(load_dataset(tmp_path), 0.3, 0.1, seed=0)


def test_many_exposures_of_one_part_are_one_part() -> None:
    with pytest.raises(DatasetError, match="of 1 part"):
        split_by_group(_dataset(1, 300), 0.3, 0.1, seed=0)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    draw_data(tmp_path, good=10, test_good=0, defective=0)
    broken = tmp_path / "train" / "good" / "part_004.png"
    broken.write_bytes(broken.read_bytes()[:60])
    dataset = load_dataset(tmp_path)
    with pytest.raises(ImageError, match=r"part_004\.png.*Remove the file or replace it"):
        load_tiles(dataset.train, Recipe())


def test_tiles_are_what_the_line_prepares(parts: Path) -> None:
    dataset = load_dataset(parts)
    settings = TrainSettings(data=parts, out=parts, size=64, tiles=(2, 1), overlap=8)
    recipe = make_recipe(settings, dataset.train)
    tiles = load_tiles(dataset.train[:3], recipe)
    assert tiles.shape == (6, 64, 64, 1)
    assert tiles.dtype == torch.uint8
    pixels = cv2.imread(str(dataset.train[1].path), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    np.testing.assert_array_equal(tiles[2:4].numpy(), prepare(np.asarray(pixels, np.uint8), recipe).tiles)


def test_channels_are_seen_in_the_images(parts: Path, tmp_path: Path) -> None:
    assert channels_of(load_dataset(parts).train) == 1
    draw_data(tmp_path, good=8, test_good=0, defective=0, colour=True)
    colour = load_dataset(tmp_path)
    assert channels_of(colour.train) == 3
    assert make_recipe(TrainSettings(data=tmp_path, out=tmp_path, channels="grey"), colour.train).channels == 1


def test_the_whole_range_of_grey_levels_fits_tanh() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    scaled = scale(levels)
    assert float(scaled.min()) == -1.0
    assert float(scaled.max()) == 1.0
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).repeat(8, 64, 32).unsqueeze(-1)
    for step in range(20):
        batch = Batches(black_and_white, 8, seed=0, augmentation=Augmentation())(step)
        assert float(batch.min()) >= -1.0
        assert float(batch.max()) <= 1.0


def _part_tiles(count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw_part(index, side=64) for index in range(count)])[..., np.newaxis])


def test_a_batch_follows_from_its_step_alone() -> None:
    tiles = _part_tiles(10)
    straight = Batches(tiles, 4, seed=5, augmentation=MIRRORED)
    seen = [straight(step) for step in range(8)]
    for step in (7, 2, 5):
        assert torch.equal(Batches(tiles, 4, seed=5, augmentation=MIRRORED)(step), seen[step])
    assert not torch.equal(Batches(tiles, 4, seed=6, augmentation=MIRRORED)(7), seen[7])


def test_an_epoch_holds_every_tile_once_even_where_a_batch_spans_two() -> None:
    batches = Batches(_part_tiles(10), 4, seed=0, augmentation=Augmentation())
    order = torch.cat([batches._indices(step) for step in range(5)]).tolist()
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert Batches(_part_tiles(3), 8, seed=0, augmentation=Augmentation())(0).shape == (8, 1, 64, 64)


def test_augmentation_is_light_and_mirrors_only_along_the_axes_that_it_may() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).mul(2).repeat(4, 64, 1).unsqueeze(-1)
    plain = Batches(ramp, 4, seed=0, augmentation=Augmentation(vertical=True))
    mirrored = Batches(ramp, 4, seed=0, augmentation=Augmentation(horizontal=True))
    falling = 0
    for step in range(10):
        batch = plain(step)
        assert bool((batch.diff(dim=3) >= 0).all())
        assert float((batch - scale(ramp)).abs().max()) < 0.2
        falling += int((mirrored(step).diff(dim=3) <= 0).all(dim=3).all(dim=2).sum())
    assert falling > 5
    turned = Batches(ramp.transpose(1, 2), 40, seed=0, augmentation=Augmentation(vertical=True))(0)
    assert 5 < int((turned.diff(dim=2) <= 0).all(dim=3).all(dim=2).sum()) < 35


def test_brightness_and_contrast_move_as_far_as_they_are_told() -> None:
    halves = torch.tensor([64, 192], dtype=torch.uint8).repeat_interleave(32).repeat(1, 64, 1).unsqueeze(-1)
    batch = Batches(halves, 400, seed=0, augmentation=Augmentation(brightness=0.2, contrast=0.1))(0)
    level = batch.mean(dim=(1, 2, 3)) / 2
    assert 0.18 < float(level.max()) <= 0.215
    assert -0.215 <= float(level.min()) < -0.18
    spread = (batch.amax(dim=(1, 2, 3)) - batch.amin(dim=(1, 2, 3))) / (128 / 127.5)
    assert 0.9 <= float(spread.min()) < 0.91
    assert 1.09 < float(spread.max()) <= 1.101
