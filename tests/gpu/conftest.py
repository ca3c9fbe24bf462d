"""Keeps what the tests that need a card gave, under the card's name: one line more whenever one of them has run."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu"
outcomes: dict[str, str] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Note what became of each test here; a test that was skipped has not run."""
    report = yield
    if "gpu" in item.keywords and not report.skipped and (report.when == "call" or report.failed):
        outcomes[item.name] = report.outcome
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Add a line to the card's file; nothing where no test has run."""
    if outcomes:
        write(RESULTS, outcomes)


def write(folder: Path, found: dict[str, str]) -> Path:
    """Add the outcomes, with the machine and the time that they are of, as a line of JSON; returns the file."""
    from edge_runtime.acceptance import machine

    here = machine()
    card = here["graphics_card"]
    name = card["name"] if isinstance(card, dict) else "none"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.jsonl"
    when = datetime.now(UTC).isoformat(timespec="seconds")
    with path.open("a") as file:
        file.write(json.dumps({"when": when, "machine": here, "outcomes": found}) + "\n")
    return path
