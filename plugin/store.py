"""Every event, once, on disk: the only code that writes the store (hop 8).

One thread owns a Store. ``commit`` returns after the disk has the batch (SQLite's WAL with synchronous=FULL, or
PostgreSQL's with synchronous_commit), so that what it returned for may be acknowledged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from contract.event import (
    Attachment,
    Drift,
    Gap,
    Message,
    Missed,
    PartHeader,
    PartRef,
    Result,
    Shadow,
    State,
    Trigger,
    Verdict,
)
from plugin import drift_rows, shadows
from plugin import tables as t
from plugin.blobs import Blobs, BlobStore
from plugin.database import Hand, Place, is_passing, is_sqlite, name_of, open_engine, short
from plugin.durability import confirm
from plugin.errors import FlawlineError
from plugin.reviews import JOURNAL, Decision, Journal, Said, record

DATABASE = "store.sqlite"
log = logging.getLogger(__name__)
Value = TypeVar("Value")
Outcome = Literal["new", "duplicate", "conflict"]
MAX_SEVERITY = 1e9
_FINAL = (
    "state",
    "verdict",
    "reason",
    "score",
    "threshold",
    "severity",
    "timing",
    "age_ms",
    "spool_id",
    "seq",
    "audit_share",
    "audited",
    "frame_no",  # of a part that was triggered by request: known when its frame has come
    "box_px",
    "serial",
    "lot",
    "encoder",
)


class Received(NamedTuple):
    """A decoded event, the peer to answer, the header's JSON verbatim, UTC arrival, the ledger's ticket."""

    route: bytes
    message: Message
    header: str
    received_ns: int
    ticket: int

    @property
    def identity(self) -> tuple[str, str, int]:
        header = self.message.header
        return header.edge_id, header.spool_id, header.seq


LOST = "its edge has neither sent its end nor holds one to be sent, as after a power cut"
MAX_SETTLED = 4096
# By name, for statistics of a store whose parts have all ended lead SQLite to read every part.
_CLOSE_LOST = (
    "UPDATE parts INDEXED BY parts_open SET state = 'missed', verdict = ?, reason = ? "
    "WHERE state = 'triggered' AND edge_id = ? AND spool_id != ?"
)
_PART_KEY = [t.parts.c.edge_id, t.parts.c.part_id]
# One statement whatever the batch's size: the driver would keep one for each count of parameters.
_KNOWN = "SELECT seq, header FROM events WHERE edge_id = ? AND spool_id = ? AND seq IN (SELECT value FROM json_each(?))"
_KNOWN_POSTGRESQL = (
    "SELECT seq, header FROM events WHERE edge_id = %s AND spool_id = %s "
    "AND seq IN (SELECT value::bigint FROM json_array_elements_text(%s::json))"
)


class _Bulk(NamedTuple):
    """A statement for many rows, compiled once: SQLAlchemy's work for each row costs more than the database's."""

    sql: str
    names: list[str]
    positional: bool

    @classmethod
    def of(cls, statement: sa.Insert, table: sa.Table, dialect: sa.Dialect) -> _Bulk:
        names = [column.name for column in table.columns if column.name not in t.WRITTEN_LATER]
        compiled = statement.compile(dialect=dialect, column_keys=names)
        return cls(str(compiled), names, dialect.positional)

    def values(self, row: Mapping[str, Any]) -> Any:
        """What the driver is given of a row."""
        if self.positional:
            return tuple(map(row.__getitem__, self.names))
        return {name: row[name] for name in self.names}


class _Words(NamedTuple):
    """The writer's statements in the words of one database."""

    dialect: ModuleType
    known: str
    close_lost: str
    record: _Bulk
    announce: _Bulk
    conclude: _Bulk

    @classmethod
    def of(cls, engine: sa.Engine) -> _Words:
        ours = is_sqlite(engine)
        dialect: ModuleType = sqlite if ours else postgresql
        lost = _CLOSE_LOST if ours else _CLOSE_LOST.replace(" INDEXED BY parts_open", "").replace("?", "%s")
        part = dialect.insert(t.parts)
        conclude = part.on_conflict_do_update(
            index_elements=_PART_KEY,
            set_={name: part.excluded[name] for name in _FINAL},
            # The first end that is said of a part stands; that none will come was only concluded.
            where=sa.or_(
                t.parts.c.state == sa.literal_column("'triggered'"), t.parts.c.reason == sa.literal_column(f"'{LOST}'")
            ),
        )
        return cls(
            dialect,
            _KNOWN if ours else _KNOWN_POSTGRESQL,
            lost,
            _Bulk.of(dialect.insert(t.events), t.events, engine.dialect),
            _Bulk.of(part.on_conflict_do_nothing(index_elements=_PART_KEY), t.parts, engine.dialect),
            _Bulk.of(conclude, t.parts, engine.dialect),
        )


