"""What the tests that need a card leave behind: a line for each run, and never instead of an earlier one."""

from __future__ import annotations

import json
from pathlib import Path

from tests.gpu.conftest import write


def test_a_further_run_is_a_further_line(tmp_path: Path) -> None:
    first = write(tmp_path, {"test_a": "passed"})
    assert write(tmp_path, {"test_a": "failed"}) == first
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert [row["outcomes"] for row in rows] == [{"test_a": "passed"}, {"test_a": "failed"}]
    assert all(row["when"] and row["machine"]["host"] for row in rows)
