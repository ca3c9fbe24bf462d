"""Every connector of the table passes the kit with a real controller; and the kit finds what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.connectors.kit import CHECKS, run
from plugin.dispatch import CONNECTORS
from tests.plugin.peers import PEERS


def test_every_connector_of_the_table_has_a_peer() -> None:
    assert sorted(PEERS) == sorted(CONNECTORS)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("scheme", sorted(PEERS))
def test_it_passes_the_kit(scheme: str, check: str, tmp_path: Path) -> None:
    lacking = run(check, PEERS[scheme](tmp_path), tmp_path)
    assert lacking is None or scheme == "loop", lacking
