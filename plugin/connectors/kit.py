"""The test kit that every connector passes: for tests, a site's own among them; no running host uses it (hop 10).

Write a ``Peer``, the line controller's side of the connector, and run each of ``CHECKS`` with it::

    @pytest.mark.parametrize("check", CHECKS)
    def test_it_passes_the_kit(check: str, tmp_path: Path) -> None:
        run(check, MyPeer(), tmp_path)

Every check runs the connector in a real dispatcher with another one beside it, and ends with the same questions: none
taken twice, none out of order, no PASS after its time, nothing claimed that did not arrive, and the other one not
delayed. ``docs/connectors.md`` says what each check is about.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NamedTuple, TypeVar

from contract.event import LineCode
from plugin.connectors.base import Connector, LineOutput, Plant, RecipeState
from plugin.connectors.loop import Loop
from plugin.dispatch import Dispatcher, Sent, make_connector
from plugin.settings import ConnectorSettings

LINE = "line-1"
DEADLINE_MS = 500
ROOM_S = 60.0
"""A deadline that no healthy peer misses, however busy the machine."""

WAIT_S = 20.0
JITTER_NS = 150_000_000
"""Between a peer's taking an output and its looking at the clock."""

NEIGHBOUR_S = 1.0
"""The other connector's output is there within this, whatever the tested one does."""

STOP_S = 0.5
"""What the host gives connectors to end by themselves; then it interrupts them."""

ENDED_S = 5.0
Answer = TypeVar("Answer")


class KitError(AssertionError):
    """The connector did not pass."""


class Took(NamedTuple):
    """One output as the line controller took it, by the rules of the connector's page; ``t_ns`` CLOCK_MONOTONIC.

    ``code`` is what the controller acts on: NOT_INSPECTED where the rules made it so, whatever was sent.
    """

    number: int
    code: int
    t_ns: int


class Peer(ABC):
    """The line controller's side: a real server or client of the protocol, at the same address over its restarts.

    It obeys what the connector's page asks of a controller (taking a repeated number once, for example) and no more.
    """

    lacks: ClassVar[Mapping[str, str]] = {}
    """Checks that have no meaning here, each with the reason."""

    spacing_s: ClassVar[float] = 0.0
    """Least time between two parts that the protocol can tell apart."""

    slow_s: ClassVar[float] = 0.15
    """An exchange of a controller that is slow and still of use."""

    @property
    @abstractmethod
    def url(self) -> str:
        """What stands in host.toml; always the same."""

    @abstractmethod
    def start(self) -> None:
        """It is there from now on; it may be called again after ``stop``. Does not wait for the connector."""

    @abstractmethod
    def stop(self) -> None:
        """It is gone, as when its power is cut."""

    @abstractmethod
    def slow(self, seconds: float) -> None:
        """Each exchange takes so long from now on; 0 as fast as it can."""

    @abstractmethod
    def took(self) -> Sequence[Took]:
        """Every output that it took, in order, over all its starts."""

    @abstractmethod
    def inspected(self) -> bool:
        """Whether the controller believes at this moment that the line is inspected."""

    def tells(self, output: LineOutput) -> bool:
        """Whether the protocol tells this output at all."""
        return True

    def expects(self, output: LineOutput) -> None:  # noqa: B027 - most protocols name the part
        """The part is on the belt: for a controller that knows parts by their time at the gate alone."""

    def until_ns(self, output: LineOutput) -> int:
        """Until when a PASS may be taken."""
        return output.due_ns

    def close(self) -> None:  # noqa: B027 - a peer that ``stop`` ends wholly has nothing left
        """The test is over, whatever became of it."""


