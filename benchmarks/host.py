"""The host by itself, a real process: from an event on the wire to the controller's register, and into the store.

event_to_register_ms   a verdict leaves a ZeroMQ socket until a Modbus read shows its sequence number, at 200 verdicts a
                       second, each announced before; the read's own round trip and up to a millisecond of polling are
                       in it
modbus_round_trip_ms   such a read alone, in the same run
events_per_s_sqlite    events (announcements and verdicts in turn, no images) committed to store and ledger and
                       acknowledged, per second, as fast as the host takes them; parts_per_s is half of it
bare_sqlite_rows_per_s the same headers inserted into one plain table, 64 a transaction, synced to disk: what disk and
                       library allow

    python -m benchmarks.host --json benchmarks/results/host.json
"""

from __future__ import annotations

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
from operator import truediv
from pathlib import Path
from typing import Any

import zmq

from benchmarks.common import machine, parser, write
from contract.event import (
    REPLY,
    Ack,
    Envelope,
    Result,
    Timing,
    Trigger,
    Verdict,
    encode_header,
    to_frames,
)
from plugin.connectors.registers import SEQ_MAX, WORDS

RATE = 200
SECONDS = 60.0
EVENTS = 20_000
ROUNDS = 3
WINDOW = 512
BATCH = 64


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=SECONDS, help="how long verdicts are timed")
    made.add_argument("--events", type=int, default=EVENTS, help="events of one round of ingestion")
    options = made.parse_args()
    before = machine()
    latencies, trips = latency(options.seconds)
    ingested, bare = [], []
    for _ in range(ROUNDS):
        ingested.append(ingestion(options.events))
        bare.append(plain_sqlite(options.events))
    rate = statistics.median(ingested)
    write(
        options.json,
        {
            "question": (__doc__ or "").splitlines()[0],
            "rate_per_s": RATE,
            "verdicts": len(latencies),
            "event_to_register_ms": percentiles(latencies),
            "modbus_round_trip_ms": percentiles(trips),
            "events": options.events,
            "rounds": ROUNDS,
            "events_per_s_sqlite": round(rate),
            "events_per_s_sqlite_rounds": [round(each) for each in ingested],
            "parts_per_s": round(rate / 2),
            "bare_sqlite_rows_per_s": round(statistics.median(bare)),
            "ratio_to_bare_sqlite": round(statistics.median(map(truediv, ingested, bare)), 3),
        },
        before,
    )


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) for name, share in at.items()}


class Host:
    """A real ``flawline host run`` in a folder of its own."""

    def __init__(self, connector: str | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        connectors = "" if connector is None else f'[[connectors]]\nurl = "{connector}"\n'
        (folder / "host.toml").write_text(
            'state_dir = "state"\n[events]\nbind = "tcp://127.0.0.1:*"\n[http]\nport = 0\n'
            f'[[lines]]\nid = "line-1"\ndeadline_ms = 60000\n{connectors}'
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flawline", "host", "run", str(folder / "host.toml")], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        if b"ready" not in self._process.stdout.readline():
            raise SystemExit("the host did not start")
        self.endpoint = (folder / "state" / "endpoint").read_text().strip()

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)
        self._folder.cleanup()


def header(part: int, seq: int, kind: type[Trigger] | type[Result]) -> bytes:
    fields: dict[str, Any] = {
        "edge_id": "edge-1",
        "spool_id": "spool-1",
        "run_id": "run-1",
        "seq": seq,
        "t_wall_ns": time.time_ns(),
        "part_id": f"top-run-{part:06d}",
        "camera_id": "top",
        "trigger_id": part,
        "frame_no": part,
        "timing": Timing(t_capture_ns=time.monotonic_ns()),
    }
    if kind is Result:
        verdict = Verdict.REJECT if part % 20 == 0 else Verdict.PASS
        fields |= {
            "verdict": verdict,
            "score": 0.4,
            "threshold": 1.0,
            "recipe": "plate",
            "bundle_id": "plate-1",
            "model_sha256": "ab" * 32,
            "engine": "openvino fp32",
        }
    return encode_header(kind(**fields))


def envelope(age_ms: float = 1.0) -> Envelope:
    return Envelope(age_ms=age_ms, t_sent_ns=time.monotonic_ns(), clock_id="bench")


def dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    made = context.socket(zmq.DEALER)
    made.set(zmq.LINGER, 0)
    made.connect(endpoint)
    return made


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


def ingestion(events: int) -> float:
    """Events per second that a host commits and acknowledges."""
    host = Host()
    messages = [
        to_frames(header(n // 2, n, Trigger if n % 2 == 0 else Result), (), envelope()) for n in range(2, events + 2)
    ]
    try:
        with zmq.Context() as context:
            edge = dealer(context, host.endpoint)
            start = time.monotonic()
            acked = sent = 0
            while acked < events:
                while sent < events and sent - acked < WINDOW:
                    edge.send_multipart(messages[sent])
                    sent += 1
                if not edge.poll(10_000):
                    raise SystemExit("the host acknowledges nothing more")
                reply = REPLY.validate_json(edge.recv_multipart()[1])
                if not isinstance(reply, Ack):
                    raise SystemExit(f"the host refuses: {reply}")
                acked += len(reply.seqs)
            took = time.monotonic() - start
            edge.close(0)
    finally:
        host.close()
    return events / took


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
