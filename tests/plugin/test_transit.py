"""What a message waited on its way counts as age: the window of fastest arrivals, and a host that was frozen."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from contract.event import Envelope
from plugin.transit import BUCKET_NS, MAX_CLOCKS, Transit
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess
from tests.processes import freeze

SECOND = 10**9
MILLI = 10**6
WAY_NS = 3 * MILLI
CLOCK = "boot-1"


class Line:
    """An edge's clock beside the host's: ``offset_ns`` apart, the host's faster by ``ppm``."""

    def __init__(self, offset_ns: int = -7_000 * SECOND, ppm: float = 0.0) -> None:
        self.transit = Transit()
        self._offset_ns = offset_ns
        self._ppm = ppm

    def waited_ns(self, sent_ns: int, way_ns: int = WAY_NS, clock_id: str = CLOCK) -> int:
        arrived_ns = sent_ns + way_ns + self._offset_ns + int(sent_ns * self._ppm / 1e6)
        envelope = Envelope(age_ms=1.0, t_sent_ns=sent_ns, clock_id=clock_id)
        self.transit.note("edge-1", envelope, arrived_ns)
        return self.transit.waited_ns("edge-1", envelope, arrived_ns)


def beat(line: Line, start_ns: int, seconds: int) -> list[int]:
    return [line.waited_ns(start_ns + n * SECOND) for n in range(seconds)]


def test_the_usual_way_costs_nothing_and_more_than_it_counts() -> None:
    line = Line()
    assert set(beat(line, 9_000 * SECOND, 10)) == {0}
    assert line.waited_ns(9_010 * SECOND, WAY_NS + 2 * SECOND) == 2 * SECOND
    assert line.waited_ns(9_011 * SECOND) == 0


def test_drifting_clocks_add_up_to_no_wait() -> None:
    for ppm in (50.0, -50.0):
        assert max(beat(Line(ppm=ppm), 100_000 * SECOND, 4 * 3600)) <= 2 * BUCKET_NS * 50e-6 + MILLI


def test_a_way_that_became_slower_is_the_usual_one_after_two_windows() -> None:
    line = Line()
    beat(line, 1_000 * SECOND, 100)
    slower = [line.waited_ns((1_100 + n) * SECOND, WAY_NS + 40 * MILLI) for n in range(200)]
    assert slower[0] == 40 * MILLI
    assert slower[-1] == 0


def test_a_backlog_longer_than_the_window_is_old_to_its_end() -> None:
    line = Line()
    beat(line, 1_000 * SECOND, 100)
    frozen_s = 600
    thaw_ns = (1_100 + frozen_s) * SECOND  # all of it arrives now, within a second
    waited = [line.waited_ns(sent_ns, thaw_ns - sent_ns) for sent_ns in range(1_100 * SECOND, thaw_ns, SECOND)]
    assert all(abs(w - (frozen_s - n) * SECOND) < SECOND for n, w in enumerate(waited))


def test_a_new_clock_is_learnt_anew() -> None:
    line = Line()
    beat(line, 9_000 * SECOND, 10)
    assert line.waited_ns(5 * SECOND, 9_000 * SECOND, "boot-2") == 0
    assert line.waited_ns(6 * SECOND, 9_001 * SECOND, "boot-2") == SECOND


def test_without_a_time_of_sending_nothing_is_added_or_learnt() -> None:
    transit = Transit()
    unknown, known = Envelope(age_ms=1.0), Envelope(age_ms=1.0, t_sent_ns=SECOND)
    transit.note("edge-1", unknown, 5 * SECOND)
    assert transit.waited_ns("edge-1", known, 9 * SECOND) == 0
    transit.note("edge-1", known, 5 * SECOND)
    assert transit.waited_ns("edge-1", unknown, 90 * SECOND) == 0


def test_a_false_time_of_sending_spoils_two_windows_at_most() -> None:
    line = Line()
    line.waited_ns(2**62, 8_999 * SECOND - 2**62)
    waited = beat(line, 9_000 * SECOND, 200)
    assert waited[0] > 0
    assert waited[-1] == 0


def test_many_clocks_are_bounded_and_the_one_that_speaks_is_kept() -> None:
    line = Line()
    for n in range(3 * MAX_CLOCKS):
        line.waited_ns((9_000 + n) * SECOND)
        line.waited_ns(SECOND, clock_id=f"c{n}")
    (clocks,) = line.transit._edges.values()
    assert len(clocks) == MAX_CLOCKS
    assert line.waited_ns(20_000 * SECOND, WAY_NS + SECOND) == SECOND


def test_a_pass_that_waited_for_a_frozen_host_is_never_published(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer]
) -> None:
    host = make_host(deadline_ms=500)
    dealer = make_dealer(host.endpoint)

    def now() -> dict[str, object]:
        return {"age_ms": 5.0, "t_sent_ns": time.monotonic_ns(), "clock_id": CLOCK}

    for n in range(1, 6):
        dealer.send(s.frames(s.state(n), **now()))  # type: ignore[arg-type]
    dealer.wait_acked(*range(1, 6), spool="state-run-1")
    assert host.process is not None
    freeze(host.process.pid)
    try:
        dealer.send(s.frames(s.trigger(1, "frozen"), **now()))  # type: ignore[arg-type]
        dealer.send(s.frames(s.result(2, "frozen"), **now()))  # type: ignore[arg-type]
        time.sleep(1.2)
    finally:
        host.process.send_signal(signal.SIGCONT)
    dealer.wait_acked(1, 2)
    (row,) = host.get("/api/line")
    assert (row["part_id"], row["code"], row["outcome"], row["late_code"]) == ("frozen", 4, "late", 1)
    assert row["age_ms"] > 1000
    dealer.send(s.frames(s.result(3, "after"), **now()))  # type: ignore[arg-type]
    s.until(host.published)
    assert [(each["part_id"], each["code"]) for each in host.published()] == [("after", 1)]
    ages = {part["part_id"]: part["timing"]["age_ms"] for part in host.get("/api/parts")}
    assert ages["frozen"] == 5.0  # the store keeps what the edge said


def test_an_edge_that_invents_clocks_touches_no_other() -> None:
    transit = Transit()
    honest = Envelope(age_ms=0.0, t_sent_ns=10**9, clock_id="boot")
    transit.note("edge-b", honest, 5 * 10**9)
    for number in range(3000):
        transit.note("edge-a", Envelope(age_ms=0.0, t_sent_ns=1, clock_id=f"invented-{number}"), 10**9)
    late = honest.model_copy(update={"t_sent_ns": 2 * 10**9})
    transit.note("edge-b", late, 16 * 10**9)
    assert transit.waited_ns("edge-b", late, 16 * 10**9) == 10 * 10**9