class Bench:
    """What a host is to connectors: the tested one and a ``loop://`` beside it, and what was sent and came of it."""

    def __init__(self, peer: Peer, folder: Path, last_number: int = 0) -> None:
        self.peer = peer
        self.trouble: str | Exception | None = None
        self.sent: dict[int, LineOutput] = {}
        self.offered_ns: dict[int, int] = {}
        self.outcomes: dict[int, Sent] = {}
        self.neighbour: dict[int, Sent] = {}
        self.arrived_ns: dict[int, int] = {}
        self._last_number = last_number
        self._lock = threading.Lock()
        self.connector: Connector = make_connector(peer.url, folder)
        self.loop = Loop("loop://", folder)
        self._dispatcher = Dispatcher(
            [(ConnectorSettings(url=peer.url), self.connector), (ConnectorSettings(url="loop://"), self.loop)],
            self._record,
        )
        began = time.monotonic()
        self._dispatcher.start(self._plant)
        expect(time.monotonic() - began < ENDED_S, "start() returns at once, whether or not anybody is there")

    def send(self, number: int, code: LineCode = LineCode.PASS, due_s: float = ROOM_S) -> LineOutput:
        """One part's output, due after ``due_s`` seconds from now."""
        now_ns = time.monotonic_ns()
        reason = None if code is LineCode.PASS else "the kit says so"
        output = LineOutput(
            LINE, number, "edge-1", f"part-{number}", "cam-1", number, code, reason, now_ns + int(due_s * 1e9),
            captured_ns=now_ns, ratio=0.5, model=0xCAFE0001,
        )  # fmt: skip
        with self._lock:
            self.sent[number], self.offered_ns[number] = output, now_ns
        self.peer.expects(output)
        self._dispatcher.publish([output])
        time.sleep(self.peer.spacing_s)
        return output

    def ready(self) -> None:
        """Wait until the controller takes the line for inspected."""
        until(self.peer.inspected, "the controller takes the line for inspected")

    def all_taken(self) -> None:
        """Wait until the controller took all that can be told of."""
        wanted = {number for number, output in self.sent.items() if self.peer.tells(output)}
        until(lambda: wanted <= {took.number for took in self.peer.took()}, f"the controller takes {sorted(wanted)}")

    def all_settled(self) -> None:
        """Wait until it is known what became of each output."""
        until(lambda: len(self.outcomes) == len(self.sent), "every output has an outcome")

    def outcome(self, number: int) -> str | None:
        """What was said last of one output."""
        sent = self.outcomes.get(number)
        return None if sent is None else sent.outcome

    def close(self) -> None:
        """Stop as a host does."""
        began = time.monotonic()
        self._dispatcher.stop(STOP_S)
        for worker in self._dispatcher.workers:
            worker.join(max(0.0, began + ENDED_S - time.monotonic()))
        ended = not any(worker.is_alive() for worker in self._dispatcher.workers)
        expect(ended, "publish() ends when it is interrupted, and close() soon after")

    def _record(self, sent: Sent) -> None:
        with self._lock:
            if sent.connector == "loop://":
                self.neighbour[sent.number] = sent
                self.arrived_ns[sent.number] = time.monotonic_ns()
            else:
                self.outcomes[sent.number] = sent

    def _fail(self, output: LineOutput, detail: str) -> None:
        self._record(Sent(LINE, output.number, self.peer.url, "refused", detail, time.time_ns()))

    def _ask_trouble(self, line: str) -> str | None:
        if isinstance(self.trouble, Exception):
            raise self.trouble
        return self.trouble

    def _plant(self, url: str, lines: tuple[str, ...]) -> Plant:
        return Plant(
            lines=lines or (LINE,),
            trouble=self._ask_trouble,
            last_number=lambda line: self._last_number,
            deadline_ms=lambda line: DEADLINE_MS,
            counted=lambda line, counters, t_ns: None,
            recipe=lambda line: RecipeState(4, 0xCAFE0001),
            select_recipe=lambda line, number, done: done("the kit has no recipes"),
            fail=self._fail,
        )


