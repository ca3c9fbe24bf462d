"""A large picture on its way, either side killed: it goes on from what the host holds, and comes whole."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from contract.event import CHUNK_BYTES, Attachment, part_ref
from edge_runtime.emitter import Emitter
from edge_runtime.settings import HostLink
from edge_runtime.spool import Draft, Spool
from plugin.partials import FOLDER
from tests.plugin.synthetic import HostProcess
from tests.processes import until

CHUNKS = 160
SIZE = CHUNKS * CHUNK_BYTES
EDGE = """
import sys, time
from pathlib import Path
import zmq
from edge_runtime.emitter import Emitter
from edge_runtime.settings import HostLink
from edge_runtime.spool import Spool
emitter = Emitter(Spool(Path(sys.argv[1])), HostLink(endpoint=sys.argv[2]), zmq.Context())
emitter.start()
time.sleep(600)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostProcess]:
    made = HostProcess(tmp_path)
    made.start()
    yield made
    made.end(signal.SIGKILL)


@pytest.fixture
def spooled(tmp_path: Path) -> str:
    """A spool with one large picture in it; its sha256."""
    data = os.urandom(SIZE)
    reference = part_ref("image", data, codec="png", shape=(1, 1))
    header = Attachment(
        edge_id="edge-1", spool_id="-", seq=1, run_id="-", t_wall_ns=1, part_id="p1", result_seq=1, parts=(reference,)
    )
    spool = Spool(tmp_path / "spool.sqlite")
    spool.append([Draft(header, (data,))])
    spool.close()
    return hashlib.sha256(data).hexdigest()


def held(folder: Path) -> int:
    """Bytes of the picture on the host's disk."""
    sizes = [path.stat().st_size for path in (folder / "state" / FOLDER).glob("*/*")]
    return sum(sizes)


def at_a_third(folder: Path) -> None:
    """Wait in small steps: the whole takes but a second."""
    deadline = time.monotonic() + 60
    while held(folder) < SIZE // 3:
        assert time.monotonic() < deadline, "the picture does not come"
        time.sleep(0.001)


def edge_process(tmp_path: Path, host: HostProcess) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", EDGE, str(tmp_path / "spool.sqlite"), host.endpoint])


def came(tmp_path: Path, sha256: str) -> bool:
    return (tmp_path / "state" / "blobs" / sha256[:2] / sha256).exists()


def test_after_a_kill_of_either_side_it_goes_on_from_what_the_host_holds(
    host: HostProcess, spooled: str, tmp_path: Path
) -> None:
    edge = edge_process(tmp_path, host)
    try:
        at_a_third(tmp_path)
    finally:
        edge.kill()
        edge.wait()
    host.end(signal.SIGKILL)
    before = held(tmp_path)
    assert SIZE // 3 <= before < SIZE, "it was killed on the way"
    host.start()
    edge = edge_process(tmp_path, host)
    try:
        until(lambda: came(tmp_path, spooled), "the picture is stored")
        until(lambda: held(tmp_path) == 0, "nothing unfinished is left")
    finally:
        edge.kill()
        edge.wait()
    counts = host.get("/healthz")["receiver"]
    left = (SIZE - before) // CHUNK_BYTES
    assert left <= counts["chunks"] <= left + 10, "one chunk to learn where, the rest, and what was sent again"
    assert counts["failed"] == counts["refused"] == 0


def test_the_host_alone_killed_on_the_way(host: HostProcess, spooled: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite")
    with zmq.Context() as context:
        emitter = Emitter(spool, HostLink(endpoint=host.endpoint), context)
        emitter.start()
        try:
            at_a_third(tmp_path)
            host.end(signal.SIGKILL)
            before = held(tmp_path)
            assert SIZE // 3 <= before < SIZE
            host.start()
            assert emitter.wait_until_empty(60)
        finally:
            emitter.stop()
            spool.close()
    assert came(tmp_path, spooled)
    left = (SIZE - before) // CHUNK_BYTES
    assert left <= host.get("/healthz")["receiver"]["chunks"] <= left + 10
