"""Recipe, bounds and thresholds: what is accepted, and which sentence refuses the rest."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from contract.recipe import Bounds, Recipe, Thresholds, Tiling, View

LIMITS = {"reject": 2.0, "map": 1.0, "method": "m", "false_reject_rate": 0.05, "groups": 3, "images": 3, "engine": "e"}


def test_tiles_and_canvas() -> None:
    view = View(tiling=Tiling(rows=2, columns=3, overlap_px=8))
    recipe = Recipe(tile_hw=(64, 32), views=[view, View(name="second")])
    assert recipe.tiles == 7
    assert recipe.canvas_hw(view) == (120, 80)
    assert recipe.canvas_hw(recipe.views[1]) == (64, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": [{"name": "a"}, {"name": "a"}]}, "share a name"),
        ({"views": [{"tiling": {"columns": 2, "overlap_px": 64}}]}, "overlap 64 px is not below the tile"),
        ({"views": [{"region": (0.5, 0, 0.6, 1)}]}, "leaves the part"),
        ({"views": [{"region": (0, 0, 0, 1)}]}, "leaves the part"),
        ({"views": []}, "at least 1"),
        ({"channels": 4}, "1 or 3"),
        ({"tile_hw": (4, 64)}, "greater than or equal to 8"),
        ({"tile_hw": (64, 8192)}, "less than or equal to 4096"),
        ({"tiling": 3}, "Extra inputs"),
        ({"views": [{"mm_per_px": 0}]}, "greater than 0"),
        ({"views": [{"tiling": {"rows": 17}}]}, "less than or equal to 16"),
    ],
)
def test_recipe_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(fields)


def test_bounds_are_closed() -> None:
    both = Bounds(low=1.0, high=2.0)
    assert both.breach(1.0) is both.breach(2.0) is None
    assert both.breach(0.99) == "0.99 below 1"
    assert both.breach(2.01) == "2.01 above 2"
    assert Bounds().breach(1e30) is None


@pytest.mark.parametrize(
    "change",
    [{"review": 2.1}, {"false_reject_rate": 0.0}, {"false_reject_rate": 1.0}, {"groups": 0}, {"surplus": 1}],
)
def test_thresholds_are_refused(change: dict[str, Any]) -> None:
    Thresholds.model_validate({**LIMITS, "review": 2.0})
    with pytest.raises(ValidationError):
        Thresholds.model_validate({**LIMITS, **change})
