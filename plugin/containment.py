"""Every part of a line since its last good check: which they are, what is known of each, what was decided (hops 8, 9).

The numbers of the ledger say which parts these are: they go up with every part of a line, over restarts too, and each
entry of the journal bears the last one that was given out before it. No clock is asked.
"""

from __future__ import annotations

import csv
import io
import json
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from contract.event import LineCode
from plugin import tables as t
from plugin.blobs import Blobs
from plugin.errors import LineError
from plugin.ledger import LedgerReader
from plugin.queries import Reader

CHUNK = 500
FAILED, GOOD = "challenge_failed", "challenge_passed"
CAUSES = (FAILED, "stop")
COLUMNS = (
    "line",
    "number",
    "part",
    "edge_id",
    "part_id",
    "serial",
    "lot",
    "t_wall_ns",
    "verdict",
    "score",
    "threshold",
    "told",
    "held",
    "outcome",
    "gate",
    "review",
    "review_by",
    "master",
    "model",
)


class Interval(NamedTuple):
    """Parts of a line with numbers above ``after`` up to ``last``, those of one model alone where it is named.

    ``good_check``: the journal's row of the last challenge that was passed before; None: there was none.
    ``ledger``: which one gave these numbers out.
    """

    line: str
    cause: str
    event: int | None
    model: str | None
    after: int
    last: int
    good_check: int | None
    ledger: str | None


def since_good_check(ledger: LedgerReader, line: str, event: int | None = None) -> Interval:
    """Up to a failed challenge, or past a stop to the next good check, or now. Raises LineError."""
    good = _good_check(ledger, line, event)
    if event is None:
        return _interval(ledger, line, "asked for", None, good, ledger.last_number(line))
    cause = ledger.journal_row(line, event)
    if cause is None or cause["kind"] not in CAUSES:
        raise LineError(f"line {line!r} has no failed challenge and no stop {event}")
    last = cause["number"]
    if cause["kind"] == "stop":  # a line need not have stopped at once
        later = ledger.challenge_passed(line, "after", row=event)
        last = later["number"] if later else ledger.last_number(line)
    text = cause["detail"].get("text") or cause["detail"].get("why")
    return _interval(ledger, line, f"{cause['kind']}: {text}"[:400], event, good, last)


def _good_check(ledger: LedgerReader, line: str, event: int | None) -> dict[str, Any] | None:
    """The check that was passed before ``event``, or before now, and proves what is doubted.

    A failed challenge doubts its recipe and what it read wrong: only a check of that recipe that read those masters
    proves anything of it. A stop doubts what was released last, or what has failed since.
    """
    cause = None if event is None else ledger.journal_row(line, event)
    if cause is not None and cause["kind"] == FAILED:
        doubted: dict[str, Any] | None = cause
    else:
        doubted = next(ledger.challenges(line, event), None)
    if doubted is None or doubted["kind"] == GOOD:
        return doubted
    wrong = {each["master"] for each in doubted["detail"]["readings"] if each.get("wrong")}
    left = _recipes(doubted)
    for row in ledger.challenges(line, doubted["id"]) if left else ():
        read = {each["master"] for each in row["detail"]["readings"]}
        if row["kind"] == GOOD and wrong <= read:
            left -= _recipes(row)
            if not left:
                return row  # the earliest, where more than one recipe is doubted
    return None


def _recipes(challenge: dict[str, Any]) -> set[int | None]:
    """By which a challenge was read; a journal of an earlier version says so with the readings alone."""
    detail = challenge["detail"]
    read = {each.get("recipe_number") for each in detail["readings"] if each.get("model_sha256")}
    return read | {detail["recipe"]} if "recipe" in detail else read


def since_drift(ledger: LedgerReader, line: str, number: int | None, cause: str) -> Interval:
    """Up to now, from the part with ``number``, by which the change is taken to have begun; None: not known.

    From the last good check before it, where there was one: until then the line is known to have seen. Where nothing
    is known of the change, as for a stop.
    """
    last = ledger.last_number(line)
    if number is None:
        return _interval(ledger, line, cause, None, _good_check(ledger, line, None), last)
    interval = _interval(ledger, line, cause, None, ledger.challenge_passed(line, "before", number=number), last)
    return interval if interval.good_check is not None else interval._replace(after=number - 1)


def judged_by(ledger: LedgerReader, line: str, model: str) -> Interval:
    """Everything that a bad model judged: a check that was passed with that model proves nothing. Raises LineError."""
    found = ledger.judged_by(line, model)
    if found is None:
        raise LineError(f"the model {model[:12]} has judged no part of line {line!r}")
    first, last = found
    good = ledger.challenge_passed(line, "before", number=first)
    interval = _interval(ledger, line, f"bad model {model[:12]}", None, good, last)
    return interval._replace(model=model, after=first - 1)


