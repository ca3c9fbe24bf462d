"""Looks beside production: second opinions, known parts, what an arbiter settles (hop 12, on the store's thread).

A part is drawn for a second opinion by its identity, as audits are; a known part is put before an inspector by chance.
Both are recorded in the chain of reviews with their purpose, and neither counts as a part of production.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from plugin import tables as t
from plugin.errors import ReviewError
from plugin.reviews import CALLS, DISPUTED, Line, Said, lines_of, not_undone, own
from plugin.store import chance

Truth = Literal["good", "defect"]
p, r, k, look = t.parts.c, t.reviews.c, t.known_parts.c, t.looks.c
OFFERED = 20
_DRAW = random.SystemRandom().random


class Open(NamedTuple):
    """A look that an inspector may be given."""

    id: int
    part: int
    purpose: Literal["second", "known"]


class Follow:
    """What a review brings with it, within its transaction: looks that are opened, and the one that it answers."""

    def __init__(self, second_share: float, known_share: float, draw: Callable[[], float] = _DRAW) -> None:
        self._second_share = second_share
        self._known_share = known_share
        self._draw = draw

    def __call__(self, connection: sa.Connection, added: int, part: int, said: Said) -> None:
        if said.purpose in ("second", "known"):
            _answer(connection, added, part, said)
        elif said.purpose is None and said.decision in CALLS:
            self._second(connection, part)
            if self._draw() < self._known_share:
                _offer_known(connection, said.inspector, self._draw)

    def _second(self, connection: sa.Connection, part: int) -> None:
        row = connection.execute(sa.select(p.edge_id, p.part_id, p.master).where(p.id == part)).one()
        if row.master is not None:
            return
        if chance("second", dict(row._mapping)) >= self._second_share or not _has_picture(connection, part):
            return
        asked = sa.select(look.id).where(look.part == part, look.purpose == "second").limit(1)
        if connection.execute(asked).first() is None:
            connection.execute(sa.insert(t.looks), {"part": part, "purpose": "second"})


def _answer(connection: sa.Connection, added: int, part: int, said: Said) -> None:
    """The look that this answers, or answers anew by the same inspector."""
    mine = [line.id for line in own(lines_of(connection, part), said.purpose, said.inspector)]
    whose = sa.or_(look.inspector.is_(None), look.inspector == said.inspector)
    open_or_own = sa.or_(look.review.is_(None), look.review.in_(mine))
    newest = sa.select(sa.func.max(look.id)).where(look.part == part, look.purpose == said.purpose, whose, open_or_own)
    changed = connection.execute(
        sa.update(t.looks).where(look.id == newest.scalar_subquery()).values(review=added, inspector=said.inspector)
    )
    if said.decision == "undo" or not changed.rowcount:
        raise ReviewError("this look was given meanwhile; nothing was written")


def _offer_known(connection: sa.Connection, inspector: str, draw: Callable[[], float]) -> None:
    """One known part at a time: the one that this inspector was shown least often, by chance among equals."""
    n = sa.func.count(look.id)
    shown = sa.and_(look.part == k.part, look.inspector == inspector, look.purpose == "known")
    judged = sa.exists().where(
        r.part == k.part, r.inspector == inspector, sa.or_(r.purpose.is_(None), r.purpose != "known")
    )
    asked = (
        sa.select(k.part, n.label("n"), sa.func.count(look.id).filter(look.review.is_(None)).label("open"))
        .select_from(t.known_parts.outerjoin(t.looks, shown))
        .where(k.retired_ns.is_(None), sa.not_(judged))
        .group_by(k.part)
        .order_by(k.part)
    )
    rows = connection.execute(asked).all()
    if not rows or any(row.open for row in rows):
        return
    fewest = min(row.n for row in rows)
    among = [row.part for row in rows if row.n == fewest]
    part = among[int(draw() * len(among))]
    connection.execute(sa.insert(t.looks), {"part": part, "purpose": "known", "inspector": inspector})


def register(connection: sa.Connection, part: int, by: str) -> None:
    """Make a part that inspectors have judged, and that is not disputed, a known one: its verdict is its truth."""
    row = connection.execute(sa.select(p.review, p.master).where(p.id == part)).first()
    if row is None:
        raise ReviewError(f"there is no part {part}")
    if row.master is not None:
        raise ReviewError(f"part {part} is a master part, which tells of the camera and not of inspectors")
    if row.review not in CALLS:
        raise ReviewError(f"part {part} has no settled verdict, so that nobody knows its truth")
    if not _has_picture(connection, part):
        raise ReviewError(f"part {part} has no picture that could be shown")
    values = {"truth": row.review, "registered_by": by, "t_wall_ns": time.time_ns(), "retired_ns": None}
    if not connection.execute(sa.update(t.known_parts).where(k.part == part).values(values)).rowcount:
        connection.execute(sa.insert(t.known_parts), {"part": part, **values})


def _has_picture(connection: sa.Connection, part: int) -> bool:
    """Whether a part has a picture that can be shown: the others cannot be judged once more."""
    a = t.attachments.c
    of = sa.and_(a.edge_id == p.edge_id, a.part_id == p.part_id)
    asked = sa.select(a.id).join_from(t.parts, t.attachments, of)
    asked = asked.where(p.id == part, a.role == "image", a.sha256.is_not(None), a.removed_ns.is_(None))
    return connection.execute(asked.limit(1)).first() is not None


def retire(connection: sa.Connection, part: int) -> None:
    """Show a known part no more; what was said of it stays counted."""
    changed = sa.update(t.known_parts).where(k.part == part, k.retired_ns.is_(None)).values(retired_ns=time.time_ns())
    if not connection.execute(changed).rowcount:
        raise ReviewError(f"part {part} is no known part")


def known_parts(connection: sa.Connection) -> list[dict[str, Any]]:
    """Every part that is or was a known one."""
    asked = sa.select(t.known_parts, p.part_id, p.edge_id, p.review_class).join(t.parts, p.id == k.part)
    return [dict(row._mapping) for row in connection.execute(asked.order_by(k.retired_ns.is_not(None), k.part))]


def open_for(connection: sa.Connection, inspector: str) -> list[Open]:
    """Looks that an inspector may be given now, in an order that tells nothing."""
    stands = sa.and_(p.review.in_(sorted(CALLS)), p.review_by != inspector)
    knows = sa.exists().where(r.part == look.part, r.inspector == inspector)
    second = sa.and_(look.purpose == "second", stands, sa.not_(knows))
    active = sa.exists().where(k.part == look.part, k.retired_ns.is_(None))
    known = sa.and_(look.purpose == "known", look.inspector == inspector, active)
    asked = sa.select(look.id, look.part, look.purpose, p.edge_id, p.part_id).join(t.parts, p.id == look.part)
    rows = connection.execute(
        asked.where(look.review.is_(None), p.master.is_(None), sa.or_(second, known)).order_by(look.id).limit(OFFERED)
    )
    placed = sorted((chance(f"look {row.id}", dict(row._mapping)), row) for row in rows)
    return [Open(row.id, row.part, row.purpose) for _, row in placed]


def sealed(connection: sa.Connection, parts: Sequence[int]) -> set[int]:
    """Which of these parts wait for a second opinion, or are known ones: nobody but engineers is told of them."""
    waits = sa.select(look.part).where(look.review.is_(None), look.purpose == "second", look.part.in_(parts))
    known = sa.select(k.part).where(k.retired_ns.is_(None), k.part.in_(parts))
    return set(connection.execute(waits.union(known)).scalars())


def disputed(connection: sa.Connection, limit: int) -> list[dict[str, Any]]:
    """Parts of which two inspectors said different things, longest first, each with what was said and by whom."""
    rows = connection.execute(
        sa.select(p.id, p.edge_id, p.part_id, p.t_wall_ns).where(p.review == DISPUTED).order_by(p.id).limit(limit)
    ).all()
    return [{**row._mapping, "calls": calls(connection, row.id)} for row in rows]


def count_disputed(connection: sa.Connection) -> int:
    """How many those are."""
    return int(connection.execute(sa.select(sa.func.count()).where(p.review == DISPUTED)).scalar_one())


def calls(connection: sa.Connection, part: int) -> list[Line]:
    """What stands of each inspector's own word on a part, production's first."""
    return _calls(lines_of(connection, part))


def _calls(lines: Sequence[Line]) -> list[Line]:
    stack = not_undone(own(lines, None, ""))
    found = stack[-1:]
    for name in dict.fromkeys(line.inspector for line in lines if line.purpose == "second"):
        found += not_undone(own(lines, "second", name))[-1:]
    return found


class Pair(NamedTuple):
    """Two opinions on one part."""

    part: int
    first_by: str
    first: str
    second_by: str
    second: str


def pairs(connection: sa.Connection, since_ns: int, until_ns: int) -> list[Pair]:
    """Parts with a second opinion of this time: what production and the other said, unsure ones left out."""
    given = sa.select(look.part).join(t.reviews, r.id == look.review).join(t.parts, p.id == look.part)
    given = given.where(look.purpose == "second", p.master.is_(None))
    given = given.where(r.t_wall_ns >= since_ns, r.t_wall_ns < until_ns)
    named = (r.part, r.id, r.decision, r.inspector, r.defect_class, r.purpose)
    lines: dict[int, list[Line]] = {}
    for part, *line in connection.execute(sa.select(*named).where(r.part.in_(given)).order_by(r.part, r.id)):
        lines.setdefault(part, []).append(Line(*line))
    found = []
    for part, each in lines.items():
        said = _calls(each)
        for first, second in ((said[0], other) for other in said[1:]):
            if first.purpose is None and {first.decision, second.decision} <= CALLS:
                found.append(Pair(part, first.inspector, first.decision, second.inspector, second.decision))
    return found


class Known(NamedTuple):
    """What an inspector said of a known part."""

    inspector: str
    truth: str
    said: str


def known_answers(connection: sa.Connection, since_ns: int, until_ns: int) -> list[Known]:
    """What stands of what inspectors said of known parts in this time."""
    asked = (
        sa.select(r.inspector, k.truth, r.decision)
        .select_from(t.looks)
        .join(t.reviews, r.id == look.review)
        .join(t.known_parts, k.part == look.part)
        .where(look.purpose == "known", r.t_wall_ns >= since_ns, r.t_wall_ns < until_ns)
    )
    return [Known(*row) for row in connection.execute(asked)]
