"""Every protocol at once on one real host that is killed while parts pass: none twice, in order, none OK too late.

The numbers in docs/connectors.md are what the long test prints.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq

from contract.event import LineCode, Verdict
from plugin.connectors.kit import JITTER_NS, Took
from tests.plugin import synthetic as s
from tests.plugin.peers import Came, ModbusPeer, MqttsPeer, OpcUaPeer, WebhooksPeer
from tests.plugin.synthetic import Dealer, HostProcess
from tests.processes import until

RATE = 20.0
DEADLINE_S = 1.5
JUDGED_S = 0.02
RESEND_S = 0.5
STATE_S = 0.2
TAIL = 20
"""The last parts of a belt pass when every controller has found back to the host that was killed last."""

RECORDING_NS = 10**9
"""What a connector did longer before a kill than this stands in the ledger, and what it claims had arrived."""

CODES = {verdict: LineCode[verdict.name] for verdict in Verdict}
KINDS = (ModbusPeer, OpcUaPeer, MqttsPeer, WebhooksPeer)
"""Of MQTT and webhooks the ones with TLS; a coil names no part."""

AnyPeer = ModbusPeer | OpcUaPeer | MqttsPeer | WebhooksPeer


class Part(NamedTuple):
    """One part of the belt: when it is captured, seconds of CLOCK_MONOTONIC, and what the edge says of it, when."""

    number: int
    captured_s: float
    verdict: Verdict
    judged_s: float

    @property
    def due_s(self) -> float:
        return self.captured_s + DEADLINE_S


class Output(NamedTuple):
    """One number of the ledger, its part, and when it was committed by CLOCK_MONOTONIC."""

    number: int
    part: Part
    code: int
    outcome: str
    committed_ns: int


class Tally(NamedTuple):
    """What became of the parts on one wire; each part is in one of the first five."""

    verdict: int
    not_inspected: int
    refused: int
    cut: int
    expired: int
    again: int


class Edge:
    """Sends each part's events when they fall, and again until they are acknowledged, with their age at that time."""

    def __init__(self, dealer: Dealer, seed: int) -> None:
        self._dealer = dealer
        endpoint = dealer.socket.get_string(zmq.LAST_ENDPOINT)
        dealer.socket.disconnect(endpoint)
        dealer.socket.set(zmq.IMMEDIATE, 1)  # an age is true when it is sent: nothing waits for a host to come back
        dealer.socket.connect(endpoint)
        self._draw = random.Random(seed)
        self.parts: list[Part] = []
        self._open: list[Part] = []
        self._sent_s: dict[int, float] = {}
        self._state_s = 0.0

    def lay(self, count: int) -> float:
        """So many parts more on the belt, from now on; every sixteenth or so is judged too late. Returns their time."""
        began = time.monotonic() + 0.1
        for place in range(count):
            captured_s = began + place / RATE
            judged_s = captured_s + (DEADLINE_S + 0.4 if self._draw.random() < 0.06 else JUDGED_S)
            verdict = self._draw.choices(list(CODES), (6, 2, 1, 1))[0]
            self.parts.append(Part(len(self.parts) + 1, captured_s, verdict, judged_s))
            self._open.append(self.parts[-1])
        return began

    def is_rid(self) -> bool:
        """Whether every event was acknowledged; sends what is due."""
        now = time.monotonic()
        if now - self._state_s > STATE_S and self._put(s.state(), now):
            self._state_s = now
        for part in self._open:
            if now < part.captured_s:
                break
            seq = 2 * part.number - 1
            self._send(seq, part.captured_s, part, s.trigger(seq, f"p{part.number}", trigger_id=part.number))
            header = s.result(seq + 1, f"p{part.number}", part.verdict, trigger_id=part.number)
            self._send(seq + 1, part.judged_s, part, header)
        self._dealer.collect(5)
        self._open = [part for part in self._open if not self._is_acked(2 * part.number - 1, 2 * part.number)]
        return not self._open

    def _is_acked(self, *seqs: int) -> bool:
        return {(s.SPOOL, seq) for seq in seqs} <= self._dealer.acked

    def _send(self, seq: int, at_s: float, part: Part, header: s.Header) -> None:
        now = time.monotonic()
        if now < at_s or now - self._sent_s.get(seq, 0.0) < RESEND_S or self._is_acked(seq):
            return
        if self._put(header, part.captured_s):
            self._sent_s[seq] = now

    def _put(self, header: s.Header, captured_s: float) -> bool:
        now_ns = time.monotonic_ns()
        frames = s.frames(header, age_ms=now_ns / 1e6 - captured_s * 1000, t_sent_ns=now_ns, clock_id="boot-1")
        with suppress(zmq.Again):  # nobody is there
            self._dealer.socket.send_multipart(frames, zmq.NOBLOCK)
            return True
        return False


