"""What may be changed follows from the good images: which sides look alike, how far the light varies."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.dataset import load_dataset
from tests.bundles import draw_part
from tests.shared_data import shared_data
from training.augment import LEAST_JITTER, MOST_JITTER, Augmentation, Flips, layout_variety, learn_augmentation
from training.data import load_tiles, make_recipe
from training.settings import TrainSettings

Picture = NDArray[np.uint8]


def _disc(number: int) -> NDArray[np.float32]:
    """A ring that lies a little elsewhere each time."""
    random = np.random.default_rng(number)
    picture = np.full((64, 64), 60.0, np.float32)
    centre = (32 + int(random.integers(-1, 2)), 32 + int(random.integers(-1, 2)))
    cv2.circle(picture, centre, 22, 170.0, -1)
    cv2.circle(picture, centre, 8, 60.0, -1)
    return picture + random.normal(0, 3, picture.shape).astype(np.float32)


def _marked(number: int) -> NDArray[np.float32]:
    """The ring with a small mark to the right."""
    picture = _disc(number)
    picture[29:35, 42:48] = 30.0  # as far from the top as from the bottom
    return picture


def _texture(number: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(number).normal(0, 60, (64, 64)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 2) * 5 + 120, np.float32)


def _part(number: int) -> NDArray[np.float32]:
    return draw_part(number, side=64).astype(np.float32)


def _tiles(draw: Callable[[int], NDArray[np.float32]], count: int = 24) -> Tensor:
    stacked = np.stack([draw(number) for number in range(count)])
    return torch.from_numpy(np.clip(stacked, 0, 255).astype(np.uint8)[..., np.newaxis])


def _names(tiles: Tensor) -> list[str]:
    return [f"part {number}" for number in range(len(tiles))]


@pytest.mark.parametrize(
    ("draw", "horizontal", "vertical"),
    [(_disc, True, True), (_texture, True, True), (_marked, False, True), (_part, False, False)],
)
def test_auto_mirrors_along_the_axes_on_which_other_parts_look_the_same(
    draw: Callable[[int], NDArray[np.float32]], horizontal: bool, vertical: bool
) -> None:
    if draw is _part:  # itself symmetrical: a bright corner makes it one-sided both ways
        tiles = _tiles(_part)
        tiles[:, 8:18, 8:18] = 230
    else:
        tiles = _tiles(draw)
    found = learn_augmentation(tiles, _names(tiles), "auto")
    assert (found.horizontal, found.vertical) == (horizontal, vertical)


def test_many_tiles_of_few_images_are_still_compared() -> None:
    tiles = _tiles(_texture, 12).repeat_interleave(100, dim=0)
    names = [f"part {number // 100}" for number in range(1200)]
    found = learn_augmentation(tiles, names, "auto", places=100)
    assert found.horizontal and found.vertical
    assert found.variety > 0.5


def test_lighting_that_differs_from_part_to_part_does_not_hide_a_mark() -> None:
    tiles = (_tiles(_marked).float() * torch.linspace(0.4, 1.2, 24)[:, None, None, None]).clamp(0, 255).byte()
    assert not learn_augmentation(tiles, _names(tiles), "auto").horizontal


def test_exposures_of_one_part_are_no_other_parts() -> None:
    tiles = _tiles(_texture, 40)
    assert not learn_augmentation(tiles, [f"part {number // 10}" for number in range(40)], "auto").horizontal


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ("none", (False, False)),
        ("horizontal", (True, False)),
        ("vertical", (False, True)),
        ("both", (True, True)),
    ],
)
def test_what_is_asked_for_is_not_second_guessed(flips: Flips, expected: tuple[bool, bool]) -> None:
    tiles = _tiles(_marked)
    found = learn_augmentation(tiles, _names(tiles), flips)
    assert (found.horizontal, found.vertical) == expected


def test_jitter_follows_the_light_between_its_bounds() -> None:
    steady = _tiles(_texture)
    found = learn_augmentation(steady, _names(steady), "none")
    assert found.brightness == LEAST_JITTER
    offsets = torch.linspace(-30, 30, len(steady))[:, None, None, None]
    brighter = (steady.float() * 0.5 + 60 + offsets).byte()
    found = learn_augmentation(brighter, _names(steady), "none")
    assert found.brightness == pytest.approx(0.9 * 30 / 255, rel=0.1)
    gains = torch.linspace(0.2, 1.8, len(steady))[:, None, None, None]
    found = learn_augmentation((steady.float() * gains).clamp(0, 255).byte(), _names(steady), "none")
    assert found.contrast == MOST_JITTER


def test_places_that_differ_by_content_are_not_taken_for_light() -> None:
    tiles = torch.stack([_tiles(_texture), (_tiles(_texture).float() * 0.4).byte()], dim=1).flatten(0, 1)
    apart = learn_augmentation(tiles, _names(tiles), "none", places=2)
    mixed = learn_augmentation(tiles, _names(tiles), "none")
    assert apart.brightness < 0.5 * mixed.brightness
    assert apart.contrast < 0.5 * mixed.contrast


def test_it_is_said_in_a_sentence() -> None:
    assert "mirrored horizontally and vertically; brightness" in Augmentation(True, True, 0.2).sentence()
    assert "not mirrored; brightness changed by up to 5% of the range" in Augmentation().sentence()


@pytest.mark.parametrize(("name", "horizontal"), [("magnetic_tile", True), ("pcb", False), ("cookie", False)])
def test_on_real_parts_it_decides_as_a_person_would(name: str, horizontal: bool) -> None:
    root = shared_data(name)
    settings = TrainSettings(data=root, out=root, model="ganomaly", size=64)
    one_each = list({sample.group: sample for sample in load_dataset(root).train}.values())[:40]
    tiles = load_tiles(one_each, make_recipe(settings, one_each))
    found = learn_augmentation(tiles, [sample.group for sample in one_each], "auto")
    assert found.horizontal is horizontal


def test_what_has_its_place_varies_little_and_textures_and_moved_parts_vary_much() -> None:
    torch.manual_seed(0)
    parts = torch.arange(24)
    layout = torch.zeros(1, 1, 64, 64)
    layout[..., 8:20, 8:20] = 1.0
    layout[..., 40:50, 20:60] = 1.0
    rigid = layout + 0.05 * torch.rand(24, 1, 64, 64)
    assert layout_variety(rigid, parts) < 0.1
    assert layout_variety(torch.rand(24, 1, 64, 64), parts) == 1.0
    rolled = torch.cat([image.roll((7 * at % 64, 23 * at % 64), (1, 2))[None] for at, image in enumerate(rigid)])
    assert layout_variety(rolled, parts) == 1.0
    # Two places of a part look nothing alike, and each has its layout.
    other = layout.flip(3) + 0.05 * torch.rand(24, 1, 64, 64)
    interleaved = torch.stack([rigid, other], dim=1).flatten(0, 1)
    assert layout_variety(interleaved, parts.repeat_interleave(2), places=2) < 0.1
    assert layout_variety(rigid, torch.zeros(24, dtype=torch.long)) < 0.1
    assert layout_variety(rigid[:1], parts[:1]) == 0.0
