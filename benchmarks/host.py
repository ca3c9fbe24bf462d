"""The host by itself, a real process: from an event on the wire to the controller's register, and into the store.

event_to_register_ms   a verdict leaves a ZeroMQ socket until a Modbus read shows its sequence number, at 200 verdicts a
                       second, each announced before; the read's own round trip and up to a millisecond of polling are
                       in it
modbus_round_trip_ms   such a read alone, in the same run
next_part_page_ms      the page of the next part after a verdict, by HTTP, median of 200 (89 of 1000 parts), from a
                       store of so many parts, of which one in ten waits to be judged;
                       verdict_and_next_part_page_ms with the verdict's own request
events_per_s_sqlite    events (announcements and verdicts in turn, with images an attachment for every tenth part)
                       committed to store and ledger and acknowledged, per second, by number of edges that send as fast
                       as the host takes them; all on this machine, the clients too
events_per_s_postgresql the same into a PostgreSQL server of Debian's package, synced as it is by default
bare_sqlite_rows_per_s the same headers inserted into one plain table, 64 a transaction, synced to disk: what disk and
                       library allow

    python -m benchmarks.host --json benchmarks/results/host.json
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import socket
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import zmq

from benchmarks.common import machine, parser, write
from benchmarks.host_edges import dealer, envelope, header, ingestion
from benchmarks.host_pages import PAGES, WARM, fill, medians, walk
from contract.event import Result, Trigger, to_frames
from plugin.connectors.registers import SEQ_MAX, WORDS
from tests.postgres import PostgreSQL

RATE = 200
SECONDS = 60.0
EVENTS = 20_000
ROUNDS = 3
EDGES = (1, 10, 50)
PARTS = (1000, 100_000)
BATCH = 64


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=SECONDS, help="how long verdicts are timed")
    made.add_argument("--events", type=int, default=EVENTS, help="events of one round of ingestion")
    made.add_argument("--rounds", type=int, default=ROUNDS)
    made.add_argument("--edges", type=int, nargs="+", default=EDGES)
    made.add_argument("--parts", type=int, nargs="+", default=PARTS, help="in the stores whose pages are timed")
    made.add_argument("--pages", type=int, default=PAGES, help="timed in each of them")
    options = made.parse_args()
    before = machine()
    latencies, trips = latency(options.seconds)
    shown = pages(tuple(options.parts), options.pages)
    edges = tuple(options.edges)
    sqlite = rates(options.events, edges, options.rounds, None)
    server = PostgreSQL()
    try:
        postgresql = rates(options.events, edges, options.rounds, server)
    finally:
        server.close()
    bare = statistics.median(plain_sqlite(options.events) for _ in range(options.rounds))
    write(
        options.json,
        {
            "question": (__doc__ or "").splitlines()[0],
            "rate_per_s": RATE,
            "verdicts": len(latencies),
            "event_to_register_ms": percentiles(latencies),
            "modbus_round_trip_ms": percentiles(trips),
            **shown,
            "pages": options.pages,
            "events": options.events,
            "rounds": options.rounds,
            "events_per_s_sqlite": sqlite,
            "events_per_s_postgresql": postgresql,
            "bare_sqlite_rows_per_s": round(bare),
            "ratio_to_bare_sqlite": round(sqlite[str(edges[0])]["without_images"] / bare, 3),
        },
        before,
    )


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) for name, share in at.items()}


class Host:
    """A real ``flawline host run`` in a folder of its own."""

    def __init__(self, connector: str | None = None, store: str | None = None, parts: int = 0) -> None:
        """``parts``: already in its store."""
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        if parts:
            fill(folder / "state", parts)
        database = "" if store is None else f'[store]\nurl = "{store}"\n'
        connectors = "" if connector is None else f'[[connectors]]\nurl = "{connector}"\n'
        (folder / "host.toml").write_text(
            f'state_dir = "state"\n{database}[events]\nbind = "tcp://127.0.0.1:*"\n[http]\nport = 0\n'
            f'[[lines]]\nid = "line-1"\ndeadline_ms = 60000\n{connectors}'
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flawline", "host", "run", str(folder / "host.toml")], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        if b"ready" not in self._process.stdout.readline():
            raise SystemExit("the host did not start")
        self.endpoint = (folder / "state" / "endpoint").read_text().strip()
        self.url = json.loads((folder / "state" / "http.json").read_text())["url"]

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)
        self._folder.cleanup()


def latency(seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds from each verdict's sending to its register, and of the bare Modbus reads between."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host = Host(f"modbus://127.0.0.1:{port}?ack=0")
    parts = int(RATE * seconds)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    sender = spawn.Process(target=send_at_rate, args=(host.endpoint, parts, theirs), daemon=True)
    try:
        with socket.create_connection(("127.0.0.1", port)) as modbus:
            modbus.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sender.start()
            seen, trips = watch_head(modbus, parts, seconds + 30.0)
        sent = ours.recv()
        sender.join(10)
    finally:
        host.close()
    return [(seen[part] - sent[part]) / 1e6 for part in range(1, parts + 1)], trips


def send_at_rate(endpoint: str, parts: int, report: Any) -> None:
    """A process of its own: announces each part, 3 ms later its verdict; reports when each verdict was sent."""
    sent = {}
    with zmq.Context() as context:
        edge = dealer(context, endpoint)
        start = time.monotonic() + 0.5
        for part in range(1, parts + 1):
            time.sleep(max(0.0, start + part / RATE - time.monotonic()))
            edge.send_multipart(to_frames(header(part, 2 * part, Trigger), (), envelope()))
            verdict = header(part, 2 * part + 1, Result)
            time.sleep(0.003)
            sent[part] = time.monotonic_ns()
            edge.send_multipart(to_frames(verdict, (), envelope(4.0)))
            while edge.poll(0):
                edge.recv_multipart()
        report.send(sent)
        edge.close(2000)


def watch_head(modbus: socket.socket, parts: int, timeout_s: float) -> tuple[dict[int, int], list[float]]:
    """When each number first stood in the head register, and how long each read took."""
    seen: dict[int, int] = {}
    trips = []
    last = 0
    end = time.monotonic() + timeout_s
    while last < parts:
        if time.monotonic() > end:
            raise SystemExit(f"after {timeout_s:.0f} s only {last} of {parts} verdicts stood in the register")
        begun = time.monotonic_ns()
        head = read_word(modbus, WORDS["head"])
        now = time.monotonic_ns()
        trips.append((now - begun) / 1e6)
        for _ in range((head - last) % SEQ_MAX):
            last += 1
            seen[last] = now
        time.sleep(0.001)
    return seen, trips


def read_word(modbus: socket.socket, address: int) -> int:
    modbus.sendall(struct.pack(">HHHBBHH", 1, 0, 6, 1, 3, address, 1))
    answer = b""
    while len(answer) < 11:
        answer += modbus.recv(11 - len(answer))
    return int.from_bytes(answer[9:11])


def rates(events: int, edges: tuple[int, ...], rounds: int, server: PostgreSQL | None) -> dict[str, dict[str, int]]:
    """Medians of events per second by number of edges, without and with images."""
    found: dict[str, dict[str, int]] = {}
    for count in edges:
        found[str(count)] = {}
        for name, images in (("without_images", False), ("with_images", True)):
            each = []
            for _ in range(rounds):
                host = Host(store=None if server is None else server.database())
                try:
                    each.append(ingestion(host.endpoint, count, events, images))
                finally:
                    host.close()
            found[str(count)][name] = round(statistics.median(each))
    return found


def pages(parts: tuple[int, ...], asked: int) -> dict[str, dict[str, float]]:
    """Medians over stores of so many parts."""
    alone: dict[str, float] = {}
    whole: dict[str, float] = {}
    for count in parts:
        host = Host(parts=count)
        try:
            most = count // 10 - WARM - 1  # so many wait, and the last one leads to the end of the queue
            alone[str(count)], whole[str(count)] = medians(walk(host.url, min(asked, most)))
        finally:
            host.close()
    return {"next_part_page_ms": alone, "verdict_and_next_part_page_ms": whole}


def plain_sqlite(events: int) -> float:
    """Rows per second of SQLite's own: the same headers, one table, WAL, synced at each transaction."""
    rows = [(n, header(n // 2, n, Trigger if n % 2 == 0 else Result).decode()) for n in range(2, events + 2)]
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder) / "plain.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, header TEXT)")
        start = time.monotonic()
        for first in range(0, len(rows), BATCH):
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO events VALUES (?, ?)", rows[first : first + BATCH])
            connection.execute("COMMIT")
        took = time.monotonic() - start
        connection.close()
    return events / took


if __name__ == "__main__":
    main()