class Run:
    """Peers, host and belt of one test."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.peers: dict[str, AnyPeer] = {kind.__name__.removesuffix("Peer"): kind(folder) for kind in KINDS}
        urls = [peer.url for peer in self.peers.values()]
        self.host = HostProcess(folder, int(DEADLINE_S * 1000), (f"loop://{folder}/outputs.jsonl", *urls))
        self.killed_ns: list[int] = []
        self._seed = seed
        self._dealer: Dealer | None = None

    def drive(self, parts: int, kills: int) -> None:
        for peer in self.peers.values():
            peer.start()
        self.host.start()
        self._dealer = Dealer(self.host.endpoint)
        self.edge = Edge(self._dealer, self._seed)
        until(lambda: self.edge.is_rid() and self._is_inspected(), "every controller takes the line for inspected")
        began = self.edge.lay(parts - TAIL)
        with ThreadPoolExecutor(1) as other:
            killing = other.submit(self._kill, self._moments(began, kills))  # the belt goes on meanwhile
            until(lambda: self.edge.is_rid() and killing.done(), "the edge is rid of its events", parts / RATE + 60)
            _raise(killing)
        until(lambda: self.edge.is_rid() and self._is_inspected(), "every controller is back")
        self.edge.lay(TAIL)
        until(self.edge.is_rid, "the edge is rid of the last events")
        until(self._is_recorded, "what became of the last parts is recorded")
        assert self.host.end(timeout_s=20.0) == 0

    def _is_inspected(self) -> bool:
        return all(peer.inspected() for peer in self.peers.values())

    def _moments(self, began: float, kills: int) -> list[float]:
        """One in each part of the belt, anywhere in it; some way before its end."""
        draw = random.Random(self._seed)
        each_s = 0.8 * (len(self.edge.parts) / RATE) / kills
        return [began + (place + draw.uniform(0.2, 1.0)) * each_s for place in range(kills)]

    def _kill(self, moments: list[float]) -> None:
        for moment in moments:
            time.sleep(max(0.0, moment - time.monotonic()))  # the moment itself, not a wait for something
            self.host.end(signal.SIGKILL)
            self.killed_ns.append(time.monotonic_ns())
            self.host.start()

    def _is_recorded(self) -> bool:
        last = {output.number for output in self.outputs() if output.part.number > len(self.edge.parts) - TAIL}
        sends = self.sends()
        return len(last) == TAIL and all((peer.url, number) in sends for peer in self.peers.values() for number in last)

    def outputs(self) -> list[Output]:
        rows = self._ask("SELECT number, trigger_id, code, outcome, t_wall_ns FROM outputs ORDER BY number")
        wall_ns = time.time_ns() - time.monotonic_ns()
        return [Output(n, self.edge.parts[part - 1], code, what, t - wall_ns) for n, part, code, what, t in rows]

    def sends(self) -> dict[tuple[str, int], tuple[str, int]]:
        """By connector and number: what the connector said became of it, and when by CLOCK_MONOTONIC."""
        wall_ns = time.time_ns() - time.monotonic_ns()
        rows = self._ask("SELECT connector, number, outcome, t_wall_ns FROM sends")
        return {(url, number): (outcome, t_ns - wall_ns) for url, number, outcome, t_ns in rows}

    def _ask(self, sql: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.host.folder / "state" / "ledger.sqlite")) as ledger:
            return ledger.execute(sql).fetchall()

    def dies_after(self, t_ns: int, within_ns: int) -> bool:
        return any(0 <= killed_ns - t_ns < within_ns for killed_ns in self.killed_ns)

    def close(self) -> None:
        self.host.end(signal.SIGKILL)
        if self._dealer is not None:
            self._dealer.close()
        for peer in self.peers.values():
            peer.close()


def _raise(future: Future[None]) -> None:
    future.result()


def judge_ledger(run: Run) -> list[Output]:
    """One number for each part, without a hole; a verdict was committed in time or is NOT_INSPECTED."""
    outputs = run.outputs()
    assert [output.number for output in outputs] == list(range(1, len(run.edge.parts) + 1))
    assert {output.part for output in outputs} == set(run.edge.parts)
    for output in outputs:
        part = output.part
        late_ns = output.committed_ns - int(part.due_s * 1e9)
        if part.judged_s >= part.due_s:
            assert output.code == LineCode.NOT_INSPECTED, output
        elif output.code != CODES[part.verdict]:
            assert output.code == LineCode.NOT_INSPECTED, output
            assert late_ns > -JITTER_NS, f"given up before its time: {output}"
        if output.code != LineCode.NOT_INSPECTED:
            assert late_ns < JITTER_NS, f"a verdict after its time: {output}"
    return outputs


def judge_wire(run: Run, peer: AnyPeer, outputs: list[Output]) -> Tally:
    """One controller's account of every part."""
    again = judge_came(peer.came(), outputs)
    taken = {took.number: took for took in peer.took()}
    numbers = [took.number for took in peer.took()]
    assert numbers == sorted(set(numbers)), "taken twice or out of order"
    assert set(numbers) <= {output.number for output in outputs}
    sends = run.sends()
    ends = {output.number: judge_end(run, peer, output, taken, sends.get((peer.url, output.number)))
            for output in outputs}  # fmt: skip
    tail = [ends[output.number] for output in outputs if output.part.number > len(run.edge.parts) - TAIL]
    assert tail.count("verdict") >= TAIL // 2, f"it goes on after the kills: {tail}"
    count = list(ends.values()).count
    return Tally(*(count(name) for name in Tally._fields[:-1]), again)


