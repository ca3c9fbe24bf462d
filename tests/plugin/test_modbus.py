"""The Modbus TCP server against libmodbus and mbpoll: one read in one piece, only what may be written, only who may."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from contract.event import LineCode
from plugin.connectors import modbus_server
from plugin.connectors import registers as r
from plugin.connectors.base import LineOutput, Plant, RecipeState
from plugin.connectors.modbus import MAX_CONTROLLERS, Modbus
from plugin.dispatch import make_connector
from plugin.errors import ConfigError, ConnectorError
from tests.plugin.controller import Controller, Master, ModbusError
from tests.plugin.synthetic import until


def output(number: int, code: LineCode = LineCode.PASS, wait_s: float = 60.0) -> LineOutput:
    due_ns = time.monotonic_ns() + int(wait_s * 1e9)
    return LineOutput("line-1", number, "edge-1", f"p{number}", "cam-1", number, code, None, due_ns)


class Rig:
    """A served line whose host is this test."""

    def __init__(self, url: str, folder: Path, lines: tuple[str, ...] = ("line-1",)) -> None:
        self.trouble: str | None = None
        self.counted: list[int] = []
        self.asked: list[int] = []
        self.refuse: str | None = None
        self.failed: list[tuple[int, str]] = []
        connector = make_connector(url, folder)
        assert isinstance(connector, Modbus)
        self.connector = connector
        self.masters: list[Master] = []
        connector.start(
            Plant(
                lines=lines,
                trouble=lambda line: self.trouble,
                last_number=lambda line: 0,
                deadline_ms=lambda line: 1000,
                counted=lambda line, counters, t_ns: self.counted.extend(counters),
                recipe=lambda line: RecipeState(4, 0xCAFE0001),
                select_recipe=self._select,
                fail=lambda output, detail: self.failed.append((output.number, detail)),
            )
        )

    def _select(self, line: str, number: int, done: Callable[[str | None], None]) -> None:
        self.asked.append(number)
        done(self.refuse)

    def master(self) -> Master:
        self.masters.append(Master(self.connector.address))
        return self.masters[-1]

    def close(self) -> None:
        for master in self.masters:
            master.close()
        self.connector.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(url: str = "modbus://127.0.0.1:0", lines: tuple[str, ...] = ("line-1",)) -> Rig:
        made.append(Rig(url, tmp_path, lines))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def test_libmodbus_and_mbpoll_read_what_was_published(serve: Callable[..., Rig]) -> None:
    rig = serve()
    rig.connector.publish(output(1, LineCode.REJECT))
    master = rig.master()
    holding, inputs = master.read(0, r.READ_WORDS), master.read(0, r.READ_WORDS, inputs=True)
    assert holding[r.RING : r.RING + 4] == [1, 0, 1, LineCode.REJECT]
    assert inputs[r.WORDS["head"] :] == holding[r.WORDS["head"] :]
    mbpoll = shutil.which("mbpoll")
    if mbpoll is None:
        pytest.skip("mbpoll is not installed (Debian: apt-get install mbpoll); libmodbus read it")
    host, port = rig.connector.address
    command = [mbpoll, "-m", "tcp", "-p", str(port), "-0", "-r", str(r.RING), "-c", "4", "-1", "-t", "4", str(host)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert said.returncode == 0, said.stdout + said.stderr
    values = [line.split()[-1] for line in said.stdout.splitlines() if line.startswith("[")]
    assert values == ["1", "0", "1", "2"]


def test_no_read_is_torn_while_results_are_published_and_acknowledged(serve: Callable[..., Rig]) -> None:
    rig = serve()
    total, faults, reads = 1500, [], []
    done = threading.Event()

    def watch(master: Master) -> None:
        while not done.is_set():
            words = master.read(0, r.READ_WORDS)
            reads.append(1)
            head, results = words[r.WORDS["head"]], words[r.WORDS["results"]] << 16 | words[r.WORDS["results"] + 1]
            at = r.RING + (head - 1) % r.SLOTS * r.SLOT_WORDS
            if head and (words[at], words[at + 9], results) != (head, head, head):
                faults.append(words)

    watchers = [threading.Thread(target=watch, args=(rig.master(),)) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    controller = Controller(rig.connector.address)
    publisher = threading.Thread(
        target=lambda: [
            rig.connector.publish(output(number, LineCode(number % 4 + 1))) for number in range(1, total + 1)
        ]
    )
    controller.poll()
    publisher.start()
    until(lambda: controller.poll() and len(controller.taken) >= total, 60.0, "every result")
    done.set()
    for thread in (*watchers, publisher):
        thread.join(10)
    controller.master.close()
    assert not faults
    assert len(reads) > 200
    assert not any(watcher.is_alive() for watcher in watchers)
    assert [part.seq for part in controller.taken] == list(range(1, total + 1))
    assert [part.code for part in controller.taken] == [number % 4 + 1 for number in range(1, total + 1)]
    assert controller.skipped == []


def test_only_the_words_for_it_can_be_written(serve: Callable[..., Rig]) -> None:
    rig = serve()
    rig.trouble = "no heartbeat here, so that nothing changes"
    rig.connector.publish(output(1, LineCode.REJECT))
    master = rig.master()
    until(lambda: master.read(r.WORDS["error"], 1) == [1])
    before = master.read(0, r.READ_WORDS)
    for address in (0, 1, 2, 4, r.RING + 3, 199):
        with pytest.raises(ModbusError, match="Illegal data address"):
            master.write(address, 1)
        with pytest.raises(ModbusError, match="Illegal data address"):
            master.write_one(address, 1)
    with pytest.raises(ModbusError, match="Illegal data address"):
        master.write(r.SIZE - 1, 1, 1)
    with pytest.raises(ModbusError, match="Illegal function"):
        master.write_coil(200, True)
    with pytest.raises(ModbusError, match="Illegal data address"):
        master.read(r.SIZE - 1, 2)
    assert master.read(0, r.READ_WORDS) == before
    master.write(r.WRITTEN["acknowledge"], 1)
    master.write_one(r.WRITTEN["controller_heartbeat"], 77)
    assert master.read(r.WORDS["controller_heartbeat_echo"], 1) == [77]
    assert master.read(r.WORDS["acknowledged"], 1) == [1]


def test_the_heartbeat_stops_with_the_lines_inspection_and_goes_on_with_it(serve: Callable[..., Rig]) -> None:
    rig = serve()
    master = rig.master()

    def beat() -> int:
        return master.read(r.WORDS["heartbeat"], 1)[0]

    first = until(beat)
    until(lambda: beat() > first + 2)
    rig.trouble = "edge-1: inference fails"
    until(lambda: master.read(r.WORDS["error"], 1) == [1])
    stopped = beat()
    time.sleep(0.5)  # five beats that do not come
    assert beat() == stopped
    rig.trouble = None
    until(lambda: beat() > stopped)


def test_counted_parts_and_recipes_reach_the_host(serve: Callable[..., Rig]) -> None:
    rig = serve()
    master = rig.master()
    master.write_one(r.WRITTEN["part_counter"], 10)
    master.write_one(r.WRITTEN["part_counter"], 12)
    assert rig.counted == [11, 12]
    rig.refuse = "there is no recipe 9"
    master.write_one(r.WRITTEN["recipe_request"], 9)
    assert rig.asked == [9]
    assert master.read(r.WORDS["recipe_state"], 1) == [r.RECIPE_STATES["refused"]]
    rig.refuse = None
    master.write_one(r.WRITTEN["recipe_request"], 4)
    until(lambda: master.read(r.WORDS["recipe_state"], 1) == [r.RECIPE_STATES["active"]])
    assert master.read(r.WORDS["recipe"], 3) == [4, 0xCAFE, 1]


def test_a_result_that_finds_no_room_is_refused_by_name(serve: Callable[..., Rig]) -> None:
    rig = serve()
    for number in range(1, 9):
        rig.connector.publish(output(number))
    with pytest.raises(ConnectorError, match="not acknowledged"):
        rig.connector.publish(output(9, wait_s=0.02))


def test_garbage_does_not_stop_the_server(serve: Callable[..., Rig]) -> None:
    rig = serve()
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 4096,
        b"\xff" * 600,
        bytes.fromhex("000100000006010300000000"),  # no words at all
        bytes.fromhex("00010000000601030000ffff"),  # too many
        bytes.fromhex("0001000000060110 00c8 0001".replace(" ", "")),  # a write cut short
        bytes.fromhex("000100000002012b"),
        bytes.fromhex("000100000008012b0e0100000000"),
    ):
        with socket.create_connection(rig.connector.address, 5) as raw:
            raw.sendall(garbage)
            raw.settimeout(0.2)
            with suppress(TimeoutError, ConnectionResetError):
                raw.recv(300)
    assert rig.master().read(r.WORDS["version"], 1) == [r.VERSION]


def test_only_controllers_that_are_named_may_connect(serve: Callable[..., Rig]) -> None:
    rig = serve("modbus://127.0.0.1:0?allow=10.1.0.10,10.2.0.0/16")
    with socket.create_connection(rig.connector.address, 5) as raw:
        raw.settimeout(5)
        assert raw.recv(1) == b""
    assert rig.connector.status()["refused"] == 1
    named = serve("modbus://127.0.0.1:0?allow=127.0.0.0/8")
    assert named.master().read(0, 1) == [r.VERSION]


HALF = b"\0"
"""The beginning of a request that never ends."""


def strangers(rig: Rig, count: int, source: str, say: bytes = b"") -> list[socket.socket]:
    """Connections from an address; what they ask is answered before the next comes, or they are closed."""
    made = []
    for _ in range(count):
        made.append(socket.create_connection(rig.connector.address, 5, (source, 0)))
        if say:
            with suppress(ConnectionError):
                made[-1].sendall(say)
                if say != HALF:
                    made[-1].recv(300)
    return made


def ended(peer: socket.socket) -> bool:
    peer.settimeout(5)
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_controller_that_polls_is_not_pushed_out(serve: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    rig = serve()
    plc = rig.master()
    assert plc.read(0, 1) == [r.VERSION]
    came: list[socket.socket] = []
    for source, say in [
        ("127.0.0.2", b""),
        ("127.0.0.3", HALF),
        ("127.0.0.4", frame(1, "0300000001")),
        ("127.0.0.5", frame(1, "0300000001")),
        ("127.0.0.6", frame(1, "0300000001")),
    ]:
        came += strangers(rig, 3 * MAX_CONTROLLERS, source, say)
        assert plc.read(0, 1) == [r.VERSION], "on the connection that it has had all the time"
    status = rig.connector.status()
    assert status["controllers"] == MAX_CONTROLLERS
    assert int(str(status["refused"])) >= 3 * MAX_CONTROLLERS, "everybody polls; the last to come go"
    assert "asked for nothing was closed to make room" in caplog.text
    for each in came:
        each.close()
    until(lambda: rig.connector.status()["controllers"] == 1)


def test_one_address_has_half_of_the_connections(serve: Callable[..., Rig]) -> None:
    rig = serve()
    poll = frame(1, "0300000001")
    greedy = strangers(rig, MAX_CONTROLLERS, "127.0.0.2", poll)
    assert rig.connector.status()["controllers"] == MAX_CONTROLLERS // 2
    assert [ended(each) for each in greedy[MAX_CONTROLLERS // 2 :]] == [True] * (MAX_CONTROLLERS // 2)
    assert rig.master().read(0, 1) == [r.VERSION]
    for each in greedy:
        each.close()


def test_of_silent_ones_the_oldest_makes_room_and_a_controller_that_comes_back_finds_some(
    serve: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = serve()
    silent = strangers(rig, MAX_CONTROLLERS // 2 + 2, "127.0.0.2")
    assert [ended(each) for each in silent[:2]] == [True, True]
    dead = strangers(rig, MAX_CONTROLLERS // 2, "127.0.0.3", frame(1, "0300000001"))
    for each in silent[2:]:
        each.close()
    until(lambda: rig.connector.status()["controllers"] == MAX_CONTROLLERS // 2)
    monkeypatch.setattr(modbus_server, "QUIET_S", 0.0)  # a minute later
    back = strangers(rig, 1, "127.0.0.3", frame(1, "0300000001"))
    assert ended(dead[0])
    for each in [*silent, *dead, *back]:
        each.close()


def frame(transaction: int, body: str) -> bytes:
    data = bytes.fromhex(body)
    return transaction.to_bytes(2) + b"\0\0" + (len(data) + 1).to_bytes(2) + b"\x01" + data


def test_requests_in_one_piece_are_all_answered_in_order(serve: Callable[..., Rig]) -> None:
    rig = serve()
    writes = [frame(number, f"0600cc{number:04x}") for number in range(1, 40)]  # word 204, the part counter
    with socket.create_connection(rig.connector.address, 5) as raw:
        raw.sendall(b"".join(writes) + frame(99, "0300000001"))
        raw.settimeout(5)
        answer = b""
        while len(answer) < 39 * 12 + 11:
            answer += raw.recv(4096)
    assert [int.from_bytes(answer[at : at + 2]) for at in range(0, 39 * 12, 12)] == list(range(1, 40))
    assert answer[39 * 12 :] == bytes.fromhex("0063000000050103020001")
    assert rig.counted == list(range(2, 40))


def test_a_request_in_many_pieces_is_one(serve: Callable[..., Rig]) -> None:
    rig = serve()
    with socket.create_connection(rig.connector.address, 5) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in frame(7, "0300000001"):
            raw.sendall(bytes([byte]))
        raw.settimeout(5)
        answer = b""
        while len(answer) < 11:
            answer += raw.recv(100)
    assert answer == bytes.fromhex("0007000000050103020001")


def test_what_is_no_modbus_ends_its_connection(serve: Callable[..., Rig]) -> None:
    rig = serve()
    for wrong in (b"\0\1\0\7\0\6\1\3\0\0\0\1", b"\0\1\0\0\xff\xff\1\3", b"\0\1\0\0\0\1\1"):
        with socket.create_connection(rig.connector.address, 5) as raw:
            raw.sendall(wrong)
            raw.settimeout(5)
            with suppress(ConnectionResetError):
                assert raw.recv(1) == b""


def test_a_controller_that_reads_no_answers_is_let_go(serve: Callable[..., Rig]) -> None:
    rig = serve()
    with socket.create_connection(rig.connector.address, 5) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(20)
        request = frame(1, "030000007d") * 200
        with pytest.raises(OSError, match=r"reset|pipe"):
            while True:
                raw.sendall(request)
    assert rig.master().read(0, 1) == [r.VERSION]


def test_a_result_that_nobody_reads_in_time_is_told(serve: Callable[..., Rig]) -> None:
    rig = serve()
    rig.connector.publish(output(1, wait_s=0.1))
    until(lambda: rig.failed)
    assert rig.failed == [(1, "no line controller read it by its deadline")]
    words = rig.master().read(0, r.READ_WORDS)
    assert words[r.RING + r.SLOT["code"]] == LineCode.NOT_INSPECTED  # it had been PASS
    assert words[r.RING + r.SLOT["flags"]] >> r.FLAGS["stale"] & 1


def test_a_result_that_was_read_in_time_is_not_told(serve: Callable[..., Rig]) -> None:
    rig = serve()
    rig.connector.publish(output(1, wait_s=2.0))
    master = rig.master()
    assert master.read(0, r.READ_WORDS)[r.RING + r.SLOT["code"]] == LineCode.PASS
    stale = 1 << r.FLAGS["stale"]
    until(lambda: master.read(0, r.READ_WORDS)[r.RING + r.SLOT["flags"]] & stale)
    beats = master.read(r.WORDS["heartbeat"], 1)
    until(lambda: master.read(r.WORDS["heartbeat"], 1) != beats)
    assert rig.failed == []


def test_a_publication_that_waits_for_room_ends_when_the_host_stops(serve: Callable[..., Rig]) -> None:
    rig = serve()
    for number in range(1, 9):
        rig.connector.publish(output(number))
    refused: list[str] = []

    def publish() -> None:
        try:
            rig.connector.publish(output(9))
        except ConnectorError as error:
            refused.append(str(error))

    waiting = threading.Thread(target=publish)
    waiting.start()
    rig.connector.interrupt()
    waiting.join(5)
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("modbus://0.0.0.0:502", r"no sign-in: name the controllers.*allow="),
        ("modbus://127.0.0.1:99999", "port must be a number"),
        ("modbus://127.0.0.1:0?alow=1.2.3.4", "unknown option 'alow'; there are: ack, allow"),
        ("modbus://127.0.0.1:0?ack=yes", "ack is 'yes'; expected 1"),
        ("modbus://127.0.0.1:0?allow=plc-7", "'plc-7' does not appear to be"),
    ],
)
def test_mistakes_in_the_address_are_named(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        make_connector(url, tmp_path)


def test_an_address_that_is_taken_is_said_at_the_start(serve: Callable[..., Rig]) -> None:
    port = serve().connector.address[1]
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}"):
        serve(f"modbus://127.0.0.1:{port}")


def test_one_server_serves_one_line(serve: Callable[..., Rig]) -> None:
    with pytest.raises(ConfigError, match="one Modbus server serves one line"):
        serve(lines=("line-1", "line-2"))


def test_a_closed_server_leaves_its_port_and_its_controllers(serve: Callable[..., Rig]) -> None:
    rig = serve()
    master = rig.master()
    rig.connector.close()
    with pytest.raises(ModbusError):
        master.read(0, 1)
    serve(f"modbus://127.0.0.1:{rig.connector.address[1]}")
