"""What inspectors said, append-only: each record carries the hash of the one before it (hop 12).

A record's hash is over all that stands in it, the hash before among it; what is empty is left out, so that a column
that is added later changes no older hash. The last hash is also noted in a file beside the store, line by line: a
chain whose end was cut off is whole by itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from plugin import tables as t
from plugin.errors import ReviewError

Decision = Literal["defect", "good", "unsure", "undo"]
Purpose = Literal["second", "known", "arbiter"]
OPEN_PURPOSES = (None, "arbiter")
"""Of the records that a part's own page shows; the others are given blindly."""

CALLS = {"defect", "good"}
DISPUTED = "disputed"
JOURNAL = "reviews.chain"
FIRST = "0" * 64
"""What the first record carries in place of a hash before it."""

_PAGE = 500
_HEAD = "# flawline review records, begun behind record "
log = logging.getLogger(__name__)
r = t.reviews.c


class Said(NamedTuple):
    """A verdict of an inspector and how it came about; ``seen`` is the part's last record that was shown, 0: none.

    ``purpose``: None in production; ``second`` for a second opinion, ``known`` on a part whose truth is known, which
    both change nothing of what stands unless they disagree with it; ``arbiter`` settles a part.
    """

    decision: Decision
    inspector: str
    defect_class: str | None = None
    comment: str | None = None
    dwell_ms: int | None = None
    station: str | None = None
    seen: int | None = None
    purpose: Purpose | None = None


class Line(NamedTuple):
    """Of a record what decides about the part."""

    id: int
    decision: str
    inspector: str
    defect_class: str | None
    purpose: str | None


class Stands(NamedTuple):
    """What pages, figures and exports take a part for; ``disputed`` is no verdict and no truth."""

    review: str | None = None
    review_by: str | None = None
    review_class: str | None = None


class Report(NamedTuple):
    """What a walk over the records found: how many, the last one, the first that is broken and why, what to know."""

    records: int
    last: tuple[int, str] | None
    broken: str | None
    notes: list[str]


