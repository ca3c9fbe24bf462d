"""Parts, events and decisions by time, line, edge, recipe, verdict, serial and lot, page by page (hop 8 to hop 11)."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from plugin import tables as t
from plugin.queries import DECIDES, FLAGGED, PRODUCTION, Reader, _known_fields, _part

LARGEST = 2**63 - 1
MOST_EDGES = 256
SETTLED = ("good", "defect")
JUDGED_BY = ("recipe", "bundle_id", "model_sha256", "calibration_id", "engine")
p, e = t.parts.c, t.events.c
_SETTLED = p.review.in_(SETTLED)
"""Parts whose truth exports tell."""


class RecipeOf(FunctionElement[str]):
    """The recipe in an event's header, which the store keeps as the edge wrote it."""

    type = sa.Text()
    name = "recipe_of"
    inherit_cache = True


@compiles(RecipeOf, "sqlite")
def _sqlite(element: RecipeOf, compiler: SQLCompiler, **options: Any) -> str:
    header = compiler.process(element.clauses, **options)
    return f"CASE WHEN json_valid({header}) THEN json_extract({header}, '$.recipe') END"


@compiles(RecipeOf, "postgresql")
def _postgresql(element: RecipeOf, compiler: SQLCompiler, **options: Any) -> str:
    return f"flawline_recipe({compiler.process(element.clauses, **options)})"


class Filter(NamedTuple):
    """What parts are wanted; None: all. ``edges``: those of a line, or one. ``review`` "none": nobody decided."""

    since: datetime | None = None
    until: datetime | None = None
    edges: Collection[str] | None = None
    recipe: str | None = None
    verdicts: Collection[str] | None = None
    serial: str | None = None
    lot: str | None = None
    review: str | None = None


