"""A real host, killed while an edge keeps sending: everything stands once, nothing is published twice."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable

from contract.event import Verdict
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess

PARTS = 800
KILLS = 3


def everything() -> dict[int, list[bytes]]:
    """Trigger and result of each part by number; every tenth result is a REJECT, every 25th part is missed."""
    messages = {}
    for n in range(1, PARTS + 1):
        seq = 2 * n - 1
        messages[seq] = s.frames(s.trigger(seq, f"p{n}"))
        verdict = Verdict.REJECT if n % 10 == 0 else Verdict.PASS
        final = s.missed(seq + 1, f"p{n}") if n % 25 == 0 else s.result(seq + 1, f"p{n}", verdict)
        messages[seq + 1] = s.frames(final)
    return messages


def test_sigkill_loses_nothing_and_publishes_nothing_twice(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer]
) -> None:
    host = make_host(deadline_ms=60_000)
    dealer = make_dealer(host.endpoint)
    messages = everything()
    kill_at = [len(messages) * (k + 1) // (KILLS + 1) for k in range(KILLS)]
    window, deadline = 200, time.monotonic() + 60
    while len(dealer.acked) < len(messages):
        assert time.monotonic() < deadline, f"{len(dealer.acked)} of {len(messages)} acknowledged"
        open_seqs = [seq for seq in messages if (s.SPOOL, seq) not in dealer.acked][:window]
        for seq in open_seqs:
            dealer.send(messages[seq])
        wanted = len(dealer.acked) + len(open_seqs)
        until = time.monotonic() + 0.5
        while len(dealer.acked) < wanted and time.monotonic() < until:
            dealer.collect(20)
            if kill_at and len(dealer.acked) >= kill_at[0]:
                kill_at.pop(0)
                for seq in open_seqs:
                    dealer.send(messages[seq])  # so that it dies in the middle of work
                assert host.end(signal.SIGKILL) == -signal.SIGKILL
                host.start()
                break
    assert kill_at == []

    again = host.get("/api/summary")["duplicates"] + 50
    for seq in range(1, 51):
        dealer.send(messages[seq])
    summary = s.until(lambda: (found := host.get("/api/summary"))["duplicates"] >= again and found)
    assert summary["parts"] == PARTS
    assert summary["events"] == 2 * PARTS
    assert summary["holes"] == 0
    assert summary["verdicts"] == {
        "PASS": PARTS - PARTS // 25 - PARTS // 10 + PARTS // 50,
        "REJECT": PARTS // 10 - PARTS // 50,
        "NOT_INSPECTED": PARTS // 25,
    }
    assert summary["line"]["open"] == 0

    assert host.end() == 0
    ledger = sqlite3.connect(host.folder / "state" / "ledger.sqlite")
    rows = ledger.execute("SELECT number, part_id, outcome FROM outputs ORDER BY number").fetchall()
    ledger.close()
    assert [number for number, _, _ in rows] == list(range(1, PARTS + 1))
    assert len({part for _, part, _ in rows}) == PARTS
    published = host.published()
    assert max(Counter(row["number"] for row in published).values()) == 1
    assert max(Counter(row["part_id"] for row in published).values()) == 1
    # What is not in the controller's file is exactly what the ledger does not claim to have published.
    claimed = {part for _, part, outcome in rows if outcome == "published"}
    seen = {row["part_id"] for row in published}
    assert claimed <= seen
    assert {outcome for _, part, outcome in rows if part not in claimed} <= {"unknown"}


def test_parts_that_stood_open_are_closed_by_the_next_run(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer]
) -> None:
    host = make_host(deadline_ms=3000)
    dealer = make_dealer(host.endpoint)
    dealer.send(s.frames(s.trigger(1, "open")))
    dealer.wait_acked(1)
    host.end(signal.SIGKILL)
    host.start()
    s.until(lambda: host.published())
    dealer.send(s.frames(s.result(2, "open"), age_ms=5000.0))
    dealer.wait_acked(2)
    (row,) = host.get("/api/line")
    assert [(each["part_id"], each["code"]) for each in host.published()] == [("open", 4)]
    assert (row["source"], row["late_code"]) == ("deadline", 1)
    assert host.get("/api/parts")[0]["verdict"] == "PASS"  # the store keeps what the edge found


def test_it_stops_within_two_seconds_and_takes_its_folder_back(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer]
) -> None:
    host = make_host()
    dealer = make_dealer(host.endpoint)
    dealer.send(s.frames(s.result(1)))
    dealer.wait_acked(1)
    took_s = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        start = time.monotonic()
        assert host.end(number) == 0
        took_s.append(time.monotonic() - start)
        host.start()
    assert min(took_s) < 2.0  # a machine that does much else makes one of them longer
    assert host.end() == 0
    assert b"Traceback" not in host.log.read_bytes()