def _interval(
    ledger: LedgerReader, line: str, cause: str, event: int | None, good: dict[str, Any] | None, last: int
) -> Interval:
    after, check = (good["number"], good["id"]) if good else (0, None)
    return Interval(line, cause, event, None, after, last, check, ledger.ledger_id())


def open_one(connection: sa.Connection, interval: Interval, who: str) -> int:
    """Record that somebody looks at these parts; returns the containment's row."""
    row = {**interval._asdict(), "opened_by": who, "t_wall_ns": time.time_ns()}
    return int(connection.execute(sa.insert(t.containments).returning(t.containments.c.id), row).scalar_one())


def note(connection: sa.Connection, containment: int, text: str, who: str) -> None:
    """Append what was decided."""
    row = {"containment": containment, "text": text, "who": who, "t_wall_ns": time.time_ns()}
    connection.execute(sa.insert(t.containment_notes), row)


def parts_of(
    ledger: LedgerReader, reader: Reader, contained: Mapping[str, Any], after: int = 0, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """The parts of a containment's row behind number ``after``, with what is known of each now.

    Raises LineError at once where another ledger gave its numbers out.
    """
    # One that was opened before ledgers had names is taken to be of this one.
    if contained["ledger"] not in (None, ledger.ledger_id()):
        raise LineError(
            f"containment {contained['id']} was opened over another ledger, and its numbers, {contained['after'] + 1} "
            f"to {contained['last']}, are of other parts in this one; move that ledger.sqlite back to see its parts"
        )
    return _parts_of(ledger, reader, contained, after, limit)


def _parts_of(
    ledger: LedgerReader, reader: Reader, contained: Mapping[str, Any], after: int, limit: int | None
) -> Iterator[dict[str, Any]]:
    after, left = max(after, contained["after"]), limit
    while left is None or left > 0:
        size = CHUNK if left is None else min(CHUNK, left)
        told = ledger.between(contained["line"], after, contained["last"], contained["model"], size)
        known = reader.parts_named([(row["edge_id"], row["part_id"]) for row in told])
        for row in told:
            yield _row(row, known.get((row["edge_id"], row["part_id"]), {}))
        if len(told) < size:
            return
        after = told[-1]["number"]
        left = None if left is None else left - len(told)


def _row(told: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    about = ("serial", "lot", "verdict", "score", "threshold", "review", "review_by", "master", "t_wall_ns")
    row = {
        **{name: told[name] for name in ("line", "number", "edge_id", "part_id", "held", "outcome", "gate", "model")},
        **{name: part.get(name) for name in about},
        "part": part.get("id"),
        "told": LineCode(told["code"]).name,
    }
    return {name: row[name] for name in COLUMNS}


def as_csv(rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """A table with a line for each part; no cell is taken for a formula by a spreadsheet."""
    page = io.StringIO()
    writer = csv.DictWriter(page, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _plain(value) for name, value in row.items()})
        yield page.getvalue().encode()
        page.seek(0)
        page.truncate()
    yield page.getvalue().encode()


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


class _Pipe(io.RawIOBase):
    """Takes what a zip file writes and gives it on at once: an archive of a shift's pictures never is in memory."""

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        held, self._held = b"".join(self._held), []
        return held


def as_zip(
    rows: Callable[[], Iterator[dict[str, Any]]], reader: Reader, blobs: Blobs, contained: Mapping[str, Any]
) -> Iterator[bytes]:
    """``containment.json``, the pictures, each named by its part's number, and ``parts.csv``.

    ``rows`` are asked for twice: those of a line's whole history have no place in memory.
    """
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("containment.json", json.dumps(contained, indent=2))
        yield pipe.taken()
        for row in rows():
            for each in reader.attachments(row["edge_id"], row["part_id"]):
                shown = each["sha256"] is not None and each["codec"] in ("png", "jpeg")
                data = blobs.read(each["sha256"]) if shown else None
                if data is not None:
                    view = re.sub(r"[^A-Za-z0-9_-]", "_", each["view"])
                    name = f"pictures/{row['number']:08d}-{each['id']}-{each['role']}-{view}.{each['codec']}"
                    archive.writestr(name, data)
                    yield pipe.taken()
        with archive.open("parts.csv", "w") as table:
            for piece in as_csv(rows()):
                table.write(piece)
                yield pipe.taken()
    yield pipe.taken()
