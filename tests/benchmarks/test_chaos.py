"""The page's table of faults is that of the figures."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.chaos import COMMIT, is_zero, kept, table
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


def test_only_rows_of_the_same_code_that_came_to_an_end_are_kept(tmp_path: Path) -> None:
    zero = dict.fromkeys(("unaccounted", "duplicates", "false_ok"), 0)
    rows = [
        {"fault": "done", "commit": COMMIT, **zero},
        {"fault": "failed", "commit": COMMIT, "failed": "TimeoutError"},
        {"fault": "of before", "commit": "0123456789ab", **zero},
    ]
    path = tmp_path / "chaos.json"
    assert kept(path) == []
    path.write_text(json.dumps({"rows": rows}))
    assert kept(path) == rows[:1]
    assert [is_zero(row) for row in [*rows, rows[0] | {"false_ok": 1}]] == [True, False, True, False]
