"""Alarms and reports of drift in the store: each alarm stands once, until somebody clears it (hop 8)."""

from __future__ import annotations

import json
import time
from typing import Any

import sqlalchemy as sa

from contract.event import Drift
from plugin import tables as t

a, e = t.drift_alarms.c, t.events.c
HISTORY = 50
MOST, MOST_OF_EDGE = 256, 32
"""Alarms that stand: so many are seen to, the oldest, and so many are of one edge. A camera is what an event says."""

_IS_DRIFT = e.kind == sa.literal_column("'drift'")
"""As the index has it: a value that is bound would not find it."""


def record(connection: sa.Connection, report: Drift) -> None:
    """Within the transaction that stores the event, which comes once: a new alarm, or one that stands said again."""
    if not report.alarm:
        return
    stands = sa.and_(a.edge_id == report.edge_id, a.camera_id == report.camera_id, a.cleared_ns.is_(None))
    more = {"again": a.again + 1, "last_ns": report.t_wall_ns}
    if connection.execute(sa.update(t.drift_alarms).where(stands).values(more)).rowcount:
        return
    of_edge = sa.select(sa.func.count()).where(a.edge_id == report.edge_id, a.cleared_ns.is_(None))
    if (connection.execute(of_edge).scalar() or 0) >= MOST_OF_EDGE:
        return  # the event itself is stored
    names = {"tests", "measures", "suspect", "since_part_id", "last_part_id", "recipe", "recipe_number", "inspected"}
    row = {
        **report.model_dump(include={"edge_id", "camera_id", "spool_id", "seq", "t_wall_ns"}),
        "again": 0,
        "last_ns": report.t_wall_ns,
        "detail": json.dumps(report.model_dump(mode="json", include=names)),
    }
    connection.execute(sa.insert(t.drift_alarms), row)


def standing(connection: sa.Connection) -> list[dict[str, Any]]:
    """Alarms that nobody has cleared, oldest first, without what was measured: it is asked for all the time."""
    names = (a.id, a.edge_id, a.camera_id, a.t_wall_ns, a.again, a.last_ns, a.containment)
    wanted = sa.select(*names).where(a.cleared_ns.is_(None)).order_by(a.id).limit(MOST)
    return [dict(row) for row in connection.execute(wanted).mappings()]


def detail(connection: sa.Connection, alarm: int) -> dict[str, Any]:
    """What was measured; empty where that cannot be read, since another version wrote it."""
    found = connection.execute(sa.select(a.detail).where(a.id == alarm)).scalar()
    try:
        said = json.loads(found or "")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def history(connection: sa.Connection) -> list[dict[str, Any]]:
    """The last alarms, newest first."""
    rows = connection.execute(sa.select(t.drift_alarms).order_by(a.id.desc()).limit(HISTORY)).mappings().all()
    return [{**row, "detail": detail(connection, row["id"])} for row in rows]


def contained(connection: sa.Connection, alarm: int, containment: int) -> None:
    """Name the list that was opened for an alarm."""
    connection.execute(sa.update(t.drift_alarms).where(a.id == alarm).values(containment=containment))


def is_contained(connection: sa.Connection, alarm: int) -> bool:
    """Whether a list was opened for it; an alarm that is not there needs none."""
    found = connection.execute(sa.select(a.id).where(a.id == alarm, a.containment.is_(None))).scalar()
    return found is None


def clear(connection: sa.Connection, alarm: int, who: str) -> bool:
    """Let an alarm stand no more; False where it does not."""
    said = {"cleared_by": who, "cleared_ns": time.time_ns()}
    done = connection.execute(sa.update(t.drift_alarms).where(a.id == alarm, a.cleared_ns.is_(None)).values(said))
    return bool(done.rowcount)


def stations(connection: sa.Connection) -> list[str]:
    """Edges that have reported, as far as they are heard of or had an alarm: reports may be millions."""
    reported = sa.exists().where(_IS_DRIFT, e.edge_id == t.edges.c.edge_id)
    found = sa.union(sa.select(t.edges.c.edge_id).where(reported), sa.select(a.edge_id))
    return sorted(str(name) for name in connection.execute(found).scalars())


def reports(connection: sa.Connection, edge_id: str, limit: int) -> list[Drift]:
    """An edge's last reports, oldest first; one that a later version wrote otherwise is passed over."""
    wanted = sa.select(e.header).where(_IS_DRIFT, e.edge_id == edge_id).order_by(e.id.desc()).limit(limit)
    found = []
    for header in connection.execute(wanted).scalars():
        try:
            found.append(Drift.model_validate_json(header))
        except ValueError:
            continue
    return found[::-1]
