"""Bounds of a usable picture: good parts stay inside, and what a defect raises is not bounded above."""

from __future__ import annotations

import numpy as np

from calibration.quality import MARGINS, bounds_from, see
from contract.preprocess import MEASURES, SHARPNESS, Gate, prepare
from contract.recipe import Recipe, View
from tests.bundles import draw_part

RECIPE = Recipe(views=[View(name="left", region=(0, 0, 0.6, 1)), View(name="right", region=(0.4, 0, 0.6, 1))])


def pictures(numbers: range, recipe: Recipe = RECIPE) -> list[np.ndarray]:
    return [draw_part(number, colour=recipe.channels == 3) for number in numbers]


def test_every_measure_has_a_margin() -> None:
    assert set(MARGINS) == set(MEASURES)


def test_good_parts_not_seen_before_stay_inside() -> None:
    for recipe in (RECIPE, Recipe(channels=3)):
        bounds = bounds_from([see(prepare(part, recipe), part.shape[:2]) for part in pictures(range(40), recipe)])
        assert bounds.samples == 40
        assert set(bounds.views) == {view.name for view in recipe.views}
        gate = Gate(bounds)
        faults = [gate.check(prepare(p, recipe), p.shape[:2])[1] for p in pictures(range(1000, 1200), recipe)]
        assert [fault for fault in faults if fault] == []


def test_what_a_defect_raises_is_open_above() -> None:
    bounds = bounds_from([see(prepare(part, RECIPE), part.shape[:2]) for part in pictures(range(20))])
    for view in bounds.views.values():
        assert {view[name].high for name in SHARPNESS} == {None}


def test_one_flat_picture_makes_bounds() -> None:
    flat = np.full((80, 80), 90, np.uint8)
    bounds = bounds_from([see(prepare(flat, RECIPE), flat.shape)])
    assert Gate(bounds).check(prepare(flat, RECIPE), flat.shape)[1] is None
