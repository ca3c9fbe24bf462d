"""A line controller made with libmodbus polls a real host every 20 ms while parts pass, and while it is killed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.event import LineCode, Verdict
from plugin.connectors import registers as r
from tests.plugin import synthetic as s
from tests.plugin.controller import Controller, ModbusError
from tests.plugin.synthetic import Dealer, HostProcess
from tests.plugin.synthetic import make_dealer as make_dealer
from tests.processes import free_port, until

POLL_S = 0.02
RATE = 20.0
VERDICTS = (Verdict.PASS, Verdict.REJECT, Verdict.PASS, Verdict.REVIEW, Verdict.PASS, Verdict.NOT_INSPECTED)
CODES = {
    Verdict.PASS: LineCode.PASS,
    Verdict.REJECT: LineCode.REJECT,
    Verdict.REVIEW: LineCode.REVIEW,
    Verdict.NOT_INSPECTED: LineCode.NOT_INSPECTED,
}


class Poller(threading.Thread):
    """The controller's cycle; it goes on while the host is away and connects again."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.address = ("127.0.0.1", port)
        self.controller = Controller(self.address)
        self.lost = 0
        self.words: list[int] = []
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(POLL_S):
            try:
                self.words = self.controller.poll()
            except ModbusError:
                self.lost += 1
                self._connect()

    def _connect(self) -> None:
        fresh = self.controller
        try:
            fresh.master.close()
            fresh.master = type(fresh.master)(self.address)
        except ModbusError:
            return

    def stop(self) -> None:
        self._stopping.set()
        self.join(10)
        self.controller.master.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[HostProcess, int]]:
    port = free_port()
    host = HostProcess(tmp_path, deadline_ms=1500, connectors=(f"modbus://127.0.0.1:{port}",))
    host.start()
    yield host, port
    host.end()


def verdict_of(part: int) -> Verdict:
    return VERDICTS[part % len(VERDICTS)]


def pass_by(dealer: Dealer, part: int) -> None:
    """One part: announced, then judged."""
    dealer.send(s.frames(s.trigger(2 * part, f"p{part}", trigger_id=part), age_ms=1.0))
    dealer.send(s.frames(s.result(2 * part + 1, f"p{part}", verdict_of(part), trigger_id=part), age_ms=15.0))


def test_three_hundred_parts_each_once_in_order_and_none_wrong(
    line: tuple[HostProcess, int], make_dealer: Callable[[str], Dealer]
) -> None:
    host, port = line
    dealer = make_dealer(host.endpoint)
    poller = Poller(port)
    poller.start()
    until(lambda: poller.words, "the controller has read its first words")
    start = time.monotonic()
    for part in range(1, 301):
        time.sleep(max(0.0, start + part / RATE - time.monotonic()))  # the belt
        pass_by(dealer, part)
    until(lambda: len(poller.controller.taken) >= 300, "every part is with the controller")
    poller.stop()
    controller = poller.controller
    assert controller.skipped == []
    assert [part.trigger_id for part in controller.taken] == list(range(1, 301))
    assert [part.seq for part in controller.taken] == list(range(1, 301))
    assert [part.code for part in controller.taken] == [CODES[verdict_of(part)] for part in range(1, 301)]
    outputs = host.get("/api/line?limit=1000")
    assert {row["outcome"] for row in outputs} == {"published"}


def test_a_host_killed_and_restarted_repeats_nothing_and_passes_nothing_unseen(
    line: tuple[HostProcess, int], make_dealer: Callable[[str], Dealer]
) -> None:
    host, port = line
    dealer = make_dealer(host.endpoint)
    poller = Poller(port)
    poller.start()
    until(lambda: poller.words, "the controller has read its first words")
    for part in range(1, 41):
        pass_by(dealer, part)
        time.sleep(1 / RATE)
    until(lambda: len(poller.controller.taken) == 40, "the first forty")
    for part in (41, 42, 43):  # announced, and then nobody is there to judge or to hear
        dealer.send(s.frames(s.trigger(2 * part, f"p{part}", trigger_id=part), age_ms=1.0))
    dealer.wait_acked(82, 84, 86)
    host.end(signal.SIGKILL)
    until(lambda: poller.lost > 0, "the controller has noticed")
    host.start()
    for part in (39, 40):  # an edge sends again what was never acknowledged
        dealer.send(s.frames(s.result(2 * part + 1, f"p{part}", verdict_of(part), trigger_id=part), age_ms=600.0))
    dealer.send(s.frames(s.result(2 * 41 + 1, "p41", Verdict.PASS, trigger_id=41), age_ms=60_000.0))  # far too late
    for part in range(44, 61):
        pass_by(dealer, part)
        time.sleep(1 / RATE)
    until(lambda: 60 in {part.trigger_id for part in poller.controller.taken}, "the last part")
    until(lambda: {41, 42, 43} <= {row["trigger_id"] for row in host.get("/api/line?limit=1000")}, "their deadline")
    poller.stop()
    controller = poller.controller
    assert controller.sessions == 2
    seqs = [part.seq for part in controller.taken]
    assert len(seqs) == len(set(seqs)), "a number was taken twice"
    assert seqs == sorted(seqs)
    told: dict[int, list[int]] = {}
    for part in controller.taken:
        told.setdefault(part.trigger_id, []).append(part.code)
    assert all(len(codes) == 1 for codes in told.values()), "a part moved the gate twice"
    for part in (*range(1, 41), *range(44, 61)):
        assert told[part] == [CODES[verdict_of(part)]]
    for part in (41, 42, 43):  # at its deadline, or never told at all where that was over before the host was back
        assert told.get(part, [LineCode.NOT_INSPECTED]) == [LineCode.NOT_INSPECTED]
    recorded = {row["trigger_id"]: row["code"] for row in host.get("/api/line?limit=1000")}
    assert [recorded[part] for part in (41, 42, 43)] == [LineCode.NOT_INSPECTED] * 3


def test_a_controller_that_counts_hears_of_parts_that_no_edge_saw(
    tmp_path: Path, make_dealer: Callable[[str], Dealer]
) -> None:
    port = free_port()
    host = HostProcess(
        tmp_path, 2000, (f"modbus://127.0.0.1:{port}",), line="trigger_tolerance_ms = 200\nsilence_ms = 60000"
    )
    host.start()
    dealer = make_dealer(host.endpoint)
    dealer.send(s.frames(s.state()))
    controller = Controller(("127.0.0.1", port))
    controller.master.write_one(r.WRITTEN["part_counter"], 100)
    until(lambda: controller.poll() and controller.inspected, "the line is inspected")
    for part in (2, 4, 6, 8):  # the edge never sees the third one; all others pass
        controller.master.write_one(r.WRITTEN["part_counter"], 100 + part // 2)
        if part != 6:
            pass_by(dealer, part)
        end = time.monotonic() + 0.6  # the belt: parts are further apart than twice the tolerance
        until(lambda: controller.poll() and time.monotonic() > end, "the next part")  # noqa: B023
    until(lambda: controller.poll() and len(controller.taken) == 4, "all four")
    assert [(part.counter, part.code) for part in controller.taken] == [
        (101, LineCode.PASS),
        (102, LineCode.PASS),
        (104, LineCode.PASS),  # before the third, whose deadline is later
        (103, LineCode.NOT_INSPECTED),
    ]
    assert [controller.is_ok(counter) for counter in (101, 102, 103, 104, 105)] == [True, True, False, True, False]
    assert not controller.is_ok(101), "a verdict serves once"
    words = controller.poll()
    assert words[r.WORDS["missed"]] == 1
    controller.master.close()
    host.end()
