"""Large attachments that come in chunks, kept on disk until they are whole, over restarts of either side (hop 7).

A file holds the bytes from 0 on that have come; its length is what the edge is told to go on from. Its name is made of
the edge, the message's identity and the sha256 of its header, so that nothing else can be continued with it. Each edge
has so many, with so many bytes: over it the one that was touched longest ago goes, and is sent from its beginning.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from contract.errors import EventError
from contract.event import MAX_BODY_BYTES, Attachment, Chunk, Envelope, Held, Message, attachment_of, check_parts

FOLDER = "partial"
MOST_OF_AN_EDGE = 16
"""Twice what an edge has under way."""

BYTES_OF_AN_EDGE = 256 << 20
MOST_EDGES = 1024
AGAIN_S = 1.0
"""A whole one that was handed on is not read again so soon, however often its last chunk comes."""

KEPT_S = 3 * 86400.0
SWEEP_S = 600.0

Identity = tuple[str, str, int]


class Whole(NamedTuple):
    """An attachment of which every byte is there: the message and its header's JSON."""

    message: Message
    header: str


class _Partial:
    """One file. ``from_zero``: this process wrote all of it, so that a wrong hash is not the disk's doing."""

    __slots__ = ("from_zero", "handed_on", "identity", "path", "size", "touched")

    def __init__(self, path: Path, size: int, touched: float, identity: Identity | None, from_zero: bool) -> None:
        self.path = path
        self.size = size
        self.touched = touched
        self.identity = identity
        self.from_zero = from_zero
        self.handed_on = float("-inf")


class Partials:
    """``take`` chunks, ``forget`` what is committed. Used by the receiver's thread alone.

    ``touched`` is wall time, since files outlive the process: a stepped clock removes early or late, never wrongly.
    """

    def __init__(
        self, state_dir: Path, most: int = MOST_OF_AN_EDGE, most_bytes: int = BYTES_OF_AN_EDGE, kept_s: float = KEPT_S
    ) -> None:
        self._folder = state_dir / FOLDER
        self._most, self._most_bytes, self._kept_s = most, most_bytes, kept_s
        self._edges: OrderedDict[str, OrderedDict[str, _Partial]] = OrderedDict()
        self._by_identity: dict[Identity, _Partial] = {}
        self._next_sweep = time.monotonic() + SWEEP_S
        self.given_up = 0
        self._find_those_of_before()

    def _find_those_of_before(self) -> None:
        found = []
        for path in self._folder.glob("*/*"):
            with suppress(OSError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        for touched, size, path in sorted(found):
            self._edge(path.parent.name)[path.name] = _Partial(path, size, touched, None, from_zero=False)
            self._bound(path.parent.name)
        self._sweep()

    def take(self, chunk: Chunk, parts: tuple[bytes, ...], envelope: Envelope) -> Held | Whole | None:
        """Keep what is new of a chunk that ``from_frames`` let through; what is held then, or all of it.

        None where all of it was handed on just now.

        Raises EventError where the whole is not what its header says, and OSError where the disk does not take it: the
        edge hears nothing then and sends again.
        """
        self._sweep_now_and_then()
        header, data = parts
        partial = self._partial_of(chunk)
        if partial.size and not partial.path.exists():  # somebody tidied up
            self._remove(partial)
            partial = self._partial_of(chunk)
        if chunk.offset <= partial.size < chunk.offset + chunk.length:
            self._write(partial, data[partial.size - chunk.offset :])
        if partial.size < chunk.size:
            return self._held(chunk, partial.size)
        if time.monotonic() < partial.handed_on + AGAIN_S:
            return None
        partial.handed_on = time.monotonic()
        try:
            return _read_whole(partial.path, attachment_of(chunk, header), header, envelope)
        except (EventError, OSError):
            self._remove(partial)
            if partial.from_zero:
                raise
            return self._held(chunk, 0)  # what the last run left did not outlive the power cut whole

    def forget(self, identity: Identity) -> None:
        """The message is committed, or given up by its edge."""
        partial = self._by_identity.get(identity)
        if partial is not None:
            self._remove(partial)

    def _held(self, chunk: Chunk, offset: int) -> Held:
        return Held(spool_id=chunk.spool_id, seq=chunk.seq, sha256=chunk.sha256, offset=offset)

    def _edge(self, name: str) -> OrderedDict[str, _Partial]:
        edge = self._edges.setdefault(name, OrderedDict())
        self._edges.move_to_end(name)
        if len(self._edges) > MOST_EDGES:
            for partial in list(next(iter(self._edges.values())).values()):
                self._give_up(partial)
            self._edges.popitem(last=False)
        return edge

    def _partial_of(self, chunk: Chunk) -> _Partial:
        folder = hashlib.sha256(chunk.edge_id.encode()).hexdigest()[:32]
        name = hashlib.sha256(f"{chunk.spool_id}\n{chunk.seq}\n{chunk.sha256}".encode()).hexdigest()
        identity = (chunk.edge_id, chunk.spool_id, chunk.seq)
        edge = self._edge(folder)
        partial = edge.get(name)
        if partial is None or partial.size > chunk.size:
            path = self._folder / folder / name
            path.unlink(missing_ok=True)
            partial = _Partial(path, 0, time.time(), identity, from_zero=True)
            edge[name] = partial
        partial.touched, partial.identity = time.time(), identity
        self._by_identity[identity] = partial
        edge.move_to_end(name)
        self._bound(folder)
        return partial

    def _write(self, partial: _Partial, data: bytes) -> None:
        partial.path.parent.mkdir(parents=True, exist_ok=True)
        with partial.path.open("ab") as file:
            if file.tell() > partial.size:  # a write that failed halfway
                file.truncate(partial.size)
            file.write(data)
        partial.size += len(data)
        self._bound(partial.path.parent.name)

    def _bound(self, folder: str) -> None:
        """Give up what this edge touched longest ago; the last one stays, whatever its size."""
        edge = self._edges[folder]
        while len(edge) > 1 and (
            len(edge) > self._most or sum(partial.size for partial in edge.values()) > self._most_bytes
        ):
            self._give_up(next(iter(edge.values())))

    def _give_up(self, partial: _Partial) -> None:
        self.given_up += 1
        self._remove(partial)

    def _remove(self, partial: _Partial) -> None:
        self._edges.get(partial.path.parent.name, OrderedDict()).pop(partial.path.name, None)
        if partial.identity is not None:
            self._by_identity.pop(partial.identity, None)
        with suppress(OSError):
            partial.path.unlink(missing_ok=True)

    def _sweep_now_and_then(self) -> None:
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP_S
            self._sweep()

    def _sweep(self) -> None:
        """What nobody went on with for days is removed."""
        oldest = time.time() - self._kept_s
        for edge in list(self._edges.values()):
            for partial in [each for each in edge.values() if each.touched < oldest]:
                self._give_up(partial)


def _read_whole(path: Path, header: Attachment, text: bytes, envelope: Envelope) -> Whole:
    """All parts from the disk, each checked against its sha256."""
    parts = []
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_BODY_BYTES:
            raise EventError(f"attachment of over {MAX_BODY_BYTES} bytes", "size")
        for reference in header.parts:
            parts.append(file.read(reference.size))
    check_parts(header, tuple(parts))
    return Whole(Message(header, tuple(parts), envelope), text.decode())
