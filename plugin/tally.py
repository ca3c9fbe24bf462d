"""What is counted of each quarter of an hour, kept up as parts end and are judged: what the figures rest on (hop 8)."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import sqlalchemy as sa

from plugin import tables as t
from plugin.logs import LimitedLog
from plugin.store import Store

QUARTER_S = 900
QUARTER_NS = QUARTER_S * 10**9
SLICE = 200
"""Parts in one transaction of the store's thread: some 10 ms in SQLite, 40 in PostgreSQL."""

PAUSE_S = 0.02
"""Between two slices: the writer has events to commit."""

EVERY_S = 5.0
TROUBLE_S = 300.0
log = logging.getLogger(__name__)
p, e, c = t.parts.c, t.events.c, t.tally.c
Key = tuple[int, str, str, str]


class Counted(NamedTuple):
    """So many parts of a quarter, a station and a recipe, with what the machine and inspectors said of them.

    ``verdict`` is the machine's; ``audited``: passed and drawn; ``review`` is empty without an inspector's verdict.
    """

    quarter: int
    edge_id: str
    recipe: str
    verdict: str
    audited: bool
    review: str
    defect_class: str
    n: int


class Tallier:
    """Has the store's thread count what has ended since, every few seconds, a slice at a time. One thread."""

    def __init__(self, write: Callable[[Callable[[Store], int]], int]) -> None:
        self._write = write
        self._ended = threading.Event()
        self._log = LimitedLog(log, TROUBLE_S)

    def run(self) -> None:
        """Until ``stop``; what cannot be counted now, on a full disk say, is counted later."""
        while not self._ended.is_set():
            try:
                n = self._write(lambda store: store.run(add_up))
            except Exception as error:  # noqa: BLE001 - whatever it is: the line must not stand still for a figure
                text = (str(error) or repr(error)).splitlines()[0]
                self._log.warning("tally", f"parts are not counted for the figures now: {text}")
                n = 0
            self._ended.wait(EVERY_S if n < SLICE else PAUSE_S)

    def stop(self) -> None:
        """Let ``run`` return."""
        self._ended.set()


def add_up(connection: sa.Connection, limit: int = SLICE) -> int:
    """Count parts that ended, or were judged, since they were last counted; returns how many it were."""
    now: sa.Label[str] = sa.literal_column(t.COUNTS_AS).label("counts_as")
    due = (
        sa.select(p.id, p.edge_id, p.spool_id, p.seq, p.t_wall_ns, p.recipe, p.tallied, now)
        .where(sa.text(t.UNTALLIED))
        .order_by(p.id)
        .limit(limit)
        .subquery()
    )
    same = sa.and_(e.edge_id == due.c.edge_id, e.spool_id == due.c.spool_id, e.seq == due.c.seq)
    rows = connection.execute(sa.select(due, e.header).select_from(due.outerjoin(t.events, same))).all()
    changes: Counter[Key] = Counter()
    for row in rows:
        quarter, recipe = row.t_wall_ns // QUARTER_NS, _recipe(row.header)
        if row.tallied:
            changes[quarter, row.edge_id, row.recipe or "", row.tallied] -= 1
        if row.counts_as:  # empty for what counts as nothing
            changes[quarter, row.edge_id, recipe, row.counts_as] += 1
    if rows:
        counted = [{"b_id": row.id, "b_recipe": _recipe(row.header), "b_tallied": row.counts_as} for row in rows]
        values: dict[str, Any] = {"recipe": sa.bindparam("b_recipe"), "tallied": sa.bindparam("b_tallied")}
        connection.execute(sa.update(t.parts).where(p.id == sa.bindparam("b_id")).values(values), counted)
    for key, n in changes.items():
        _change(connection, key, n)
    return len(rows)


def waiting_to_count(connection: sa.Connection) -> int:
    """Parts that are not in the sums yet."""
    return int(
        connection.execute(sa.select(sa.func.count()).select_from(t.parts).where(sa.text(t.UNTALLIED))).scalar_one()
    )


def counted(
    connection: sa.Connection, begin: int, end: int, edges: list[str] | None = None, recipe: str | None = None
) -> list[Counted]:
    """The sums of the quarters from ``begin`` to before ``end``, of some stations and one recipe, in order of time."""
    asked = sa.select(c.quarter, c.edge_id, c.recipe, c.counts_as, c.n).where(
        c.quarter >= begin, c.quarter < end, c.n > 0
    )
    if edges is not None:
        asked = asked.where(c.edge_id.in_(edges))
    if recipe is not None:
        asked = asked.where(c.recipe == recipe)
    return [_read(*row) for row in connection.execute(asked.order_by(c.quarter))]


def waiting(connection: sa.Connection) -> list[Counted]:
    """The sums of what waits for an inspector, of any time."""
    kinds = ["REVIEW//", "REJECT//", "PASS*//"]
    asked = sa.select(c.quarter, c.edge_id, c.recipe, c.counts_as, c.n).where(c.counts_as.in_(kinds), c.n > 0)
    return [_read(*row) for row in connection.execute(asked)]


def names(connection: sa.Connection) -> tuple[list[str], list[str]]:
    """Stations and recipes that were ever counted."""
    found = [connection.execute(sa.select(each).distinct().order_by(each)).scalars() for each in (c.edge_id, c.recipe)]
    stations, recipes = found
    return list(stations), [name for name in recipes if name]


def _change(connection: sa.Connection, key: Key, n: int) -> None:
    quarter, edge_id, recipe, counts_as = key
    here = (c.quarter == quarter, c.edge_id == edge_id, c.recipe == recipe, c.counts_as == counts_as)
    if n and not connection.execute(sa.update(t.tally).where(*here).values(n=c.n + n)).rowcount:
        row = {"quarter": quarter, "edge_id": edge_id, "recipe": recipe, "counts_as": counts_as, "n": n}
        connection.execute(sa.insert(t.tally), row)


def _read(quarter: int, edge_id: str, recipe: str, counts_as: str, n: int) -> Counted:
    verdict, review, defect_class = counts_as.split("/", 2)
    return Counted(quarter, edge_id, recipe, verdict.rstrip("*"), verdict.endswith("*"), review, defect_class, n)


def _recipe(header: str | None) -> str:
    found = json.loads(header).get("recipe") if header else None
    return found if isinstance(found, str) else ""
