"""Both sides killed at named points while parts pass: each part is accounted for, and no PASS is read that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import POINTS, WHEN, Campaign, schedule
from tests.chaos.scene import SIDES, Scene


@pytest.mark.timeout(600)
def test_every_point_is_a_function_that_is_called_while_parts_pass(tmp_path: Path, bundle: Path) -> None:
    noted = tmp_path / "noted"
    noted.mkdir()
    functions = {point.function for point in POINTS.values()}
    scene = Scene(tmp_path, bundle, 5, 1000)
    scene.plc.start()
    try:
        for side in SIDES:
            scene.start(side, {"FLAWLINE_NOTE": ",".join([str(noted), *functions])})
        scene.wait(lambda: {each.name for each in noted.iterdir()} == functions, "every one is called")
    finally:
        scene.close()
    assert {(point.side, point.when) for point in POINTS.values()} <= {(s, w) for s in SIDES for w in WHEN}


@pytest.mark.timeout(1200)
def test_a_few_kills_on_each_side(tmp_path: Path, bundle: Path) -> None:
    points = schedule(len(POINTS), 1)
    chosen = [name for who in ("edge", "camera", "host") for name in [n for n in points if n.startswith(who)][:3]]
    campaign = Campaign(tmp_path, bundle, chosen, seed=4)
    found = campaign.run(limit_s=600)
    assert sum(campaign.kills.values()) == len(chosen)
    assert found.faults == (0, 0, 0)
    assert found.results > 0 and found.passes > 0
    assert found.results + found.missed + found.gap == found.parts
