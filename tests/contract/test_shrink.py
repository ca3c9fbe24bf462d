"""Averaging areas: the same pixels as OpenCV's own, wherever the edges lie."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from contract.preprocess import prepare, view_box
from contract.recipe import Recipe, View
from contract.shrink import LARGE_PX, shrink

RNG = np.random.default_rng(0)
SIZES = [
    (2048, 2448, 256, 256),
    (1047, 1449, 155, 128),
    (1000, 748, 64, 300),
    (1536, 512, 256, 256),
    (3000, 200, 7, 64),
]


def exact(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """The mean over each area in double precision, by the share of each source row and column in it."""

    def shares(count: int, into: int) -> np.ndarray:
        edges = np.arange(into + 1) * count / into
        low, high = edges[:-1, None], edges[1:, None]
        places = np.arange(count)
        return np.clip(np.minimum(high, places + 1) - np.maximum(low, places), 0, 1) * into / count

    rows, columns = shares(pixels.shape[0], height), shares(pixels.shape[1], width)
    down = np.tensordot(rows, pixels.astype(float), axes=(1, 0))
    return np.moveaxis(np.tensordot(down, columns, axes=(1, 1)), -1, 1)


@pytest.mark.parametrize("planes", [(), (3,)], ids=["grey", "colour"])
@pytest.mark.parametrize(("rows", "columns", "height", "width"), SIZES)
def test_large_pictures_become_what_the_average_is(
    rows: int, columns: int, height: int, width: int, planes: tuple[int, ...]
) -> None:
    assert rows * columns >= LARGE_PX and rows >= 6 * height
    pixels = RNG.integers(0, 256, (rows, columns, *planes), np.uint8)
    found = shrink(pixels, width, height)
    assert found.shape == (height, width, *planes) and found.dtype == np.uint8
    off = np.abs(found - exact(pixels, width, height))
    assert off.max() < 0.501, "rounded from the true mean, to within what float32 can hold"
    opencv = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    differs = np.abs(found.astype(int) - opencv)
    assert differs.max() <= 1 and np.count_nonzero(differs) <= 0.001 * differs.size


def test_black_and_white_stay_what_they_are() -> None:
    for value in (0, 255):
        assert set(np.unique(shrink(np.full((1100, 1300), value, np.uint8), 100, 99))) == {value}


def test_what_is_not_large_is_opencv_s_own() -> None:
    for shape in ((300, 300), (1200, 1200, 3), (640, 480)):
        pixels = RNG.integers(0, 256, shape, np.uint8)
        expected = cv2.resize(pixels, (250, 240), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(shrink(pixels, 250, 240), expected)


def test_a_region_of_a_frame_is_shrunk_like_a_copy_of_it() -> None:
    frame = RNG.integers(0, 256, (2048, 2448, 3), np.uint8)
    recipe = Recipe(channels=3, views=[View(region=(0.1, 0.05, 0.7, 0.9))])
    x, y, w, h = view_box(recipe.views[0], (2048, 2448))
    whole = recipe.model_copy(update={"views": [View()]})
    copied = prepare(np.ascontiguousarray(frame[y : y + h, x : x + w]), whole)
    np.testing.assert_array_equal(prepare(frame, recipe).tiles, copied.tiles)
