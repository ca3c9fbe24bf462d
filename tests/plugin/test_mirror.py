"""The line's journal in the store, in either database: each row once, whatever the store does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from contract.event import Verdict, from_frames
from plugin import containment
from plugin import tables as t
from plugin.database import Place
from plugin.errors import FlawlineError, ReviewError, StoreLostError
from plugin.finder import Filter, Finder
from plugin.ledger import Ledger, LedgerReader
from plugin.mirror import Mirror
from plugin.settings import LineSettings
from plugin.store import Store
from plugin.transit import Arrival
from tests.plugin import synthetic as s
from tests.plugin.test_store import put


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """One that somebody is to see to, whose first part was a master and left at the gate."""
    settings = LineSettings(id="line-1", deadline_ms=60_000)
    made = Ledger(tmp_path / "ledger.sqlite", lambda _edge: settings, [settings])
    for name, expected in (("good", "pass"), ("scratched", "reject")):
        made.ask("line-1", "add_master", "eve", name=name, expected=expected, serial=name)
    made.ask("line-1", "alarm", "eve", text="scores drift")
    made.tell([Arrival(from_frames(s.frames(part())), 0)])
    assert made._settle(made._gather())
    made.gate("line-1", 1, "confirmed", "the line controller")
    assert made._settle(made._gather())
    yield made
    made._connection.close()


def part() -> Any:
    return s.result(1, verdict=Verdict.REJECT, serial="scratched", lot="L7")


def test_the_store_has_what_happened_and_with_which_part(tmp_path: Path, where: Place, ledger: Ledger) -> None:
    with closing(Store(tmp_path, where=where)) as store, closing(Finder(where)) as reader:
        journal = LedgerReader(ledger.path)
        mirror = Mirror(journal, lambda job, _timeout_s=5.0: job(store), ledger.journaled)
        mirror.stop()
        mirror.run()
        assert reader.gate(0, 10)[0]["part"] is None, "the part itself is not stored yet"
        put(store, s.frames(part()))
        mirror.run()
        (seen,) = reader.gate(0, 10)
        assert (seen["outcome"], seen["serial"], seen["lot"]) == ("confirmed", "scratched", "L7")
        assert seen["master"] == "master part scratched, outside a challenge"
        store.review(1, "defect", "Ada")
        assert reader.settled_parts(Filter(), 0, 10) == [], "no master is an example for training"
        assert reader.unsettled(Filter()) == {}
        with store._connection.begin() as connection:
            kinds = connection.execute(sa.select(t.line_events.c.kind).order_by(t.line_events.c.id)).scalars().all()
        assert kinds == [row["kind"] for row in journal.journal(0, 100) if row["kind"] not in ("gate", "master")]
        assert {"master_added", "challenge_due", "stop"} <= set(kinds)

        interval = containment.since_good_check(journal, "line-1")
        number = store.run(lambda connection: containment.open_one(connection, interval, "eve"))
        store.run(lambda connection: containment.note(connection, number, "scrapped", "eve"))
        contained = reader.containment(number)
        assert contained is not None
        assert [(note["text"], note["who"]) for note in contained["notes"]] == [("scrapped", "eve")]
        (row,) = containment.parts_of(journal, reader, contained)
        assert (row["part_id"], row["told"], row["gate"]) == ("part-00001", "NOT_INSPECTED", "confirmed")


@pytest.mark.parametrize("lost", [StoreLostError("another host writes it"), ReviewError("it stops"), TimeoutError()])
def test_a_store_that_is_away_ends_no_mirror(
    tmp_path: Path, ledger: Ledger, lost: FlawlineError | TimeoutError
) -> None:
    with closing(Store(tmp_path)) as store:
        failing = iter([lost, lost])
        refused, carried = threading.Event(), threading.Event()

        def call(job: Callable[[Store], Any], _timeout_s: float = 5.0) -> Any:
            if (error := next(failing, None)) is not None:
                refused.set()
                raise error
            return job(store)

        mirror = Mirror(LedgerReader(ledger.path), call, ledger.journaled)
        thread = threading.Thread(target=lambda: (mirror.run(), carried.set()))
        thread.start()
        ledger.journaled.set()
        assert refused.wait(30)
        s.until(lambda: mirror.trouble, what="whoever looks after the host hears of it")
        s.until(lambda: (ledger.journaled.set(), mirror.trouble is None)[1], what="it went on")
        mirror.stop()
        thread.join(10)
        assert carried.is_set()