class Finder(Reader):
    """The store's questions for programs, beside those for pages."""

    def find_parts(self, wanted: Filter, after: int | None, limit: int, newest_first: bool = False) -> list[Any]:
        """Rows of parts with what judged them, in the order in which they were first heard of."""
        same = sa.and_(e.edge_id == p.edge_id, e.spool_id == p.spool_id, e.seq == p.seq)
        found = sa.select(t.parts, e.header).select_from(t.parts.outerjoin(t.events, same)).where(*_conditions(wanted))
        return [_with_judge(row) for row in self._all(_paged(found, p.id, after, limit, newest_first))]

    def find_events(
        self,
        after: int | None,
        limit: int,
        edges: Collection[str] | None = None,
        kind: str | None = None,
        part_id: str | None = None,
        newest_first: bool = False,
    ) -> list[dict[str, Any]]:
        """Events in the order in which they were stored."""
        found = sa.select(t.events)
        if edges is not None:
            found = found.where(e.edge_id.in_(edges))
        if kind is not None:
            found = found.where(e.kind == kind)
        if part_id is not None:
            found = found.where(e.part_id == part_id)
        return [_event(row) for row in self._all(_paged(found, e.id, after, limit, newest_first))]

    def find_event(self, number: int) -> dict[str, Any] | None:
        """One event by its row."""
        rows = self._all(sa.select(t.events).where(e.id == number))
        return _event(rows[0]) if rows else None

    def judged_part(self, number: int) -> dict[str, Any] | None:
        """One part's row with what judged it."""
        same = sa.and_(e.edge_id == p.edge_id, e.spool_id == p.spool_id, e.seq == p.seq)
        rows = self._all(
            sa.select(t.parts, e.header).select_from(t.parts.outerjoin(t.events, same)).where(p.id == number)
        )
        return _with_judge(rows[0]) if rows else None

    def find_reviews(
        self,
        after: int | None,
        limit: int,
        part: int | None = None,
        newest_first: bool = False,
        blind_too: bool = True,
    ) -> list[dict[str, Any]]:
        """Inspectors' decisions in their order; ``blind_too``: with opinions that decide nothing by themselves."""
        found = sa.select(t.reviews)
        if not blind_too:
            found = found.where(DECIDES)
        if part is not None:
            found = found.where(t.reviews.c.part == part)
        return self._all(_paged(found, t.reviews.c.id, after, limit, newest_first))

    def ended_parts(self, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """(event's row, part's row) of the events behind row ``after`` that ended a part, each part once."""
        same = sa.and_(e.edge_id == p.edge_id, e.part_id == p.part_id, e.spool_id == p.spool_id, e.seq == p.seq)
        found = sa.select(e.id.label("event_row"), t.parts, e.header).select_from(t.events.join(t.parts, same))
        found = found.where(e.id > after, e.kind.in_(("result", "missed"))).order_by(e.id).limit(limit)
        return [(row.pop("event_row"), _with_judge(row)) for row in self._all(found)]

    def heads(self) -> tuple[int, int]:
        """The newest row of the events and of the reviews; 0 where there is none."""
        rows = self._all(
            sa.select(
                sa.select(sa.func.max(e.id)).scalar_subquery().label("event"),
                sa.select(sa.func.max(t.reviews.c.id)).scalar_subquery().label("review"),
            )
        )
        return rows[0]["event"] or 0, rows[0]["review"] or 0

    def edges_heard(self) -> list[str]:
        """Every edge that an event or a heartbeat of is stored."""
        both = sa.union(sa.select(t.spools.c.edge_id), sa.select(t.edges.c.edge_id))
        with self._engine.connect() as connection:
            return sorted(connection.execute(both).scalars())

    def last_heard(self) -> dict[str, int]:
        """When the last heartbeat of each edge arrived, UTC nanoseconds; of some where strangers invent many."""
        c = t.edges.c
        rows = self._all(sa.select(c.edge_id, c.received_ns).order_by(c.received_ns.desc()).limit(MOST_EDGES))
        return {row["edge_id"]: row["received_ns"] for row in rows}

    def settled_parts(self, wanted: Filter, after: int, limit: int) -> list[dict[str, Any]]:
        """Rows of parts that inspectors called good or defective, with what judged them."""
        same = sa.and_(e.edge_id == p.edge_id, e.spool_id == p.spool_id, e.seq == p.seq)
        found = sa.select(t.parts, e.header).select_from(t.parts.outerjoin(t.events, same))
        found = found.where(*_conditions(wanted), PRODUCTION, _SETTLED)
        return [_with_judge(row) for row in self._all(_paged(found, p.id, after, limit, False))]

    def unsettled(self, wanted: Filter) -> dict[str, int]:
        """How many parts inspectors were to judge and none has settled, by what stands."""
        same = sa.and_(e.edge_id == p.edge_id, e.spool_id == p.spool_id, e.seq == p.seq)
        waiting = sa.and_(p.review.is_(None), sa.or_(p.audited, p.verdict.in_(FLAGGED)))
        found = sa.select(p.review, sa.func.count().label("n")).select_from(t.parts.outerjoin(t.events, same))
        found = found.where(*_conditions(wanted), PRODUCTION, sa.or_(waiting, sa.not_(_SETTLED))).group_by(p.review)
        return {row["review"] or "nobody decided": row["n"] for row in self._all(found)}

    def settled_views(self, wanted: Filter) -> list[str]:
        """The cameras whose pictures of settled parts are kept."""
        found = self._settled_pictures(wanted, ("image",), t.attachments.c.view).group_by(t.attachments.c.view)
        return sorted(row["view"] for row in self._all(found))

    def settled_size(self, wanted: Filter) -> tuple[int, int]:
        """How many pictures of settled parts are kept, and the bytes of them and of their maps."""
        a = t.attachments.c
        n, size = sa.func.count().filter(a.role == "image").label("n"), sa.func.sum(a.size).label("size")
        row = self._all(self._settled_pictures(wanted, ("image", "map"), n, size))[0]
        return int(row["n"]), int(row["size"] or 0)

    def _settled_pictures(
        self, wanted: Filter, roles: Collection[str], *columns: sa.ColumnElement[Any]
    ) -> sa.Select[Any]:
        a = t.attachments.c
        same = sa.and_(e.edge_id == p.edge_id, e.spool_id == p.spool_id, e.seq == p.seq)
        theirs = sa.and_(a.edge_id == p.edge_id, a.part_id == p.part_id)
        source = t.parts.join(t.attachments, theirs).outerjoin(t.events, same)
        kept = (a.role.in_(roles), a.removed_ns.is_(None), a.sha256.is_not(None))
        return sa.select(*columns).select_from(source).where(*_conditions(wanted), PRODUCTION, _SETTLED, *kept)

    def decisions(self) -> dict[str, int]:
        """Inspectors' decisions by kind."""
        c, n = t.reviews.c, sa.func.count().label("n")
        return {row["decision"]: row["n"] for row in self._all(sa.select(c.decision, n).group_by(c.decision))}

    def oldest_waiting_ns(self) -> int | None:
        """When the part was captured that has waited longest for an inspector, UTC; None where none waits."""
        waiting = (p.review.is_(None), sa.text("(audited OR verdict IN ('REJECT', 'REVIEW'))"))
        found: int | None = self._all(sa.select(sa.func.min(p.t_wall_ns).label("t")).where(*waiting))[0]["t"]
        return found


def nanoseconds(moment: datetime) -> int:
    """UTC nanoseconds as the store keeps them; a time without a zone is UTC."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0, min(int(aware.timestamp() * 1000) * 10**6, LARGEST))


def _conditions(wanted: Filter) -> list[sa.ColumnElement[bool]]:
    given: list[sa.ColumnElement[bool]] = []
    if wanted.since is not None:
        given.append(p.t_wall_ns >= nanoseconds(wanted.since))
    if wanted.until is not None:
        given.append(p.t_wall_ns < nanoseconds(wanted.until))
    if wanted.edges is not None:
        given.append(p.edge_id.in_(wanted.edges))
    if wanted.recipe is not None:
        given.append(RecipeOf(e.header) == wanted.recipe)
    if wanted.verdicts:
        given.append(p.verdict.in_(wanted.verdicts))
    if wanted.serial is not None:
        given.append(p.serial == wanted.serial)
    if wanted.lot is not None:
        given.append(p.lot == wanted.lot)
    if wanted.review is not None:
        given.append(p.review.is_(None) if wanted.review == "none" else p.review == wanted.review)
    return given


def _paged(
    found: sa.Select[Any], row: sa.Column[int], after: int | None, limit: int, newest_first: bool
) -> sa.Select[Any]:
    if after is not None:
        found = found.where(row < after if newest_first else row > after)
    return found.order_by(row.desc() if newest_first else row).limit(limit)


def _with_judge(row: dict[str, Any]) -> dict[str, Any]:
    """A part's row with the names of what judged it, as its event says."""
    header = row.pop("header")
    said = {} if header is None else json.loads(header)
    age_ms = row["age_ms"]
    judged = {name: value for name in JUDGED_BY if isinstance(value := said.get(name), str)}
    return {**_part(row), "age_ms": age_ms, **judged}


def _event(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "header": _known_fields(row["header"])}