def has_come(run: Run, peer: AnyPeer) -> bool:
    """Whether the controller took all that its connector claims, but for what died with a host."""
    claims = [(number, t_ns) for (url, number), (outcome, t_ns) in run.sends().items()
              if url == peer.url and outcome == "published"]  # fmt: skip
    sure = {number for number, t_ns in claims if not run.dies_after(t_ns, RECORDING_NS)}
    return sure <= {took.number for took in peer.took()}


def judge_came(came: list[Came], outputs: list[Output]) -> int:
    """Everything that came, by the key that the protocol's page names for it. Returns how many came again."""
    part_of = {output.number: output.part.number for output in outputs}
    firsts = list({each.key: each for each in reversed(came)}.values())[::-1]
    numbers = [each.number for each in firsts]
    assert len(numbers) == len(set(numbers)), "one number under two keys: a reader would take it twice"
    assert numbers == sorted(numbers), "out of order"
    for each in came:
        assert part_of[each.number] == each.trigger, f"another part's number: {each}"
    return len(came) - len(firsts)


def judge_end(run: Run, peer: AnyPeer, output: Output, taken: dict[int, Took], sent: tuple[str, int] | None) -> str:
    """Which field of Tally a part is in, and that it may be there."""
    took = taken.get(output.number)
    if took is not None:
        assert took.code in (output.code, LineCode.NOT_INSPECTED), (took, output)
        if took.code == LineCode.PASS:
            assert output.part.verdict is Verdict.PASS, (took, output)
            assert took.t_ns < int(output.part.due_s * 1e9) + JITTER_NS, f"OK too late: {took}, {output}"
        return "verdict" if took.code == CODES[output.part.verdict] != LineCode.NOT_INSPECTED else "not_inspected"
    if sent is None and output.outcome == "late":
        assert output.code == LineCode.NOT_INSPECTED, output
        return "expired"
    if sent is None:
        assert run.dies_after(output.committed_ns, int(DEADLINE_S * 1e9) + 2 * RECORDING_NS), f"forgotten: {output}"
        return "cut"
    outcome, t_ns = sent
    if outcome == "published":
        assert isinstance(peer, ModbusPeer | OpcUaPeer), f"a broker or server has it, and no reader: {output}"
        assert run.dies_after(t_ns, RECORDING_NS), f"claimed, and not there: {output}"
        return "cut"
    assert outcome in ("refused", "late"), outcome
    return "refused"


def show(run: Run, outputs: list[Output], tallies: dict[str, Tally]) -> None:
    by_edge = sum(output.part.judged_s >= output.part.due_s for output in outputs)
    expired = [output for output in outputs if output.committed_ns > int(output.part.due_s * 1e9)]
    print(f"\n{len(outputs)} parts, {len(run.killed_ns)} kills; {len(expired)} expired, {by_edge} of them at the edge")
    print(
        "| wire | its verdict | NOT_INSPECTED | refused or late | cut off by a kill | expired long ago | came again |"
    )
    print("|---|---|---|---|---|---|---|")
    for wire, tally in tallies.items():
        print(f"| {wire} | {' | '.join(map(str, tally))} |")


def check(folder: Path, parts: int, kills: int, seed: int) -> None:
    run = Run(folder, seed)
    try:
        run.drive(parts, kills)
        outputs = judge_ledger(run)
        for peer in run.peers.values():
            until(lambda peer=peer: has_come(run, peer), "what is claimed arrives")
        tallies = {wire: judge_wire(run, peer, outputs) for wire, peer in run.peers.items()}
        show(run, outputs, tallies)
        assert len(run.killed_ns) == kills
        assert min(tally.verdict for tally in tallies.values()) >= TAIL
    finally:
        run.close()


def test_a_hundred_parts_over_every_protocol_and_one_kill(tmp_path: Path) -> None:
    check(tmp_path, parts=100, kills=1, seed=7)


@pytest.mark.long
def test_a_thousand_parts_over_every_protocol_and_four_kills(tmp_path: Path) -> None:
    check(tmp_path, parts=1000, kills=4, seed=11)
