"""A host of one's own for a test, or one for a file of tests; each is stopped at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plugin.database import Place, place_of
from tests.plugin.station import make_line as make_line
from tests.plugin.synthetic import HostProcess
from tests.plugin.synthetic import make_dealer as make_dealer
from tests.postgres import PostgreSQL


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """One real server for all tests; each takes a database of its own."""
    server = PostgreSQL()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place for a store, in either database."""
    if request.param == "sqlite":
        return tmp_path / "store.sqlite"
    server: PostgreSQL = request.getfixturevalue("postgres")
    return place_of(tmp_path, server.database(), None)


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., HostProcess]]:
    made: list[HostProcess] = []

    def make(**options: object) -> HostProcess:
        host = HostProcess(tmp_path, **options)  # type: ignore[arg-type]
        made.append(host)
        host.start()
        return host

    yield make
    for host in made:
        host.end()


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    host = HostProcess(tmp_path_factory.mktemp("host"), deadline_ms=60_000)
    host.start()
    yield host
    assert host.end() == 0
