"""Every connector of the table passes the kit with a real controller; and the kit finds what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.connectors import kit
from plugin.connectors.kit import CHECKS, KitError, run
from plugin.dispatch import CONNECTORS
from tests.plugin.broken import FAULTS, BrokenPeer
from tests.plugin.peers import PEERS


def test_every_connector_of_the_table_has_a_peer() -> None:
    assert sorted(PEERS) == sorted(CONNECTORS)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("scheme", sorted(PEERS))
def test_it_passes_the_kit(scheme: str, check: str, tmp_path: Path) -> None:
    lacking = run(check, PEERS[scheme](tmp_path), tmp_path)
    assert lacking is None or scheme == "loop", lacking


@pytest.fixture
def _short_and_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONNECTORS, "broken", "tests.plugin.broken:Broken")
    monkeypatch.setattr(kit, "WAIT_S", 2.0)
    monkeypatch.setattr(kit, "ENDED_S", 1.5)


@pytest.mark.usefixtures("_short_and_broken")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_kit_finds(fault: str, tmp_path: Path) -> None:
    with pytest.raises(KitError):
        run(FAULTS[fault], BrokenPeer(fault), tmp_path)


@pytest.mark.usefixtures("_short_and_broken")
def test_the_kit_finds_that_another_connector_was_delayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "NEIGHBOUR_S", 0.0)  # nobody is as quick as that
    with pytest.raises(KitError, match="the connector beside it had 1 after"):
        run("order", BrokenPeer("none"), tmp_path)


@pytest.mark.usefixtures("_short_and_broken")
@pytest.mark.parametrize("check", CHECKS)
def test_the_kit_finds_nothing_where_nothing_is(check: str, tmp_path: Path) -> None:
    assert run(check, BrokenPeer("none"), tmp_path) is None


def test_every_check_finds_something() -> None:
    assert set(FAULTS.values()) == set(CHECKS)
