"""The page's table of faults is that of the figures."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.chaos import table
from tests.chaos.campaign import POINTS
from tests.chaos.faults import FAULTS

ROOT = Path(__file__).parents[2]
ROWS = json.loads((ROOT / "benchmarks/results/chaos.json").read_text())["rows"]


def test_the_page_shows_every_row_of_the_figures() -> None:
    assert table(ROWS) in (ROOT / "docs/chaos.md").read_text(), f"docs/chaos.md should hold\n{table(ROWS)}"


def test_figures_are_of_faults_that_there_are() -> None:
    known = {*POINTS, *FAULTS, "all points in turn, both sides"}
    assert {row["fault"] for row in ROWS} <= known
    assert len({row["fault"] for row in ROWS}) == len(ROWS)
