"""Fusing tiles and views, the verdict at and around its limits, regions in pixels of the part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.decision import MAX_REGIONS, PartScore, ViewMap, decide, find_regions, fuse, map_to_part
from contract.event import Verdict
from contract.recipe import Recipe, Thresholds, Tiling, View

WHOLE = Recipe()


def limits(reject: float = 1.0, review: float | None = None) -> Thresholds:
    return Thresholds(
        reject=reject, review=review, map=1.0, method="m", false_reject_rate=0.1, groups=1, images=1, engine="e"
    )


def one_view(values: np.ndarray, box: tuple[int, int, int, int]) -> PartScore:
    return PartScore(0.0, "main", [ViewMap("main", values.astype(np.float32), box)])


def test_worst_tile_and_worst_view_win() -> None:
    views = [View(name="a", tiling=Tiling(columns=2)), View(name="b")]
    part = fuse(np.array([1, 3, 2], np.float32), np.zeros((3, 8, 8), np.float32), Recipe(views=views), (50, 100))
    assert (part.score, part.worst_view) == (3.0, "a")
    assert [view.values.shape for view in part.maps] == [(8, 16), (8, 8)]
    assert [view.box for view in part.maps] == [(0, 0, 100, 50)] * 2


def test_overlapping_tiles_take_the_larger_deviation() -> None:
    recipe = Recipe(views=[View(tiling=Tiling(columns=2, overlap_px=32))])  # canvas 64 x 96, maps half as large
    maps = np.stack([np.full((32, 32), 1, np.float32), np.full((32, 32), 2, np.float32)])
    whole = fuse(np.zeros(2, np.float32), maps, recipe, (64, 96)).maps[0].values
    assert whole.shape == (32, 48)
    assert set(np.unique(whole[:, :16])) == {1} and set(np.unique(whole[:, 16:])) == {2}


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize("overlap", [0, 1, 7, 33])
@pytest.mark.parametrize("map_side", [16, 21, 64])
def test_stitched_maps_have_no_holes(rows: int, overlap: int, map_side: int) -> None:
    recipe = Recipe(views=[View(tiling=Tiling(rows=rows, columns=2, overlap_px=overlap))])
    maps = np.ones((2 * rows, map_side, map_side), np.float32)
    assert (fuse(np.zeros(2 * rows, np.float32), maps, recipe, (100, 100)).maps[0].values == 1).all()


@pytest.mark.parametrize(
    ("scores", "maps"), [((2,), (2, 8, 8)), ((1,), (8, 8)), ((1, 1), (1, 8, 8)), ((1,), (2, 8, 8))]
)
def test_another_count_of_tiles_is_refused(scores: tuple[int, ...], maps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the recipe has 1 tile"):
        fuse(np.zeros(scores, np.float32), np.zeros(maps, np.float32), WHOLE, (64, 64))


@pytest.mark.parametrize(
    ("score", "review", "expected"),
    [
        (0.0, None, Verdict.PASS),
        (1.0, None, Verdict.PASS),  # at the limit is within it
        (np.nextafter(1.0, 2), None, Verdict.REJECT),
        (0.5, 0.5, Verdict.PASS),
        (0.6, 0.5, Verdict.REVIEW),
        (1.1, 0.5, Verdict.REJECT),
        (float("inf"), None, Verdict.NOT_INSPECTED),
        (float("-inf"), None, Verdict.NOT_INSPECTED),
        (float("nan"), 0.5, Verdict.NOT_INSPECTED),
    ],
)
def test_verdict(score: float, review: float | None, expected: Verdict) -> None:
    verdict, reason = decide(score, limits(1.0, review))
    assert verdict is expected
    assert (reason is None) == (verdict is Verdict.PASS)


def test_without_thresholds_nothing_passes() -> None:
    verdict, reason = decide(0.0, None)
    assert verdict is Verdict.NOT_INSPECTED and "flawline calibrate thresholds" in str(reason)


@given(st.floats(), st.floats(allow_nan=False, allow_infinity=False))
def test_only_a_finite_score_within_the_limit_passes(score: float, reject: float) -> None:
    verdict, _ = decide(score, limits(reject))
    assert (verdict is Verdict.PASS) == (np.isfinite(score) and score <= reject)


def test_a_score_that_is_not_a_number_wins_over_views() -> None:
    recipe = Recipe(views=[View(name="a"), View(name="b")])
    part = fuse(np.array([9, np.nan], np.float32), np.zeros((2, 4, 4), np.float32), recipe, (9, 9))
    assert decide(part.score, limits())[0] is Verdict.NOT_INSPECTED


def test_regions_in_pixels_of_the_part() -> None:
    values = np.zeros((10, 20))
    values[2:4, 5:9] = 2.0
    values[3, 6] = 5.0
    values[8, 19] = 3.0
    recipe = Recipe(views=[View(mm_per_px=0.5)])
    found = find_regions(one_view(values, (100, 50, 40, 30)), 1.0, recipe)
    assert [region.peak for region in found] == [5.0, 3.0]
    assert found[0].box_px == (110.0, 56.0, 8.0, 6.0)
    assert found[0].area_px == 48.0 and found[0].area_mm2 == 12.0
    assert found[1].box_px == (138.0, 74.0, 2.0, 3.0)


def test_regions_touching_at_a_corner_are_one() -> None:
    values = np.zeros((8, 8))
    values[2, 2] = values[3, 3] = 2.0
    assert len(find_regions(one_view(values, (0, 0, 8, 8)), 1.0, WHOLE)) == 1


def test_regions_begin_above_the_threshold_and_are_bounded() -> None:
    values = np.zeros((40, 40))
    values[::2, ::2] = 1.0
    assert find_regions(one_view(values, (0, 0, 40, 40)), 1.0, WHOLE) == []
    assert len(find_regions(one_view(values + 1e-3, (0, 0, 40, 40)), 1.0, WHOLE)) <= MAX_REGIONS
    values[::2, ::2] = np.arange(400).reshape(20, 20) + 2.0
    found = find_regions(one_view(values, (0, 0, 40, 40)), 1.0, WHOLE)
    assert len(found) == MAX_REGIONS and found[0].peak == 401.0


def test_map_to_part_reaches_the_corners() -> None:
    a, b, c, d, e, f = map_to_part(ViewMap("main", np.zeros((10, 20), np.float32), (100, 50, 40, 30)))
    assert (c, f) == (100, 50) and (a * 20 + b * 10 + c, d * 20 + e * 10 + f) == (140, 80)
