"""Masks, zones and levels on maps: what is judged where, and that a grid's peak is the map's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.bundle import FileEntry, Manifest
from contract.decision import PartScore, decide, find_regions, fuse
from contract.event import Verdict
from contract.places import Blank, Level, Located, counts, fill_outline, highest_region, map_shape, top_mean, whole_only
from contract.recipe import Bounds, Mask, Outline, Places, QualityBounds, Recipe, Thresholds, Tiling, View, Zone

TILE = 32
ONE = Recipe(tile_hw=(TILE, TILE), views=[View(mm_per_px=0.5)])
LIMITS = Thresholds(reject=2.0, review=1.0, map=1.0, method="m", groups=1, images=1, engine="e")


def located(
    *zones: Zone, keep: np.ndarray | None = None, level: Level | None = None, top_k: int = 1, recipe: Recipe = ONE
) -> Located:
    blanks = {} if keep is None else {"main": Blank(keep, np.full(keep.shape, 9, np.uint8))}
    levels = {} if level is None else {"main": level}
    return Located(recipe, (TILE, TILE), Places(zones=list(zones), top_k=top_k), blanks, levels)


def one(values: np.ndarray, places: Located | None, score: float | None = None) -> PartScore:
    maps = values.astype(np.float32)[np.newaxis]
    own = np.array([values.max() if score is None else score], np.float32)
    return fuse(own, maps, ONE, (64, 64), places)


def spot(level: float, rows: slice, columns: slice) -> np.ndarray:
    values = np.zeros((TILE, TILE), np.float32)
    values[rows, columns] = level
    return values


def test_a_masked_deviation_is_no_part_of_score_map_and_regions() -> None:
    keep = np.ones((TILE, TILE), bool)
    keep[:10, :10] = False
    values = spot(9, slice(2, 6), slice(2, 6)) + spot(1.5, slice(20, 22), slice(20, 22))
    part = one(values, located(keep=keep))
    assert part.score == 1.5 and part.maps[0].values.max() == 1.5
    found = find_regions(part, 1.0, ONE, located(keep=keep))
    assert [region.peak for region in found] == [1.5]
    assert one(values, None).score == 9


def test_tolerance_divides_score_and_regions() -> None:
    lax = Zone(name="seam", view="main", box=(0, 0, 0.5, 1), tolerance=4)
    places = located(lax)
    part = one(spot(3, slice(2, 6), slice(2, 6)), places)
    assert part.score == 0.75 and find_regions(part, 1.0, ONE, places) == []
    there = one(spot(3, slice(2, 6), slice(22, 26)), places)
    assert there.score == 3 and len(find_regions(there, 1.0, ONE, places)) == 1
    assert there.maps[0].values.max() == 3  # what is shown and sent is the map as it is


def test_a_score_that_is_not_finite_stays_so() -> None:
    keep = np.ones((TILE, TILE), bool)
    keep[:4] = False
    for bad in (np.nan, np.inf):
        assert not np.isfinite(one(np.zeros((TILE, TILE)), located(keep=keep), bad).score)
    hole = spot(np.nan, slice(0, 2), slice(0, 2))  # under the mask: the engine failed all the same
    assert np.isnan(one(hole, located(keep=keep), 0.0).score)
    assert decide(float("nan"), LIMITS, float("nan"))[0] is Verdict.NOT_INSPECTED


def test_a_mask_that_leaves_no_whole_pixel_of_the_map() -> None:
    keep = np.zeros((TILE, TILE), bool)
    keep[::2] = True
    with pytest.raises(ValueError, match="leaves no whole pixel"):
        Located(ONE, (TILE // 2, TILE // 2), Places(), {"main": Blank(keep, keep.astype(np.uint8))}, {})


@pytest.mark.parametrize("verdict", ["REJECT", "REVIEW"])
def test_a_region_in_a_zone_raises_the_verdict_and_is_named(verdict: str) -> None:
    rule = Zone(name="thread", view="main", box=(0, 0, 0.5, 1), smallest_px=60, verdict=verdict)
    places = located(rule, top_k=200)  # the score alone is the mean of 200 values: a small region drowns in it
    quiet = one(np.zeros((TILE, TILE)), places, 0.0)
    assert (quiet.score, quiet.highest, quiet.zone) == (0.0, 0.0, None)
    small = one(spot(3, slice(4, 6), slice(4, 10)), places, 0.1)  # 12 map pixels of 4 part pixels each
    assert decide(small.score, LIMITS, small.review, small.zone, small.review_zone)[0] is Verdict.PASS
    large = one(spot(3, slice(4, 6), slice(4, 12)), places, 0.1)
    found, reason = decide(large.score, LIMITS, large.review, large.zone, large.review_zone)
    assert found.value == verdict and "score 3 above" in str(reason) and "zone 'thread'" in str(reason)
    elsewhere = one(spot(3, slice(4, 6), slice(20, 28)), places, 0.1)
    assert decide(elsewhere.score, LIMITS, elsewhere.review, elsewhere.zone, elsewhere.review_zone)[0] is Verdict.PASS
    assert large.score == (3 if verdict == "REJECT" else np.float32(0.1))


@pytest.mark.parametrize("first", ["seal", "rim"])
def test_the_reason_names_the_zone_that_made_the_verdict(first: str) -> None:
    """A region in the zone for review is higher than the one that rejects: it is not why the part is rejected."""
    rim = Zone(name="rim", view="main", box=(0, 0, 0.5, 1), smallest_px=4, verdict="REVIEW")
    seal = Zone(name="seal", view="main", box=(0.5, 0, 0.5, 1), smallest_px=4, verdict="REJECT")
    places = located(*((seal, rim) if first == "seal" else (rim, seal)), top_k=200)
    both = spot(9, slice(4, 8), slice(4, 8)) + spot(3, slice(4, 8), slice(24, 28))
    part = one(both, places, 0.1)
    assert (part.score, part.review, part.zone, part.review_zone) == (3, 9, "seal", "rim")
    found, reason = decide(part.score, LIMITS, part.review, part.zone, part.review_zone)
    assert found is Verdict.REJECT and str(reason).endswith("zone 'seal'")
    alone = one(spot(9, slice(4, 8), slice(4, 8)), places, 0.1)
    found, reason = decide(alone.score, LIMITS, alone.review, alone.zone, alone.review_zone)
    assert found is Verdict.REVIEW and str(reason).endswith("zone 'rim'")


def test_a_rule_never_lowers_a_score() -> None:
    rule = Zone(name="a", view="main", box=(0, 0, 1, 1), smallest_px=1e6, verdict="REJECT")
    random = np.random.default_rng(1)
    for _ in range(20):
        values = random.random((TILE, TILE)).astype(np.float32)
        part = one(values, located(rule, top_k=5))
        assert part.score == values.max()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_highest_region_is_the_highest(seed: int, least: int) -> None:
    values = cv2.GaussianBlur(np.random.default_rng(seed).random((16, 16)).astype(np.float32), (3, 3), 0)
    zone = Zone(name="z", box=(0, 0, 1, 1), smallest_px=least)
    fits = []
    for level in np.unique(values):
        _, _, stats, _ = cv2.connectedComponentsWithStats((values >= level).astype(np.uint8), connectivity=8)
        if (stats[1:, cv2.CC_STAT_AREA] >= least).any():
            fits.append(float(level))
    everywhere = np.ones(values.shape, bool)
    assert highest_region(values, everywhere, -1.0, zone, (1, 1), None) == max(fits)
    assert highest_region(values, everywhere, 5.0, zone, (1, 1), None) == 5.0
    over = max(fits) - 0.05
    assert highest_region(values, everywhere, over, zone, (1, 1), None) == max(fits)
    by_length = Zone(name="z", box=(0, 0, 1, 1), smallest_mm=1)
    assert highest_region(values, everywhere, 0.0, by_length, (1, 1), 1.0) == values.max()


def test_sizes_in_their_units() -> None:
    def zone(**size: float) -> Zone:
        return Zone(name="z", box=(0, 0, 1, 1), **size)

    assert counts(None, None, 0, 0) and counts(zone(), None, 0, 0)
    assert counts(zone(smallest_px=4), None, 4, 2) and not counts(zone(smallest_px=4), None, 3.9, 2)
    assert counts(zone(smallest_mm2=1), 0.5, 4, 2) and not counts(zone(smallest_mm2=1), 0.5, 3.9, 2)
    assert counts(zone(smallest_mm=1), 0.5, 1, 2) and not counts(zone(smallest_mm=1), 0.5, 99, 1.9)


def test_regions_under_the_smallest_size_are_left_out_and_name_their_zone() -> None:
    zone = Zone(name="rim", view="main", box=(0, 0, 0.5, 1), smallest_mm2=10)
    values = spot(3, slice(2, 4), slice(2, 4)) + spot(4, slice(10, 14), slice(2, 6)) + spot(5, 8, 28)
    part = one(values, located(zone))
    found = find_regions(part, 1.0, ONE, located(zone))
    assert [(region.zone, region.peak) for region in found] == [(None, 5.0), ("rim", 4.0)]
    assert found[1].area_mm2 == 16.0


def test_level_cuts_where_the_map_is_usually_low_and_not_where_it_is_high() -> None:
    middle, spread = np.zeros((4, 4), np.float32), np.full((4, 4), 0.1, np.float32)
    middle[:, :2], spread[:, :2] = 3.0, 1.0  # a textured half
    places = located(level=Level(middle, spread))
    values = spot(4, slice(4, 6), slice(4, 6)) + spot(1, slice(20, 22), slice(24, 26))
    part = one(values, places)
    found = find_regions(part, 2.0, ONE, places, region_level=5.0)
    assert [(region.peak, round(region.level or 0, 3)) for region in found] == [(1.0, 10.0)]
    assert [region.peak for region in find_regions(part, 2.0, ONE)] == [4.0]


def test_tiles_are_scored_where_they_overlap() -> None:
    recipe = Recipe(tile_hw=(TILE, TILE), views=[View(tiling=Tiling(columns=2, overlap_px=8))])
    shape = map_shape(recipe.views[0], recipe, (TILE // 2, TILE // 2))
    keep = np.ones(recipe.canvas_hw(recipe.views[0]), bool)
    keep[:, 24:32] = False  # the overlap
    places = Located(recipe, (16, 16), Places(top_k=1), {"main": Blank(keep, keep.astype(np.uint8))}, {})
    maps = np.zeros((2, 16, 16), np.float32)
    maps[0, :, 12:], maps[1, :, :4], maps[1, 3, 9] = 7, 7, 2
    part = fuse(np.array([7, 7], np.float32), maps, recipe, (32, 56), places)
    assert part.score == 2 and part.maps[0].values.shape == shape and part.maps[0].values.max() == 2


def test_top_mean() -> None:
    values = np.arange(10, dtype=np.float32).reshape(2, 5)
    assert (top_mean(values, 1), top_mean(values, 2), top_mean(values, 99)) == (9, 8.5, 4.5)
    values[0, 0] = np.nan
    assert np.isnan(top_mean(values, 1)) and np.isnan(top_mean(values, 3))


def test_a_pixel_that_a_mask_touches_is_not_inspected() -> None:
    keep = np.ones((100, 60), bool)
    keep[49, 29] = False
    small = whole_only(keep, (10, 6))
    assert small.sum() == 59 and not small[4, 2]
    assert not whole_only(small, (100, 60))[40:50, 20:30].any()
    drawn = fill_outline(Outline(box=(0.25, 0.5, 0.5, 0.25)), (8, 8))
    assert drawn[4:6, 2:6].all() and drawn.sum() <= 24


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "expected one of box, polygon"),
        ({"box": (0, 0, 1, 1), "polygon": [(0, 0), (1, 0), (0, 1)]}, "expected one of"),
        ({"box": (10, 10, 50, 50)}, "size_px for pixels"),
        ({"box": (10, 10, 100, 50), "size_px": (64, 64)}, "leaves the view"),
        ({"box": (0.5, 0.5, 0, 0.1)}, "no area"),
        ({"box": (float("nan"), 0, 1, 1)}, "leaves the view"),
        ({"polygon": [(0, 0), (1, 1)]}, "at least 3"),
    ],
)
def test_outlines_that_make_no_sense(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Outline.model_validate(fields)


def test_pixels_are_of_the_picture_that_is_named() -> None:
    assert Outline(box=(32, 16, 32, 16), size_px=(64, 32)).points() == [(0.5, 0.5), (1, 0.5), (1, 1), (0.5, 1)]
    with pytest.raises(ValidationError, match="box, polygon, picture"):
        Mask()


def test_zones_that_make_no_sense() -> None:
    with pytest.raises(ValidationError, match="expected one of smallest_mm2"):
        Zone(name="z", box=(0, 0, 1, 1), smallest_mm2=1, smallest_px=1)
    with pytest.raises(ValidationError, match="needs the smallest region"):
        Zone(name="z", box=(0, 0, 1, 1), verdict="REJECT")
    with pytest.raises(ValidationError, match="share a name"):
        Places(zones=[Zone(name="z", box=(0, 0, 1, 1)), Zone(name="z", box=(0, 0, 1, 1))])
    inner, outer = Zone(name="in", box=(0.4, 0.4, 0.1, 0.1)), Zone(name="out", box=(0, 0, 1, 1))
    located(inner, outer)
    with pytest.raises(ValueError, match="'in' lies wholly in zones before it"):
        located(outer, inner)


def test_the_calibration_of_older_bundles_keeps_its_id_and_places_change_it() -> None:
    limits = Thresholds(
        reject=1.5,
        review=1.0,
        map=2.0,
        method="m",
        false_reject_rate=0.05,
        review_rate=0.1,
        groups=30,
        images=30,
        engine="e",
        expected_low=0.01,
        expected_high=0.1,
        promise="p",
    )
    bounds = QualityBounds(
        views={"main": {"mean": Bounds(low=1, high=2)}}, likeness_thumb={"main": [0.0] * 4}, samples=3
    )
    manifest = Manifest.model_construct(thresholds=limits, quality=bounds, files={}, places=None)
    assert manifest.calibration_id() == "9401fb7f9a00a840"
    ids = {manifest.calibration_id()}
    for places in (Places(), Places(top_k=3), Places(zones=[Zone(name="z", box=(0, 0, 1, 1))])):
        ids.add(manifest.model_copy(update={"places": places}).calibration_id())
    for role in ("level.0", "mask.0", "fill.0"):
        for letter in "ab":
            entry = {"path": "x.npy", "sha256": letter * 64, "size": 1}
            with_file = Manifest.model_construct(
                thresholds=limits, quality=bounds, files={role: FileEntry(**entry)}, places=None
            )
            ids.add(with_file.calibration_id())
    ids.add(
        Manifest.model_construct(
            thresholds=limits.model_copy(update={"region_level": 3.0}), quality=bounds, files={}, places=None
        ).calibration_id()
    )
    assert len(ids) == 1 + 3 + 6 + 1
