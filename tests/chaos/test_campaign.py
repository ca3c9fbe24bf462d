"""Both sides killed at named points while parts pass: each part is accounted for, and no PASS is read that is none."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.chaos.campaign import POINTS, Campaign, schedule


@pytest.mark.parametrize("name", POINTS)
def test_every_point_is_a_function_of_the_product(name: str) -> None:
    module, _, path = POINTS[name].function.partition(":")
    found = importlib.import_module(module)
    for step in path.split("."):
        found = getattr(found, step)
    assert callable(found)
    assert POINTS[name].when in ("before", "after") and POINTS[name].side in ("edge", "host")


def test_a_few_kills_on_each_side(tmp_path: Path, bundle: Path) -> None:
    points = schedule(len(POINTS), 1)
    chosen = [name for who in ("edge", "camera", "host") for name in [n for n in points if n.startswith(who)][:3]]
    campaign = Campaign(tmp_path, bundle, chosen, seed=4)
    found = campaign.run(limit_s=200)
    assert sum(campaign.kills.values()) == len(chosen)
    assert found.faults == (0, 0, 0)
    assert found.results > 0 and found.passes > 0
    assert found.results + found.missed + found.gap == found.parts
