"""What the pages and the HTTP API read from the store, on connections of their own (hop 11)."""

from __future__ import annotations

import collections
import json
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import sqlalchemy as sa

from contract import stats
from contract.event import HEADER, Result, Verdict
from contract.verdicts import SampledPart, Unsampled, VerdictPage
from plugin import tables as t
from plugin.database import Place, open_engine
from plugin.reviews import CALLS

FLAGGED = ("REJECT", "REVIEW")
LATENCY_PARTS = 1000
NAMES = 500
NEWEST_PARTS = 2000
"""Among so many parts those of one edge are looked for: a bounded time, whatever the store holds."""

GOLDEN_TRIES = 12
p = t.parts.c


class Reader:
    """Read-only questions to the store; any thread may ask."""

    def __init__(self, where: Place) -> None:
        self._engine = open_engine(where)

    def close(self) -> None:
        self._engine.dispose()

    @property
    def engine(self) -> sa.Engine:
        """For the questions of others."""
        return self._engine

    def parts(self, after: int, limit: int, serial: str | None = None, lot: str | None = None) -> list[dict[str, Any]]:
        """Parts in the order in which they were first heard of, behind row ``after``.

        With ``serial`` or ``lot`` those that bear it: every one, as two parts may bear the same.
        """
        found = sa.select(t.parts).where(p.id > after)
        if serial is not None:
            found = found.where(p.serial == serial)
        if lot is not None:
            found = found.where(p.lot == lot)
        return [_part(row) for row in self._all(found.order_by(p.id).limit(limit))]

    def part(self, part: int) -> dict[str, Any] | None:
        """One part's row."""
        rows = self._all(sa.select(t.parts).where(p.id == part))
        return _part(rows[0]) if rows else None

    def part_named(self, edge_id: str, part_id: str) -> dict[str, Any] | None:
        """One part's row, by the edge's own name for it."""
        rows = self._all(sa.select(t.parts).where(p.edge_id == edge_id, p.part_id == part_id))
        return _part(rows[0]) if rows else None

    def header_of(self, part: dict[str, Any]) -> dict[str, Any]:
        """The known fields of the event that stands for the part now."""
        e = t.events.c
        found = sa.select(e.header).where(
            e.edge_id == part["edge_id"], e.spool_id == part["spool_id"], e.seq == part["seq"]
        )
        rows = self._all(found)
        return _known_fields(rows[0]["header"]) if rows else {}

    def parts_named(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
        """Parts' rows by the edges' own names for them; what is not stored is left out."""
        rows = self._all(sa.select(t.parts).where(sa.tuple_(p.edge_id, p.part_id).in_(keys))) if keys else []
        return {(row["edge_id"], row["part_id"]): _part(row) for row in rows}

    def containment(self, number: int) -> dict[str, Any] | None:
        """One containment and what was noted about it, oldest first."""
        rows = self._all(sa.select(t.containments).where(t.containments.c.id == number))
        if not rows:
            return None
        n = t.containment_notes.c
        notes = self._all(sa.select(t.containment_notes).where(n.containment == number).order_by(n.id))
        return {**rows[0], "notes": notes}

    def containments(self, line: str, limit: int) -> list[dict[str, Any]]:
        """The containments of a line, newest first."""
        c = t.containments.c
        return self._all(sa.select(t.containments).where(c.line == line).order_by(c.id.desc()).limit(limit))

    def gate(self, after: int, limit: int) -> list[dict[str, Any]]:
        """What was seen behind the gates, behind row ``after``, with each part's serial and lot."""
        g = t.gate_outcomes.c
        same = sa.and_(g.edge_id == p.edge_id, g.part_id == p.part_id)
        found = sa.select(t.gate_outcomes, p.id.label("part"), p.serial, p.lot, p.master)
        found = found.select_from(t.gate_outcomes.outerjoin(t.parts, same))
        return self._all(found.where(g.id > after).order_by(g.id).limit(limit))

    def gate_outcomes(self, edge_id: str, part_id: str) -> list[dict[str, Any]]:
        """What was seen of a part behind the gate, oldest first."""
        g = t.gate_outcomes.c
        return self._all(sa.select(t.gate_outcomes).where(g.edge_id == edge_id, g.part_id == part_id).order_by(g.id))

    def attachments(self, edge_id: str, part_id: str) -> list[dict[str, Any]]:
        """Pictures and maps of a part; role ``dropped`` where its edge had to give some up."""
        return self._attached(edge_id, [part_id])

    def _attached(self, edge_id: str, part_ids: list[str]) -> list[dict[str, Any]]:
        a = t.attachments.c
        rows = self._all(sa.select(t.attachments).where(a.edge_id == edge_id, a.part_id.in_(part_ids)).order_by(a.id))
        return [
            {**row, "shape": json.loads(row["shape"]), "to_part": json.loads(row["to_part"] or "null")} for row in rows
        ]

    def _pictures(self, edge_id: str, part_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Of several parts at once."""
        found: dict[str, list[dict[str, Any]]] = {}
        for each in self._attached(edge_id, part_ids):
            if _is_picture(each):
                found.setdefault(each["part_id"], []).append(each)
        return found

    def thumbnails(self, parts: list[dict[str, Any]]) -> dict[int, int]:
        """Per part's row the attachment that shows it in a list; parts without a picture are left out."""
        a = t.attachments.c
        wanted = sa.and_(
            sa.tuple_(a.edge_id, a.part_id).in_([(part["edge_id"], part["part_id"]) for part in parts]),
            a.role.in_(("thumbnail", "image")),
            a.removed_ns.is_(None),
            a.codec != "raw",
        )
        # "image" sorts before "thumbnail", so that the smaller one is written last and stays
        rows = self._all(sa.select(a.id, a.edge_id, a.part_id).where(wanted).order_by(a.role, a.id.desc()))
        found = {(row["edge_id"], row["part_id"]): row["id"] for row in rows}
        return {part["id"]: found[key] for part in parts if (key := (part["edge_id"], part["part_id"])) in found}

    def attachment(self, number: int) -> dict[str, Any] | None:
        """One picture or map by its row."""
        rows = self._all(sa.select(t.attachments).where(t.attachments.c.id == number))
        return rows[0] if rows else None

    def pictures(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Pictures that may be removed, behind row ``after``, with what became of their part."""
        a = t.attachments.c
        of = sa.and_(p.edge_id == a.edge_id, p.part_id == a.part_id)
        found = sa.select(a.id, a.sha256, a.received_ns, p.verdict, p.review, p.audited)
        kept = (a.id > after, a.removed_ns.is_(None), a.sha256.is_not(None), sa.not_(t.LOOKED_AT))
        return self._all(
            found.select_from(t.attachments.outerjoin(t.parts, of)).where(*kept).order_by(a.id).limit(limit)
        )

    def unnamed(self, names: list[str]) -> list[str]:
        """Those of which no row says that they are kept."""
        a = t.attachments.c
        named: set[str] = set()
        for first in range(0, len(names), NAMES):
            some = names[first : first + NAMES]
            rows = self._all(sa.select(a.sha256).where(a.removed_ns.is_(None), a.sha256.in_(some)).distinct())
            named |= {row["sha256"] for row in rows}
        return [name for name in names if name not in named]

    def reviews(self, part: int) -> list[dict[str, Any]]:
        """What inspectors said about a part, oldest first; opinions that were given blindly are not among it."""
        r = t.reviews.c
        return self._all(sa.select(t.reviews).where(r.part == part, DECIDES).order_by(r.id))

    def queue(self, limit: int, after: tuple[float, int] | None = None) -> list[dict[str, Any]]:
        """Flagged and audited parts without a verdict of an inspector, worst first, behind (severity, id) ``after``."""
        found = sa.select(t.parts).where(*_WAITING)
        if after is not None:
            worst, number = after
            # The first condition is the index's, from where it is read on; the other decides among the equally bad.
            found = found.where(p.severity <= worst, sa.or_(p.severity < worst, p.id > number))
        rows = self._all(found.order_by(p.severity.desc(), p.id).limit(limit))
        return [_part(row) for row in rows]

    def unsure(self, limit: int) -> list[dict[str, Any]]:
        """Parts that an inspector was unsure of and nobody has decided since, worst first."""
        found = sa.select(t.parts).where(p.verdict.is_not(None), p.review == "unsure")
        return [_part(row) for row in self._all(found.order_by(p.severity.desc(), p.id).limit(limit))]

    def count_unsure(self) -> int:
        """How many those are."""
        asked = sa.select(sa.func.count().label("n")).where(p.verdict.is_not(None), p.review == "unsure")
        return int(self._all(asked)[0]["n"])

    def golden(self, part: dict[str, Any], header: dict[str, Any]) -> list[dict[str, Any]]:
        """Pictures of a good part of the same recipe before the same camera, if there is one; the newest of them.

        One that an inspector called good comes first, then one that passed. Parts that wait to be judged blindly,
        or whose truth is not to be told, are left out: to be shown here would tell it.
        """
        recipe = header.get("recipe")
        if not isinstance(recipe, str):
            return []
        r = t.reviews.c
        same = (p.edge_id == part["edge_id"], p.camera_id == part["camera_id"], p.id != part["id"])
        called = sa.select(p.edge_id, p.part_id, r.recipe).join_from(t.reviews, t.parts, r.part == p.id)
        called = called.where(r.edge_id == part["edge_id"], r.recipe == recipe, r.decision == "good", *same)
        called = called.where(p.review == "good", sa.not_(t.LOOKED_AT)).order_by(r.id.desc()).limit(GOLDEN_TRIES)
        # A subquery with a limit is answered by itself: no index of one edge's parts leads away from the newest.
        a = sa.select(t.attachments).order_by(t.attachments.c.id.desc()).limit(NEWEST_PARTS).subquery()
        passed = sa.select(p.edge_id, p.part_id, p.spool_id, p.seq).distinct().add_columns(p.id)
        passed = passed.join_from(a, t.parts, sa.and_(p.edge_id == a.c.edge_id, p.part_id == a.c.part_id))
        passed = passed.where(a.c.role == "image", p.verdict == "PASS", p.review.is_(None), sa.not_(p.audited), *same)
        for found in (called, passed.order_by(p.id.desc()).limit(GOLDEN_TRIES)):
            tried = self._all(found)
            pictures = self._pictures(part["edge_id"], [row["part_id"] for row in tried])
            for row in tried:
                own = pictures.get(row["part_id"])
                if own and (row.get("recipe") or self.header_of(row).get("recipe")) == recipe:
                    return own
        return []

    def latest(self, edge_id: str, limit: int) -> list[dict[str, Any]]:
        """The newest parts of an edge among the store's newest, newest first."""
        newest = sa.select(t.parts).order_by(p.id.desc()).limit(NEWEST_PARTS).subquery()
        found = sa.select(newest).where(newest.c.edge_id == edge_id).order_by(newest.c.id.desc()).limit(limit)
        return [_part(row) for row in self._all(found)]

    def beside(self, part: dict[str, Any], side: Literal["next", "previous"]) -> int | None:
        """The neighbour of a part in the order of the queue, decided parts left out."""
        worst, number = part["severity"] or 0.0, part["id"]
        if side == "next":
            found = self.queue(1, (worst, number))
            return int(found[0]["id"]) if found else None
        before = (p.severity >= worst, sa.or_(p.severity > worst, p.id < number))
        rows = self._all(sa.select(p.id).where(*_WAITING, *before).order_by(p.severity.asc(), p.id.desc()).limit(1))
        return int(rows[0]["id"]) if rows else None

    def waiting(self, most: int | None = None) -> int:
        """Flagged and audited parts that no inspector has decided; counted as far as ``most``."""
        found = sa.select(p.id).where(*_WAITING).limit(most).subquery()
        return int(self._all(sa.select(sa.func.count().label("n")).select_from(found))[0]["n"])

    def not_inspected(self, limit: int) -> list[dict[str, Any]]:
        """Parts without an inspection, newest first."""
        rows = self._all(sa.select(t.parts).where(_LOST, PRODUCTION).order_by(p.id.desc()).limit(limit))
        return [_part(row) for row in rows]

    def gaps(self) -> list[dict[str, Any]]:
        """Times in which an edge or a camera saw nothing."""
        return self._all(sa.select(t.gaps).order_by(t.gaps.c.id))

    def edges(self) -> list[dict[str, Any]]:
        """The last heartbeat of each edge and when it came."""
        rows = self._all(sa.select(t.edges).order_by(t.edges.c.edge_id))
        return [{**_known_fields(row["header"]), "received_ns": row["received_ns"]} for row in rows]

    def spools(self) -> list[dict[str, Any]]:
        """Per spool: events stored, highest number, numbers never seen (``holes``), duplicates absorbed."""
        rows = self._all(sa.select(t.spools).order_by(t.spools.c.edge_id, t.spools.c.spool_id))
        return [{**row, "holes": row["max_seq"] - row["stored"]} for row in rows]

    def counts(self) -> dict[str, Any]:
        """Parts by state, verdict and inspector's verdict, without master parts; events by kind."""
        n = sa.func.count().label("n")
        states = self._all(sa.select(p.state, n).where(PRODUCTION).group_by(p.state))
        verdicts = self._all(sa.select(p.verdict, n).where(PRODUCTION, p.verdict.is_not(None)).group_by(p.verdict))
        reviews = self._all(
            sa.select(p.verdict, p.review, n).where(PRODUCTION, p.review.is_not(None)).group_by(p.verdict, p.review)
        )
        masters = self._all(sa.select(n).where(p.master.is_not(None)))[0]["n"]
        kinds = self._all(sa.select(t.events.c.kind, n).group_by(t.events.c.kind))
        return {
            "parts": sum(row["n"] for row in states),
            "states": {row["state"]: row["n"] for row in states},
            "verdicts": {row["verdict"]: row["n"] for row in verdicts},
            "kinds": {row["kind"]: row["n"] for row in kinds},
            "reviews": [dict(row) for row in reviews],
            "masters": masters,
        }

    def reviewed_rates(self) -> dict[str, stats.Rate]:
        """Of what the machine flagged and inspectors decided: how much they called good (false rejects)."""
        rows = self.counts()["reviews"]
        rates = {}
        for verdict in FLAGGED:
            mine = [row for row in rows if row["verdict"] == verdict and row["review"] in CALLS]
            good = sum(row["n"] for row in mine if row["review"] == "good")
            rates[verdict] = stats.rate(good, sum(row["n"] for row in mine))
        return rates

    def audit(self) -> dict[str, Any]:
        """Audited parts: drawn, still to be judged, and how many of the judged ones are defective (escapes)."""
        n = sa.func.count().label("n")
        rows = self._all(sa.select(p.review, n).where(sa.text("audited"), PRODUCTION).group_by(p.review))
        said = {row["review"]: row["n"] for row in rows}
        drawn = sum(said.values())
        waiting = drawn - sum(said.get(call, 0) for call in CALLS)
        return {
            "drawn": drawn,
            "waiting": waiting,
            "defects": stats.rate(said.get("defect", 0), drawn - waiting)._asdict(),
        }

    def verdicts(self, after: int, limit: int) -> VerdictPage:
        """A page of the export: what inspectors were shown of the parts behind row ``after``, and what they said."""
        e = t.events.c
        same = sa.and_(e.edge_id == p.edge_id, e.spool_id == p.spool_id, e.seq == p.seq)
        found = sa.select(t.parts, e.header).select_from(t.parts.outerjoin(t.events, same))
        rows = self._all(found.where(p.id > after).order_by(p.id).limit(limit))
        results = [(row, _result_of(row)) for row in rows if row["master"] is None]
        shown = [row for row, result in results if result is not None and _inclusion(row) is not None]
        pictures = self.thumbnails(shown)
        parts: list[SampledPart] = []
        passed: collections.Counter[Unsampled] = collections.Counter()
        for row, result in results:
            if result is None:
                continue
            inclusion = _inclusion(row)
            if inclusion is not None:
                parts.append(_sampled(row, result, inclusion, row["id"] in pictures))
            else:
                passed[_unsampled(row, result)] += 1
        return VerdictPage(
            parts=tuple(parts),
            passed=tuple(each.model_copy(update={"parts": count}) for each, count in passed.items()),
            next=rows[-1]["id"] if len(rows) == limit else None,
        )

    def latency_ms(self) -> dict[str, float | int | None]:
        """Capture to sending of the last results at their first arrival, in milliseconds."""
        rows = self._all(sa.select(p.age_ms).where(p.state == "result").order_by(p.id.desc()).limit(LATENCY_PARTS))
        ages = sorted(row["age_ms"] for row in rows)
        if not ages:
            return {"parts": 0, "p50": None, "p95": None, "p99": None, "max": None}
        return {
            "parts": len(ages),
            "p50": statistics.median(ages),
            "p95": ages[int(0.95 * (len(ages) - 1))],
            "p99": ages[int(0.99 * (len(ages) - 1))],
            "max": ages[-1],
        }

    def _all(self, statement: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(statement)]


DECIDES = sa.or_(t.reviews.c.purpose.is_(None), t.reviews.c.purpose == "arbiter")
"""Records of production and of arbiters; opinions that were given blindly decide nothing by themselves."""

PRODUCTION = p.master.is_(None)
"""Master parts are no production: they are in no queue, no figure and no export for calibration."""

_LOST = sa.text("verdict = 'NOT_INSPECTED'")
_WAITING = (
    PRODUCTION,
    p.review.is_(None),
    # word for word the index's condition, so that SQLite uses it
    sa.text("(audited OR verdict IN ('REJECT', 'REVIEW'))"),
)


def _is_picture(attachment: dict[str, Any]) -> bool:
    return attachment["role"] == "image" and attachment["codec"] in ("png", "jpeg")


def _result_of(row: dict[str, Any]) -> Result | None:
    """The event that gave a part its verdict; None where it was not inspected."""
    if row["state"] != "result" or row["verdict"] == Verdict.NOT_INSPECTED or row["header"] is None:
        return None
    header = HEADER.validate_json(row["header"])
    return header if isinstance(header, Result) else None


def _inclusion(row: dict[str, Any]) -> float | None:
    """The probability with which an inspector was to see a part like this; None where this one is shown to nobody."""
    if row["verdict"] in FLAGGED:
        return 1.0
    return float(row["audit_share"]) if row["audited"] else None


def _flags_above(result: Result) -> float | None:
    return result.threshold if result.review_threshold is None else result.review_threshold


def _unsampled(row: dict[str, Any], result: Result) -> Unsampled:
    return Unsampled(
        edge_id=result.edge_id,
        model_sha256=result.model_sha256,
        engine=result.engine,
        audit_share=row["audit_share"],
        flags_above=_flags_above(result),
        parts=1,
    )


def _sampled(row: dict[str, Any], result: Result, inclusion: float, picture: bool) -> SampledPart:
    judged = row["review"] if row["review"] in ("good", "defect") else None
    return SampledPart(
        row=row["id"],
        **result.model_dump(include=set(SampledPart.model_fields) & set(Result.model_fields)),
        flags_above=_flags_above(result),
        inclusion=inclusion,
        judged=judged,
        inspector=None if judged is None else row["review_by"],
        picture=picture,
    )


def _known_fields(header: str) -> dict[str, Any]:
    """A stored header as plain values. What an edge wrote beside the known fields may be of any kind and stays out."""
    fields: dict[str, Any] = HEADER.validate_json(header).model_dump(mode="json", by_alias=True, exclude_none=True)
    return fields


def _part(row: dict[str, Any]) -> dict[str, Any]:
    timing = {**json.loads(row["timing"]), "age_ms": row["age_ms"]}
    plain = {name: value for name, value in row.items() if name not in ("age_ms", "tallied")}
    return {**plain, "timing": timing, "box_px": json.loads(row["box_px"] or "null")}