class Store:
    """Writes events, parts, pictures and reviews. Not safe to share: one thread, one connection."""

    def __init__(
        self, state_dir: Path, blind_share: float = 0.0, where: Place | None = None, blobs: Blobs | None = None
    ) -> None:
        """``blind_share``: of the flagged parts of an audited line, shown as blindly as audited ones (``is_blind``).

        ``where``: the database, a file of the folder where nothing is said. A server that does not answer is waited
        for by ``commit``: the line must not wait for it. Raises ConfigError where the store is none of ours.
        """
        self._blind_share = blind_share
        self.decoy_share = 0.0  # of flagged parts of a line that audits nothing, shown as blindly as second looks
        self.follow: Callable[[sa.Connection, int, int, Said], None] | None = None  # what else a review brings about
        self.path = state_dir / DATABASE
        self.blobs: Blobs = blobs or BlobStore(state_dir / "blobs")
        self._engine = open_engine(where or self.path)
        self._words = _Words.of(self._engine)
        self._settled: dict[tuple[str, str], None] = {}
        self._connection = Hand(self._engine, self._opened)
        try:
            with self._connection.begin():
                pass
        except sa.exc.DBAPIError as error:
            if is_sqlite(self._engine) or not is_passing(error):
                raise
            log.warning("%s does not answer yet (%s)", name_of(self._engine), short(error))

    def close(self) -> None:
        """Fold the write-ahead log into the file and let go of it."""
        self._connection.close()

    def commit(self, batch: Sequence[Received]) -> list[Outcome]:
        """Store a batch in one transaction: ``new``, ``duplicate`` or ``conflict`` (same identity, other words).

        Raises sqlalchemy's or the system's error where nothing is stored for good; pictures may then lie on disk
        unreferenced.
        """
        durable = [item for item in batch if not isinstance(item.message.header, State)]
        with self._connection.begin() as connection:
            outcomes = self._classify(durable)
            fresh = [item for item in durable if outcomes[id(item)] == "new"]
            for item in fresh:
                for reference, data in zip(item.message.header.parts, item.message.parts, strict=True):
                    self.blobs.put(reference.sha256, data)
            self._insert_events(fresh)
            self._insert_parts(fresh)
            self._insert_attachments(fresh)
            self._insert_gaps(fresh)
            for item in fresh:
                if isinstance(item.message.header, Drift):
                    drift_rows.record(connection, item.message.header)
            self._add_shadows(fresh)
            self._count(durable, outcomes)
            settled = self._keep_states(item for item in batch if isinstance(item.message.header, State))
        self._settled |= settled
        while len(self._settled) > MAX_SETTLED:
            del self._settled[next(iter(self._settled))]
        self._confirm()
        return [outcomes.get(id(item), "new") for item in batch]

    def _classify(self, items: Sequence[Received]) -> dict[int, Outcome]:
        asked: dict[tuple[str, str], list[int]] = defaultdict(list)
        for item in items:
            edge_id, spool_id, seq = item.identity
            asked[edge_id, spool_id].append(seq)
        known: dict[tuple[str, str, int], str] = {}
        for (edge_id, spool_id), seqs in asked.items():
            found = self._connection.exec_driver_sql(self._words.known, (edge_id, spool_id, json.dumps(seqs)))
            known |= {(edge_id, spool_id, seq): header for seq, header in found}
        outcomes: dict[int, Outcome] = {}
        for item in items:
            stands = known.setdefault(item.identity, item.header)
            if stands is item.header:
                outcomes[id(item)] = "new"
            elif stands == item.header or isinstance(item.message.header, Attachment):
                # A full spool strips pictures from an attachment that may already have been sent with them.
                outcomes[id(item)] = "duplicate"
            else:
                outcomes[id(item)] = "conflict"
        return outcomes

    def _insert_events(self, items: Sequence[Received]) -> None:
        rows = []
        for item in items:
            header = item.message.header
            rows.append(
                {
                    "edge_id": header.edge_id,
                    "spool_id": header.spool_id,
                    "seq": header.seq,
                    "kind": header.kind,
                    "part_id": getattr(header, "part_id", None),
                    "verdict": getattr(header, "verdict", None),
                    "score": getattr(header, "score", None),
                    "age_ms": item.message.envelope.age_ms,
                    "attempt": min(item.message.envelope.attempt, 2**31),
                    "t_wall_ns": header.t_wall_ns,
                    "received_ns": item.received_ns,
                    "header": item.header,
                }
            )
        self._write(self._words.record, rows)

    def _insert_parts(self, items: Sequence[Received]) -> None:
        announced, final = [], []
        for item in items:
            header = item.message.header
            if isinstance(header, Trigger):
                announced.append(_part_row(item, header, "triggered", None, None, None, None))
            elif isinstance(header, Missed):
                final.append(_part_row(item, header, "missed", Verdict.NOT_INSPECTED, header.reason, None, None))
            elif isinstance(header, Result):
                final.append(
                    _part_row(item, header, "result", header.verdict, header.reason, header.score, header.threshold)
                )
        for row in final:
            if is_blind(row, self._blind_share, self.decoy_share):
                # Anywhere among the others: a place by severity would tell what the page does not.
                row["severity"] = 1.0 - math.log1p(-chance("place", row))
        self._write(self._words.announce, announced)
        self._write(self._words.conclude, final)

    def _write(self, bulk: _Bulk, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._connection.exec_driver_sql(bulk.sql, [bulk.values(row) for row in rows])

    def _insert_attachments(self, items: Sequence[Received]) -> None:
        rows = []
        for item in items:
            header = item.message.header
            if not isinstance(header, Result | Attachment):
                continue
            own = [_attachment_row(header.edge_id, header.part_id, reference) for reference in header.parts]
            if isinstance(header, Attachment) and header.dropped:
                own.append(_dropped_row(header.edge_id, header.part_id))
            rows += [row | {"received_ns": item.received_ns} for row in own]
        if rows:
            self._connection.execute(sa.insert(t.attachments), rows)

    def _insert_gaps(self, items: Sequence[Received]) -> None:
        names = {"edge_id", "camera_id", "from_wall_ns", "to_wall_ns", "duration_ns"}
        rows = [
            header.model_dump(include=names) | {"reason": _holdable(header.reason)}
            for header in (item.message.header for item in items)
            if isinstance(header, Gap)
        ]
        if rows:
            self._connection.execute(sa.insert(t.gaps), rows)

    def _add_shadows(self, items: Sequence[Received]) -> None:
        for item in items:
            if isinstance(item.message.header, Shadow):
                shadows.add(self._connection, self._words.dialect, item.message.header, item.received_ns)

    def _count(self, items: Sequence[Received], outcomes: dict[int, Outcome]) -> None:
        counts: dict[tuple[str, str], dict[str, int]] = {}
        for item in items:
            edge_id, spool_id, seq = item.identity
            row = counts.setdefault((edge_id, spool_id), {"stored": 0, "max_seq": 0, "duplicates": 0})
            row["max_seq"] = max(row["max_seq"], seq)
            row["stored"] += outcomes[id(item)] == "new"
            row["duplicates"] += outcomes[id(item)] == "duplicate"
        statement = self._words.dialect.insert(t.spools)
        largest = sa.func.max if is_sqlite(self._engine) else sa.func.greatest
        added = statement.on_conflict_do_update(
            index_elements=[t.spools.c.edge_id, t.spools.c.spool_id],
            set_={
                "stored": t.spools.c.stored + statement.excluded.stored,
                "max_seq": largest(t.spools.c.max_seq, statement.excluded.max_seq),
                "duplicates": t.spools.c.duplicates + statement.excluded.duplicates,
            },
        )
        for (edge_id, spool_id), row in counts.items():
            self._connection.execute(added, {"edge_id": edge_id, "spool_id": spool_id, **row})

    def _keep_states(self, items: Iterable[Received]) -> dict[tuple[str, str], None]:
        """Each edge's last; returns the spools before which everything is settled, as was not known yet."""
        statement = self._words.dialect.insert(t.edges)
        newest = statement.on_conflict_do_update(
            index_elements=[t.edges.c.edge_id],
            set_={"received_ns": statement.excluded.received_ns, "header": statement.excluded.header},
        )
        settled: dict[tuple[str, str], None] = {}
        for item in items:
            state = item.message.header
            row = {"edge_id": state.edge_id, "received_ns": item.received_ns, "header": item.header}
            self._connection.execute(newest, row)
            if isinstance(state, State) and (spool := _settled_before(state)) and spool not in self._settled | settled:
                self._close_lost(*spool)
                settled[spool] = None
        return settled

    def _close_lost(self, edge_id: str, spool_id: str) -> None:
        """Parts that were announced in an earlier spool of an edge that has sent all that it had of them.

        Called once for each spool: all such parts are stored by then. A later call would find the parts of a newer
        spool too, where the last heartbeat of the run before comes after the first triggers of this one.
        """
        self._connection.exec_driver_sql(self._words.close_lost, (Verdict.NOT_INSPECTED, LOST, edge_id, spool_id))

    def _opened(self, connection: sa.Connection) -> None:
        self._read_settled(connection)
        self._journal = Journal(self.path.with_name(JOURNAL), connection)

    def _read_settled(self, connection: sa.Connection) -> None:
        """As the last heartbeats of before say; what they settled is committed with them."""
        e = t.edges.c
        rows = connection.execute(sa.select(e.header).order_by(e.received_ns.desc()).limit(MAX_SETTLED)).scalars()
        spools = [spool for header in rows if (spool := _settled_in(header)) is not None]
        self._settled = dict.fromkeys(reversed(spools))

    def run(self, work: Callable[[sa.Connection], Value]) -> Value:
        """Do ``work`` in a transaction of its own."""
        with self._connection.begin() as connection:
            return work(connection)

    def remove_pictures(self, rows: Sequence[int], due: Callable[[Mapping[str, Any]], str | None]) -> int:
        """Let go of the pictures of these rows that are still ``due``, which names the rule; returns how many.

        The rows say so first; then each file goes that no row names any more.
        """
        a, p = t.attachments.c, t.parts.c
        of = sa.and_(p.edge_id == a.edge_id, p.part_id == a.part_id)
        found = sa.select(a.id, a.sha256, a.received_ns, p.verdict, p.review, p.audited)
        found = found.select_from(t.attachments.outerjoin(t.parts, of))
        found = found.where(a.id.in_(rows), a.removed_ns.is_(None), sa.not_(t.LOOKED_AT))
        names: set[str] = set()
        with self._connection.begin():
            for row in self._connection.execute(found).mappings().all():
                rule = due(row)
                if rule is not None and row["sha256"] is not None:
                    said = {"removed_ns": time.time_ns(), "removed_by": rule}
                    self._connection.execute(sa.update(t.attachments).where(a.id == row["id"]).values(said))
                    names.add(row["sha256"])
        self._confirm()
        self.remove_unnamed(sorted(names))
        return len(names)

    def remove_unnamed(self, names: Sequence[str]) -> int:
        """Remove the files of those names of which no row says that they are kept; returns how many."""
        a = t.attachments.c
        with self._connection.begin():
            found = sa.select(a.sha256).where(a.removed_ns.is_(None), a.sha256.in_(names)).distinct()
            named = set(self._connection.execute(found).scalars())
        for name in (gone := [name for name in names if name not in named]):
            self.blobs.remove(name)
        return len(gone)

    def _confirm(self) -> None:
        if is_sqlite(self._engine):
            confirm(self.path)

    def review(self, part: int, decision: Decision, inspector: str, **more: Any) -> int:
        """Append an inspector's verdict or an undo of the one that stands; returns the record's number.

        ``more``: what else ``Said`` holds. Raises ReviewError where it cannot stand.
        """
        said = Said(decision, inspector, **more)
        with self._connection.begin() as connection:
            added = record(connection, part, said)
            if self.follow is not None:
                self.follow(connection, added, part, said)
        # It stands; a database that goes away now has it noted when it is there again.
        with suppress(sa.exc.DBAPIError, FlawlineError, OSError), self._connection.begin() as connection:
            self._journal.note(connection, added)
        return added


def _settled_before(state: State) -> tuple[str, str] | None:
    """The edge and the spool before which it owes nothing; None where it may."""
    if not state.settled or state.events_spool_id is None:
        return None
    return state.edge_id, state.events_spool_id


def _settled_in(header: str) -> tuple[str, str] | None:
    try:
        return _settled_before(State.model_validate_json(header))
    except ValueError:  # a heartbeat of an older kind
        return None


def is_blind(part: Mapping[str, Any], blind_share: float, decoy_share: float = 0.0) -> bool:
    """Whether a part's row is one that inspectors see without what the machine said of it.

    Audited parts are, so that nobody agrees with a PASS out of habit, and with them so many flagged ones that a part
    shown blindly may be either. ``decoy_share``: where nothing is audited, so that it may be a part of production.
    """
    share = blind_share if part["audit_share"] else decoy_share
    flagged = part["verdict"] in (Verdict.REJECT, Verdict.REVIEW)
    return (part["audited"] and part["audit_share"] > 0) or (flagged and chance("blind", part) < share)


def chance(purpose: str, part: Mapping[str, Any]) -> float:
    """A number in 0..1 that belongs to a part for good, as if drawn: independent of what was inspected."""
    digest = hashlib.sha256("\n".join((purpose, part["edge_id"], part["part_id"])).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def severity(verdict: str | None, score: float | None, threshold: float | None) -> float | None:
    """How far over the limit, to sort the queue by: score / threshold; 1 where a flagged part has no score."""
    if score is None or threshold is None:
        return 1.0 if verdict in (Verdict.REJECT, Verdict.REVIEW) else None
    factor = score / threshold if threshold > 0 else 1.0 + score - threshold
    return min(max(factor, -MAX_SEVERITY), MAX_SEVERITY)


def _part_row(
    item: Received,
    header: PartHeader,
    state: str,
    verdict: str | None,
    reason: str | None,
    score: float | None,
    threshold: float | None,
) -> dict[str, Any]:
    return {
        "edge_id": header.edge_id,
        "part_id": header.part_id,
        "camera_id": header.camera_id,
        "frame_no": header.frame_no,
        "box_px": None if header.box_px is None else json.dumps(header.box_px),
        "trigger_id": header.trigger_id,
        "state": state,
        "verdict": verdict,
        "reason": _holdable(reason),
        "score": score,
        "threshold": threshold,
        "severity": severity(verdict, score, threshold),
        "timing": header.timing.model_dump_json(),
        "age_ms": item.message.envelope.age_ms,
        "t_wall_ns": header.t_wall_ns,
        "spool_id": header.spool_id,
        "seq": header.seq,
        "audit_share": getattr(header, "audit_share", 0.0),
        "audited": _audited(header),
        "serial": header.serial,
        "lot": header.lot,
        "encoder": header.encoder,
    }


def _holdable(text: str | None) -> str | None:
    """Free text without what PostgreSQL cannot hold; the event's header keeps it as it came."""
    return text and text.replace("\0", "\ufffd")


def _audited(header: PartHeader) -> bool:
    return isinstance(header, Result) and header.audited and header.verdict is Verdict.PASS and header.audit_share > 0


def _attachment_row(edge_id: str, part_id: str, reference: PartRef) -> dict[str, Any]:
    return {
        "edge_id": edge_id,
        "part_id": part_id,
        "role": reference.role,
        "view": reference.view,
        "codec": reference.codec,
        "dtype": reference.dtype,
        "shape": json.dumps(reference.shape),
        "to_part": None if reference.to_part is None else json.dumps(reference.to_part),
        "sha256": reference.sha256,
        "size": reference.size,
    }


def _dropped_row(edge_id: str, part_id: str) -> dict[str, Any]:
    """Stands for pictures that the edge had to give up, so that the page can say so."""
    return {
        "edge_id": edge_id,
        "part_id": part_id,
        "role": "dropped",
        "view": "",
        "codec": "",
        "dtype": "",
        "shape": "[]",
        "to_part": None,
        "sha256": None,
        "size": 0,
    }
