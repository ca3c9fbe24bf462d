"""Faults of every kind while parts pass: some on one line in the short run; each by itself, longer, in the long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS, GEAR, absent, forbidden, strike
from tests.needs import lacking

PLAIN = ("clocks set by hours on both sides", "host frozen", "camera hangs", "engine hangs", "no memory for frames")
PRIVILEGED = (
    "edge: disk full",
    "edge: power cut, log torn at a random byte",
    "network cut in a message",
    "host: power cut",
)
LONGER = {"host away": 40.0, "network cut, nobody is told": 10.0}
"""Minutes away, and so on; the others last three times as long as in the short run."""


def have(names: tuple[str, ...], folder: Path) -> None:
    """Skip the test where the machine lacks a program, or does not let us."""
    folder.mkdir()
    for gear in {need for name in names for need in FAULTS[name].gear}:
        if (program := absent(gear)) is not None:
            lacking(f"{program} is not installed, which the {gear} needs")
        if (reason := forbidden(gear, folder)) is not None:
            pytest.skip(reason)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_says_what_it_does(name: str) -> None:
    assert FAULTS[name].strike.__doc__
    assert set(FAULTS[name].gear) <= set(GEAR)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("names", [PLAIN, PRIVILEGED], ids=["plain", "disk and network"])
def test_several_faults_on_one_line(tmp_path: Path, bundle: Path, names: tuple[str, ...]) -> None:
    have(names, tmp_path / "try")
    found, _ = strike(tmp_path, bundle, names, seed=7)
    assert found.faults == (0, 0, 0), found
    assert found.results > 0 and found.passes > 0


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_by_itself_and_longer(tmp_path: Path, bundle: Path, name: str) -> None:
    have((name,), tmp_path / "try")
    found, _ = strike(tmp_path, bundle, [name] * 2, seed=11, longer=LONGER.get(name, 3.0))
    assert found.faults == (0, 0, 0), found
    assert found.results > 0 and found.passes > 0