def seal(record: Mapping[str, Any]) -> str:
    """The hash of a record, all columns but ``sha256``."""
    content = {name: value for name, value in record.items() if value is not None and name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def not_undone(rows: Iterable[Line]) -> list[Line]:
    """Records in order -> those not undone; the last one stands."""
    stack: list[Line] = []
    for row in rows:
        if row.decision != "undo":
            stack.append(row)
        elif stack:
            stack.pop()
    return stack


def own(rows: Sequence[Line], purpose: str | None, inspector: str) -> list[Line]:
    """The records that a further one with this purpose stands among: opinions are each inspector's own."""
    opinion = purpose not in OPEN_PURPOSES
    return [row for row in rows if row.purpose == purpose and (not opinion or row.inspector == inspector)]


def standing(rows: Sequence[Line]) -> Stands:
    """What a part's records say together: an arbiter's word, else the last verdict unless a second opinion differs."""
    settled = not_undone(row for row in rows if row.purpose == "arbiter")
    stack = settled or not_undone(row for row in rows if row.purpose is None)
    if not stack:
        return Stands()
    last = stack[-1]
    if not settled and last.decision in CALLS:
        others = {row.inspector for row in rows if row.purpose == "second"} - {last.inspector}
        said = {each[-1].decision for name in others if (each := not_undone(own(rows, "second", name)))}
        if said & CALLS - {last.decision}:
            return Stands(DISPUTED, last.inspector)
    return Stands(last.decision, last.inspector, last.defect_class)


def lines_of(connection: sa.Connection, part: int) -> list[Line]:
    """A part's records, oldest first."""
    asked = sa.select(r.id, r.decision, r.inspector, r.defect_class, r.purpose).where(r.part == part).order_by(r.id)
    return [Line(*row) for row in connection.execute(asked)]


def record(connection: sa.Connection, part: int, said: Said) -> int:
    """Append what was said of a part, and derive what stands, within the caller's transaction; returns the id."""
    p = t.parts.c
    found = connection.execute(
        sa.select(p.edge_id, p.part_id, p.verdict, p.spool_id, p.seq).where(p.id == part)
    ).first()
    if found is None:
        raise ReviewError(f"there is no part {part}")
    rows = lines_of(connection, part)
    stack = not_undone(own(rows, said.purpose, said.inspector))
    _refuse(rows, stack, said)
    before = connection.execute(sa.select(r.id, r.sha256).order_by(r.id.desc()).limit(1)).first()
    row: dict[str, Any] = {
        "id": 1 if before is None else before.id + 1,
        "part": part,
        "edge_id": found.edge_id,
        "part_id": found.part_id,
        "machine_verdict": found.verdict,
        **_judged_by(connection, found),
        **said._asdict(),
        "t_wall_ns": time.time_ns(),
        "supersedes": stack[-1].id if stack else None,
        "prev": FIRST if before is None else before.sha256,
    }
    del row["seen"]
    connection.execute(sa.insert(t.reviews), {**row, "sha256": seal(row)})
    added = int(row["id"])
    stands = standing([*rows, Line(added, said.decision, said.inspector, said.defect_class, said.purpose)])
    connection.execute(sa.update(t.parts).where(p.id == part).values(stands._asdict()))
    return added


def _refuse(rows: Sequence[Line], stack: Sequence[Line], said: Said) -> None:
    shown = [row for row in rows if row.purpose in OPEN_PURPOSES]
    if said.purpose in OPEN_PURPOSES and said.seen is not None and said.seen != (shown[-1].id if shown else 0):
        raise ReviewError(
            f"{shown[-1].inspector if shown else 'nobody'} decided this part meanwhile; nothing was written"
        )
    if said.purpose is None and (standing(rows).review == DISPUTED or not_undone(own(rows, "arbiter", ""))):
        raise ReviewError("two inspectors disagreed about this part: an arbiter settles it; nothing was written")
    if said.decision == "undo" and not stack:
        raise ReviewError("there is no verdict to undo on this part")


def _judged_by(connection: sa.Connection, part: sa.Row[*tuple[Any, ...]]) -> dict[str, str | None]:
    """Recipe and model that the part was judged by, as its event says."""
    e = t.events.c
    header = connection.execute(
        sa.select(e.header).where(e.edge_id == part.edge_id, e.spool_id == part.spool_id, e.seq == part.seq)
    ).scalar()
    known = json.loads(header) if header else {}
    return {name: _text(known.get(name)) for name in ("recipe", "model_sha256")}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


class Journal:
    """The hashes of the records, a line each, in a file that is only ever added to."""

    def __init__(self, path: Path, connection: sa.Connection) -> None:
        self._path = path
        self._last = self._begin(connection)
        self.catch_up(connection)

    def catch_up(self, connection: sa.Connection) -> None:
        """Note the records that are not noted yet; a disk that refuses is asked again with the next record."""
        rows = connection.execute(sa.select(r.id, r.sha256).where(r.id > self._last).order_by(r.id)).all()
        if rows:
            self._append("".join(f"{row.id} {row.sha256}\n" for row in rows), rows[-1].id)

    def note(self, connection: sa.Connection, added: int) -> None:
        """Note a record that was just committed, whatever the file says of its number: both lines then stand."""
        self._last = min(self._last, added - 1)
        self.catch_up(connection)

    def _begin(self, connection: sa.Connection) -> int:
        last = connection.execute(sa.select(sa.func.max(r.id))).scalar() or 0
        if not self._path.exists():
            if last:
                log.warning("%s was not there; it is begun behind record %d", self._path, last)
            self._append(f"{_HEAD}{last}\n", last)
            return int(last)
        with self._path.open("r+b") as file:
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)  # a line that a power cut tore
        noted = [line[0] for line in _lines(self._path)]
        return noted[-1] if noted else _begun(self._path)

    def _append(self, text: str, last: int) -> None:
        try:
            with self._path.open("a", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            log.warning("%s: cannot be written (%s); the next verdict tries again", self._path, error.strerror)
            return
        self._last = last


def verify(connection: sa.Connection, journal: Path, known: tuple[int, str] | None = None) -> Report:
    """Walk all records in order and stop at the first that is broken; ``known``: a last record noted elsewhere."""
    digests: dict[int, bytes] = {}
    said: dict[int, list[Line]] = {}
    last: tuple[int, str] | None = None
    for row in _walk(connection):
        if isinstance(row, str):
            return Report(len(digests), last, row, [])
        if why := _broken(row, FIRST if last is None else last[1]):
            return Report(len(digests), last, f"record {row['id']} {why}", [])
        said.setdefault(row["part"], []).append(Line(*(row[name] for name in Line._fields)))
        last = (row["id"], row["sha256"])
        digests[row["id"]] = bytes.fromhex(row["sha256"])
    notes: list[str] = []
    broken = (_cut(digests, [known], "is not there as it was noted elsewhere") if known else None) or _journal_says(
        digests, journal, notes
    )
    return Report(len(digests), last, broken or _derived(connection, said), notes)


def _walk(connection: sa.Connection) -> Iterator[dict[str, Any] | str]:
    """Every record in order, or a sentence in place of one that cannot be read."""
    after, size = 0, _PAGE
    while True:
        asked = sa.select(t.reviews).where(r.id > after).order_by(r.id).limit(size)
        try:
            rows = [dict(row._mapping) for row in connection.execute(asked)]
        except (sa.exc.DBAPIError, UnicodeDecodeError, ValueError) as error:
            if size == 1:
                yield f"the record behind {after} cannot be read ({str(error).splitlines()[0][:120]})"
                return
            size = 1
            continue
        yield from rows
        if len(rows) < size:
            return
        after = rows[-1]["id"]


def _broken(row: dict[str, Any], before: str) -> str | None:
    if row["prev"] != before:
        return "does not follow the one before it: a record between them is missing, or one of them was changed"
    if row["sha256"] != seal(row):
        return "is not as it was written: its content does not fit its hash"
    return None


def _journal_says(digests: dict[int, bytes], journal: Path, notes: list[str]) -> str | None:
    if not journal.is_file():
        return f"{journal} is not there: whether the last records were cut off, nobody can tell"
    if begun := _begun(journal):
        notes.append(f"{journal.name} begins behind record {begun}; of a cut before that it knows nothing")
    noted = list(_lines(journal))
    last = noted[-1][0] if noted else begun
    if late := sum(number > last for number in digests):
        notes.append(f"{late} record(s) are not noted in {journal.name} yet; a running host notes them with the next")
    return _cut(digests, noted, f"is not there as {journal.name} notes it: cut off, or put in its place")


def _cut(digests: dict[int, bytes], noted: Sequence[tuple[int, str]], why: str) -> str | None:
    for number, digest in noted:
        found = digests.get(number)
        if found is None or found.hex() != digest:
            return f"record {number} {why}"
    return None


def _begun(journal: Path) -> int:
    with journal.open("r", encoding="ascii", errors="replace") as file:
        first = file.readline().strip()
    number = first.removeprefix(_HEAD)
    return int(number) if first.startswith(_HEAD) and number.isdecimal() else 0


def _lines(journal: Path) -> Iterator[tuple[int, str]]:
    """(record, hash) of each whole line; what is no such line is record 0, which is never there."""
    with journal.open("r", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(_HEAD) or not line.endswith("\n"):
                continue
            number, _, digest = line.strip().partition(" ")
            yield (int(number), digest) if number.isdecimal() else (0, digest)


def _derived(connection: sa.Connection, said: dict[int, list[Line]]) -> str | None:
    """Whether the verdicts that pages and exports show are those that the records say."""
    p = t.parts.c
    wanted = {part: stands for part, lines in said.items() if (stands := standing(lines)).review is not None}
    shown = {
        row.id: Stands(row.review, row.review_by, row.review_class)
        for row in connection.execute(
            sa.select(p.id, p.review, p.review_by, p.review_class).where(
                sa.or_(p.review.is_not(None), p.review_by.is_not(None), p.review_class.is_not(None))
            )
        )
    }
    for part in sorted(wanted.keys() | shown.keys()):
        if wanted.get(part) != shown.get(part):
            found, expected = shown.get(part, Stands()), wanted.get(part, Stands())
            return f"part {part} is shown as {tuple(found)}, and its records say {tuple(expected)}"
    return None
