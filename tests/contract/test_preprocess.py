"""From a cut-out part to tiles and measures: geometry, dtypes, refusals, cost."""

from __future__ import annotations

import time
import timeit

import cv2
import numpy as np
import pytest

from contract.errors import ImageError
from contract.preprocess import (
    MEASURES,
    SHARPNESS,
    THUMB,
    Gate,
    likeness,
    measure,
    prepare,
    thumbnail,
    tile_origins,
    view_box,
)
from contract.recipe import Bounds, QualityBounds, Recipe, Tiling, View

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def scene(side: int = 64) -> np.ndarray:
    picture = np.full((side, side), 60, np.uint8)
    cv2.rectangle(picture, (side // 8, side // 4), (side // 2, 3 * side // 4), 190, -1)
    return picture


def test_one_view_of_the_tiles_size_is_unchanged() -> None:
    part = noise(64, 64)
    prepared = prepare(part, Recipe())
    assert prepared.tiles.shape == (1, 64, 64, 1) and prepared.tiles.dtype == np.uint8
    np.testing.assert_array_equal(prepared.tiles[0, ..., 0], part)
    np.testing.assert_array_equal(prepared.canvases["main"], part)


def test_tiles_are_cut_row_major_with_overlap() -> None:
    recipe = Recipe(channels=3, tile_hw=(16, 24), views=[View(tiling=Tiling(rows=2, columns=3, overlap_px=4))])
    height, width = recipe.canvas_hw(recipe.views[0])
    part = noise(height, width, 3)
    prepared = prepare(part, recipe)
    assert prepared.tiles.shape == (6, 16, 24, 3)
    for tile, (y, x) in zip(prepared.tiles, tile_origins(recipe.views[0], recipe), strict=True):
        np.testing.assert_array_equal(tile, part[y : y + 16, x : x + 24])
    assert tile_origins(recipe.views[0], recipe)[-1] == (12, 40)


def test_views_follow_each_other() -> None:
    views = [View(name="left", region=(0, 0, 0.5, 1)), View(name="right", region=(0.5, 0, 0.5, 1))]
    part = np.concatenate([np.full((64, 64), 10, np.uint8), np.full((64, 64), 200, np.uint8)], axis=1)
    prepared = prepare(part, Recipe(views=views))
    assert prepared.tiles.shape == (2, 64, 64, 1)
    assert set(np.unique(prepared.tiles[0])) == {10} and set(np.unique(prepared.tiles[1])) == {200}


def test_shrinking_averages() -> None:
    part = np.zeros((128, 128), np.uint8)
    part[::2, ::2] = 200  # one pixel of four: plain subsampling would give 200 or 0
    assert set(np.unique(prepare(part, Recipe()).tiles)) == {50}


@pytest.mark.parametrize("shape", [(64, 64, 3), (64, 64, 4), (1, 64), (64, 1), (64,), (0, 64)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    recipe = Recipe(channels=1)
    with pytest.raises(ImageError, match=r"expects uint8 with 1 channel|too small"):
        prepare(np.zeros(shape, np.uint8), recipe)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int8, bool])
def test_wrong_types_are_refused(dtype: type) -> None:
    with pytest.raises(ImageError, match="expects uint8"):
        prepare(np.zeros((64, 64), dtype), Recipe())


def test_smallest_part_and_extreme_shapes() -> None:
    for shape in ((2, 2), (2, 5000), (5000, 2), (63, 65)):
        assert prepare(noise(*shape), Recipe()).tiles.shape == (1, 64, 64, 1)


def test_a_line_on_a_long_thin_part_is_seen_wherever_it_is() -> None:
    recipe = Recipe(tile_hw=(256, 256))
    for at in range(900, 960):
        for turned in (False, True):
            part = np.full((200, 2000), 200, np.uint8)
            part[:, at : at + 3] = 110
            tile = prepare(part.T.copy() if turned else part, recipe).tiles[0, :, :, 0]
            assert int(tile.min()) <= 200 - 90 * 3 * 256 / 2000 / 2.1, (at, turned)  # over two pixels at worst


def test_view_box_stays_on_the_part() -> None:
    for region in ((0, 0, 1, 1), (0.999, 0.999, 0.001, 0.001), (0.333, 0.1, 0.667, 0.9)):
        for size in ((2, 2), (3, 1000), (77, 33)):
            x, y, width, height = view_box(View(region=region), size)
            assert min(x, y) >= 0 and min(width, height) >= 1 and x + width <= size[1] and y + height <= size[0]


def test_measures_of_known_pictures() -> None:
    flat = measure(np.full((64, 64), 100, np.uint8), (64, 128), None)
    assert set(flat) == set(MEASURES)
    assert flat["mean"] == 100 and flat["contrast"] == 0
    assert {flat[name] for name in SHARPNESS} == {0}
    assert flat["aspect"] == 2.0 and flat["likeness"] == 1.0
    halves = np.concatenate([np.zeros((64, 32), np.uint8), np.full((64, 32), 255, np.uint8)], axis=1)
    found = measure(halves, (64, 64), None)
    assert found["dark"] == found["saturated"] == 0.5 and found["contrast"] == 127.5


def test_blur_lowers_sharpness_and_dimming_does_not() -> None:
    sharp = scene()
    plain = measure(sharp, (64, 64), None)
    blurred = measure(np.asarray(cv2.GaussianBlur(sharp, (0, 0), 2)), (64, 64), None)
    dim = measure((sharp * 0.5).astype(np.uint8), (64, 64), None)
    for name in SHARPNESS:
        assert blurred[name] < 0.6 * plain[name]
        assert dim[name] == pytest.approx(plain[name], rel=0.05)


def test_smear_along_one_axis_is_seen_on_that_axis() -> None:
    plain = measure(scene(), (64, 64), None)
    smeared = measure(np.asarray(cv2.blur(scene(), (9, 1))), (64, 64), None)
    assert smeared["focus_x"] < 0.3 * plain["focus_x"]
    assert smeared["focus_y"] > 0.8 * plain["focus_y"]


def test_likeness_is_a_correlation() -> None:
    thumb = thumbnail(scene())
    assert thumb.shape == (THUMB * THUMB,) and thumb.dtype == np.float32
    assert likeness(thumb, thumb) == pytest.approx(1, abs=1e-5)
    assert likeness(thumbnail(255 - scene()), thumb) == pytest.approx(-1, abs=1e-3)
    assert likeness(thumbnail(np.full((64, 64), 7, np.uint8)), thumb) == 0
    assert likeness(thumbnail(np.repeat(scene()[..., None], 3, axis=2)), thumb) == pytest.approx(1, abs=0.01)


def test_gate_names_view_measure_and_bound() -> None:
    bounds = {name: Bounds() for name in MEASURES} | {"mean": Bounds(low=10.0, high=90.0)}
    gate = Gate(QualityBounds(views={"main": bounds}, likeness_thumb={}, samples=1))
    part = np.full((64, 64), 95, np.uint8)
    values, reason = gate.check(prepare(part, Recipe()), (64, 64))
    assert reason == "image quality: mean of view 'main' is 95 above 90"
    assert values["main.mean"] == 95
    assert gate.check(prepare(np.full((64, 64), 50, np.uint8), Recipe()), (64, 64))[1] is None


def test_view_without_bounds_is_refused() -> None:
    gate = Gate(QualityBounds(views={}, likeness_thumb={}, samples=1))
    assert "calibrate again" in str(gate.check(prepare(scene(), Recipe()), (64, 64))[1])


def test_measures_are_cheap() -> None:
    canvas = noise(128, 128)
    thumb = np.zeros(THUMB * THUMB, np.float32)
    call = lambda: measure(canvas, (128, 128), thumb)  # noqa: E731
    best = min(timeit.repeat(call, time.thread_time, number=50, repeat=9)) / 50  # not the wall: others use it too
    assert best < 0.3e-3
