"""A thousand parts at twenty a second over OPC UA, and the host killed in the middle: none twice, none wrong."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.event import LineCode, Verdict
from tests.plugin import synthetic as s
from tests.plugin.peers import OpcUaPeer
from tests.plugin.synthetic import Dealer, HostProcess
from tests.plugin.synthetic import make_dealer as make_dealer
from tests.processes import until

PARTS, KILLED_AT, RATE = 1000, 300, 20.0
VERDICTS = (Verdict.PASS, Verdict.REJECT, Verdict.PASS, Verdict.REVIEW, Verdict.PASS, Verdict.NOT_INSPECTED)
CODES = {verdict: LineCode[verdict.name] for verdict in Verdict}


def verdict_of(part: int) -> Verdict:
    return VERDICTS[part % len(VERDICTS)]


def pass_by(dealer: Dealer, part: int) -> None:
    """One part: announced, then judged; and a sign of life of the edge."""
    dealer.send(s.frames(s.state(3 * part), age_ms=1.0))
    dealer.send(s.frames(s.trigger(2 * part, f"p{part}", trigger_id=part), age_ms=1.0))
    dealer.send(s.frames(s.result(2 * part + 1, f"p{part}", verdict_of(part), trigger_id=part), age_ms=15.0))


@pytest.mark.long
def test_a_thousand_parts_over_a_killed_host(tmp_path: Path, make_dealer: Callable[[str], Dealer]) -> None:
    peer = OpcUaPeer(tmp_path)
    host = HostProcess(tmp_path, deadline_ms=1500, connectors=(peer.url,))
    host.start()
    peer.start()
    try:
        dealer = make_dealer(host.endpoint)
        pass_by(dealer, 1)

        def is_inspected() -> bool:
            dealer.send(s.frames(s.state(1), age_ms=1.0))
            return peer.inspected()

        until(is_inspected, "the client listens, and the line is inspected")

        def fall() -> None:
            host.end(signal.SIGKILL)
            host.start()

        falling = threading.Thread(target=fall)
        start = time.monotonic()
        for part in range(2, PARTS + 1):
            time.sleep(max(0.0, start + part / RATE - time.monotonic()))  # the belt
            pass_by(dealer, part)
            dealer.collect(0)  # replies that nobody reads would fill the socket
            if part == KILLED_AT:
                falling.start()
        falling.join()
        until(lambda: _number_of(host, PARTS) in {took.number for took in peer.took()}, "the last part")
        rows = {row["number"]: row for row in host.get(f"/api/line?limit={PARTS}")}
        taken = peer.took()
        numbers = [took.number for took in taken]
        assert numbers == sorted(set(numbers)), "a number was taken twice, or out of order"
        for took in taken:
            assert took.code in (rows[took.number]["code"], LineCode.NOT_INSPECTED), rows[took.number]
            assert rows[took.number]["code"] == CODES[verdict_of(rows[took.number]["trigger_id"])]
        late = [took for took in taken if took.code != rows[took.number]["code"]]
        missing = sorted(row["trigger_id"] for number, row in rows.items() if number not in set(numbers))
        print(f"taken {len(taken)}, of them late {len(late)}; not told {len(missing)}: {missing}")
        # Told is everything but what passed while the host or its server was not there, in one piece.
        gap = [part for part in missing if part > 1]
        assert gap == list(range(gap[0], gap[0] + len(gap)))
        assert KILLED_AT - RATE < gap[0] <= KILLED_AT + RATE
    finally:
        peer.close()
        host.end()


def _number_of(host: HostProcess, part: int) -> int | None:
    rows = host.get(f"/api/line?limit={PARTS}")
    return next((row["number"] for row in rows if row["trigger_id"] == part), None)
