"""Attachments in chunks: what came is kept over restarts and gone on from, within limits; nothing wrong is taken."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from contract.errors import EventError
from contract.event import (
    CHUNK_BYTES,
    Attachment,
    Chunk,
    Envelope,
    Held,
    chunk_of,
    encode_header,
    from_frames,
    part_ref,
    to_frames,
)
from plugin.partials import FOLDER, Partials, Whole
from tests.plugin import synthetic as s

ENVELOPE = Envelope(age_ms=5.0)
BODY = os.urandom(2 * CHUNK_BYTES + 1000)


def whole(seq: int = 2, body: bytes = BODY, **more: object) -> Attachment:
    references = (
        part_ref("image", body[:-100], codec="png", shape=(1,)),
        part_ref("map", body[-100:], codec="raw", shape=(100,)),
    )
    return s.attachment(seq, "p", 1, references, **more)


def piece(number: int, header: Attachment | None = None, body: bytes = BODY) -> tuple[Chunk, tuple[bytes, bytes]]:
    data = body[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
    chunk, parts = chunk_of(encode_header(header or whole()), len(body), number * CHUNK_BYTES, data)
    return Chunk.model_validate_json(chunk), parts


def take(partials: Partials, chunk: Chunk, parts: tuple[bytes, bytes]) -> Held | Whole | None:
    message = from_frames(to_frames(encode_header(chunk), parts, ENVELOPE))
    assert isinstance(message.header, Chunk)
    return partials.take(message.header, message.parts, ENVELOPE)


def offset(partials: Partials, number: int, *rest: object) -> int:
    held = take(partials, *piece(number, *rest))  # type: ignore[arg-type]
    assert isinstance(held, Held)
    return held.offset


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / FOLDER).glob("*/*") if path.is_file()]


def test_chunks_in_any_order_and_twice_become_the_attachment(tmp_path: Path) -> None:
    partials = Partials(tmp_path)
    assert offset(partials, 1) == 0, "what came too early is asked for again"
    assert offset(partials, 0) == CHUNK_BYTES
    assert offset(partials, 0) == CHUNK_BYTES
    assert offset(partials, 1) == 2 * CHUNK_BYTES
    done = take(partials, *piece(2))
    assert isinstance(done, Whole)
    assert done.message.header == whole() and done.header.encode() == encode_header(whole())
    assert done.message.parts == (BODY[:-100], BODY[-100:])
    assert take(partials, *piece(2)) is None, "it was handed on just now"
    partials.forget((s.EDGE, s.SPOOL, 2))
    assert files(tmp_path) == []


def test_a_restarted_host_goes_on_from_what_is_on_its_disk(tmp_path: Path) -> None:
    assert offset(Partials(tmp_path), 0) == CHUNK_BYTES
    again = Partials(tmp_path)
    assert offset(again, 0) == CHUNK_BYTES
    assert offset(again, 1) == 2 * CHUNK_BYTES
    assert isinstance(take(again, *piece(2)), Whole)


def test_what_a_power_cut_left_wrong_is_begun_anew_and_what_an_edge_sends_wrong_is_refused(tmp_path: Path) -> None:
    offset(Partials(tmp_path), 0)
    (path,) = files(tmp_path)
    path.write_bytes(bytes(CHUNK_BYTES))
    again = Partials(tmp_path)
    offset(again, 1)
    held = take(again, *piece(2))
    assert isinstance(held, Held) and held.offset == 0
    assert offset(again, 0) == CHUNK_BYTES
    wrong = (bytes(CHUNK_BYTES), bytes(CHUNK_BYTES), bytes(1000))
    for number, data in enumerate(wrong[1:], start=1):
        chunk, (header, _) = piece(number)
        if number == 2:
            with pytest.raises(EventError, match="do not match their sha256"):
                take(again, chunk, (header, data))
        else:
            take(again, chunk, (header, data))
    assert files(tmp_path) == []


def test_half_a_write_is_cut_off_again(tmp_path: Path) -> None:
    partials = Partials(tmp_path)
    offset(partials, 0)
    (path,) = files(tmp_path)
    with path.open("ab") as file:
        file.write(b"half of a chunk, then the disk was full")
    assert offset(partials, 1) == 2 * CHUNK_BYTES
    assert isinstance(take(partials, *piece(2)), Whole)


def test_an_edge_has_so_many_and_so_many_bytes_and_the_oldest_go(tmp_path: Path) -> None:
    partials = Partials(tmp_path, most=3)
    for seq in range(1, 6):
        assert offset(partials, 0, whole(seq)) == CHUNK_BYTES
    assert offset(partials, 0, whole(1, edge_id="another")) == CHUNK_BYTES
    assert (len(files(tmp_path)), partials.given_up) == (4, 2)
    assert offset(partials, 1, whole(1)) == 0
    few = Partials(tmp_path, most=3, most_bytes=2 * CHUNK_BYTES)
    assert len(files(tmp_path)) == 3, "bounded when they are found as well"
    assert offset(few, 1, whole(5)) == 2 * CHUNK_BYTES
    assert len(files(tmp_path)) == 2


def test_what_nobody_goes_on_with_is_removed_by_its_age(tmp_path: Path) -> None:
    offset(Partials(tmp_path), 0)
    (path,) = files(tmp_path)
    day_ago = time.time() - 86400
    os.utime(path, (day_ago, day_ago))
    Partials(tmp_path, kept_s=2 * 86400)
    assert files(tmp_path) == [path]
    Partials(tmp_path, kept_s=3600)
    assert files(tmp_path) == []


def test_another_header_under_the_same_identity_continues_nothing(tmp_path: Path) -> None:
    partials = Partials(tmp_path)
    offset(partials, 0)
    other = os.urandom(len(BODY))
    assert offset(partials, 1, whole(body=other), other) == 0


def test_a_file_that_somebody_removed_is_begun_anew(tmp_path: Path) -> None:
    partials = Partials(tmp_path)
    offset(partials, 0)
    (path,) = files(tmp_path)
    path.unlink()
    assert offset(partials, 1) == 0
    assert offset(partials, 0) == CHUNK_BYTES