class Rig:
    """One check's peer and the benches it was given, one after another."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self.peer = peer
        self.benches: list[Bench] = []
        self._folder = folder

    def bench(self, last_number: int = 0) -> Bench:
        """A host starts."""
        self.benches.append(Bench(self.peer, self._folder, last_number))
        return self.benches[-1]

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self.benches:
                self.benches[-1].close()
        finally:
            self.peer.close()

    def judge(self) -> None:
        """The questions that end every check."""
        for bench in self.benches:
            bench.all_settled()
            claimed = [
                number
                for number, output in bench.sent.items()
                if bench.outcome(number) == "published" and self.peer.tells(output)
            ]
            until(
                lambda claimed=claimed: set(claimed) <= {took.number for took in self.peer.took()},  # type: ignore[misc]
                f"the controller takes what is said to be published: {claimed}",
            )
            _judge_neighbour(bench)
        sent = {number: output for bench in self.benches for number, output in bench.sent.items()}
        _judge_taken(self.peer, sent)


def _judge_taken(peer: Peer, sent: Mapping[int, LineOutput]) -> None:
    taken = list(peer.took())
    numbers = [took.number for took in taken]
    expect(len(numbers) == len(set(numbers)), f"no number is taken twice: {numbers}")
    expect(numbers == sorted(numbers), f"numbers are taken in order: {numbers}")
    for took in taken:
        output = sent.get(took.number)
        if output is None:
            raise KitError(f"nothing is taken that was not sent: {took}")
        expect(took.code in (output.code, LineCode.NOT_INSPECTED), f"{took}: sent was {output.code!r}")
        late_ms = (took.t_ns - peer.until_ns(output)) / 1e6
        late = took.code == LineCode.PASS and took.t_ns > peer.until_ns(output) + JITTER_NS
        expect(not late, f"no PASS is taken after its time: {took}, {late_ms:.0f} ms late")


def _judge_neighbour(bench: Bench) -> None:
    until(lambda: len(bench.neighbour) == len(bench.sent), "the connector beside it has every output")
    for number, sent in bench.neighbour.items():
        expect(sent.outcome != "refused", f"the connector beside it takes {number}: {sent}")
        delay_s = (bench.arrived_ns[number] - bench.offered_ns[number]) / 1e9
        expect(delay_s < NEIGHBOUR_S, f"the connector beside it had {number} after {delay_s:.2f} s")


def check_order(rig: Rig) -> None:
    """Parts of all codes, as fast as can be: each taken once, in order, with its code."""
    rig.peer.start()
    bench = rig.bench()
    bench.ready()
    for number in range(1, 25):
        bench.send(number, LineCode(number % 4 + 1))
    bench.all_taken()
    wanted = [(n, output.code) for n, output in bench.sent.items() if rig.peer.tells(output)]
    found = [(took.number, took.code) for took in rig.peer.took()]
    expect(found == wanted, f"taken as sent: {found}")
    bench.all_settled()
    expect({sent.outcome for sent in bench.outcomes.values()} == {"published"}, f"all published: {bench.outcomes}")


def check_deadline(rig: Rig) -> None:
    """What could not be delivered by its deadline is never taken as PASS, and never claimed without being taken."""
    rig.peer.start()
    bench = rig.bench()
    bench.ready()
    rig.peer.slow(1.5)
    for number in (1, 2, 3):
        bench.send(number, due_s=0.4)
    bench.send(4, due_s=-0.1)
    bench.all_settled()
    expect(bench.outcome(4) == "late", f"what is too late already is not tried: {bench.outcomes[4]}")
    until(lambda: time.monotonic_ns() > bench.sent[3].due_ns + JITTER_NS, "the deadlines are over")
    rig.peer.slow(0)
    bench.ready()
    bench.send(5)
    bench.all_settled()
    until(lambda: 5 in {took.number for took in rig.peer.took()}, "the next part in time is taken")


def check_heartbeat(rig: Rig) -> None:
    """The controller learns within seconds that the line is not inspected: by trouble, by a fault, by a host gone."""
    rig.peer.start()
    bench = rig.bench()
    bench.ready()
    for trouble in ("edge-1: inference fails", OSError("nobody can say how the line is")):
        bench.trouble = trouble
        until(lambda: not rig.peer.inspected(), f"the controller learns that the line is not inspected: {trouble!r}")
        bench.trouble = None
        bench.ready()
    bench.send(1)
    bench.all_taken()
    bench.all_settled()
    bench.close()
    until(lambda: not rig.peer.inspected(), "the controller learns that the host is gone")


def check_restart_of_host(rig: Rig) -> None:
    """A host that comes back goes on with its numbers; nothing of before is taken again."""
    rig.peer.start()
    bench = rig.bench()
    bench.ready()
    for number in range(1, 6):
        bench.send(number)
    bench.all_taken()
    bench.all_settled()
    bench.close()
    if "heartbeat" not in rig.peer.lacks:  # else what is left of the host before would be taken for the next one
        until(lambda: not rig.peer.inspected(), "a host that is gone is believed no more")
    bench = rig.bench(last_number=5)
    bench.ready()
    for number in range(6, 11):
        bench.send(number)
    bench.all_taken()


def check_restart_of_peer(rig: Rig) -> None:
    """A controller that was away for a while takes no PASS of meanwhile too late, and all that comes after."""
    rig.peer.start()
    bench = rig.bench()
    bench.ready()
    for number in (1, 2, 3):
        bench.send(number)
    bench.all_taken()
    rig.peer.stop()
    until(lambda: not rig.peer.inspected(), "a controller that is away believes nothing")
    for number in (4, 5):
        bench.send(number, due_s=0.3)
    until(lambda: bench.outcome(5) in ("refused", "late"), "what nobody can have taken is not claimed")
    rig.peer.start()
    bench.ready()
    for number in (6, 7, 8):
        bench.send(number)
    until(lambda: {6, 7, 8} <= {took.number for took in rig.peer.took()}, "the parts after its return are taken")


def check_slow_peer(rig: Rig) -> None:
    """Parts come faster than the controller takes them: some are late, none is wrong."""
    rig.peer.start()
    bench = rig.bench()
    bench.ready()
    rig.peer.slow(rig.peer.slow_s)
    bench.send(1)
    until(lambda: 1 in {took.number for took in rig.peer.took()}, "a slow controller takes what has time")
    for number in range(2, 14):
        bench.send(number, due_s=0.6)
        time.sleep(0.02)  # the belt
    bench.all_settled()
    rig.peer.slow(0)


def check_absent_peer(rig: Rig) -> None:
    """Nobody is there at the start: the host starts all the same, claims nothing, and delivers once somebody is."""
    bench = rig.bench()
    for number in (1, 2, 3):
        bench.send(number, due_s=0.3)
    until(
        lambda: {bench.outcome(number) for number in (1, 2, 3)} <= {"refused", "late"},
        "what nobody can have taken is not claimed",
    )
    rig.peer.start()
    bench.ready()
    for number in (4, 5, 6):
        bench.send(number)
    until(lambda: {4, 5, 6} <= {took.number for took in rig.peer.took()}, "the parts after its coming are taken")


def check_stop(rig: Rig) -> None:
    """A host that stops does not wait for a controller that does not answer."""
    rig.peer.start()
    bench = rig.bench()
    bench.ready()
    rig.peer.slow(30.0)
    for number in range(1, 13):
        bench.send(number, due_s=30.0)
    bench.close()
    rig.peer.slow(0)


CHECKS: dict[str, Callable[[Rig], None]] = {
    "order": check_order,
    "deadline": check_deadline,
    "heartbeat": check_heartbeat,
    "restart of host": check_restart_of_host,
    "restart of peer": check_restart_of_peer,
    "slow peer": check_slow_peer,
    "absent peer": check_absent_peer,
    "stop": check_stop,
}


def run(check: str, peer: Peer, folder: Path) -> str | None:
    """Run one check; raises KitError. Returns why it has no meaning for this peer, None where it was passed."""
    if check in peer.lacks:
        peer.close()
        return peer.lacks[check]
    with Rig(peer, folder) as rig:
        CHECKS[check](rig)
        if check != "stop":  # what was in the queue then is nobody's
            rig.judge()
    return None


def until(question: Callable[[], Answer], what: str) -> Answer:
    """Ask until the answer is true; raises KitError."""
    deadline = time.monotonic() + WAIT_S
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise KitError(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(0.005)
    return answer


def expect(holds: bool, what: str) -> None:
    """Raises KitError where it does not hold."""
    if not holds:
        raise KitError(f"not so: {what}")
