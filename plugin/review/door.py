"""Who may stay connected to the pages: a bounded number, and nobody who keeps the host waiting (before hop 11).

uvicorn's own limits begin where a request is complete; whoever connects and says nothing would stay for ever and, with
enough company, take the files that store, ledger and ZeroMQ need. So the listening socket counts what it hands out,
also while TLS is still shaking hands, and the protocol above it says whom is being waited for.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from plugin.errors import ConfigError
from plugin.logs import LimitedLog
from plugin.review.signin import network_of
from plugin.settings import HttpSettings

KEEP_ALIVE_S = 15
"""How long a browser's connection is kept for its next request."""

LEAVING = 32
"""Connections that were sent away and whose files are not closed yet."""

RESERVED_FILES = 384
"""Left to store, ledger, accounts, ZeroMQ and line controllers."""

ENOUGH_FILES = 65_536
FEWEST = 16
WAITS = {
    "first": "nothing",
    "head": "no complete request",
    "body": "no complete request body",
    "answer": "an answer that is not read",
    "idle": "no further request",
}
log = logging.getLogger(__name__)


class Visitor(socket.socket):
    """An accepted connection: where from, and what of the peer's is waited for; None while the host owes an answer."""

    def __init__(self, door: Door, accepted: socket.socket, address: str) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self.address = address
        self.leaving = False
        self.awaited: str | None = None
        self.since = time.monotonic()
        self.abort: Callable[[], None] = self._hang_up
        self._door = door
        self._timer: asyncio.TimerHandle | None = None

    def wait_for(self, what: str | None) -> None:
        """What the peer owes from now on. More of the same gains it no time."""
        if self.leaving or what == self.awaited:
            return
        before, self.awaited = self.awaited, what
        if before == "first" and what == "head":
            return
        self._end_timer()
        self.since = time.monotonic()
        if what is not None:
            self._timer = asyncio.get_running_loop().call_later(self._door.limits_s[what], self._door.late, self)

    def send_away(self) -> None:
        """End the connection; its file is closed soon, by whoever reads from it."""
        self.leaving = True
        self._end_timer()
        self.abort()

    def close(self) -> None:
        """Close the file and tell the door."""
        self._end_timer()
        self._door.gone(self)
        super().close()

    def _hang_up(self) -> None:
        try:
            self.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the peer was faster; its end is read as well

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Door(socket.socket):
    """The listening socket. Of too many connections the one that was waited for longest makes room.

    Within an address that has its share, else within the address that has most. Where the host owes an answer to each,
    the newcomer is closed. Used on the loop that accepts; ``status`` on any thread.
    """

    def __init__(self, family: int, settings: HttpSettings) -> None:
        # With the protocol named asyncio sends at once (TCP_NODELAY); else each answer's body waits 40 ms for an ACK.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.most = _within_file_limit(settings.connections)
        self.per_address = settings.connections_per_address
        patience_s = settings.patience_s
        self.limits_s = {
            "first": patience_s,
            "head": patience_s,
            "body": patience_s,
            "answer": 3 * patience_s,
            "idle": KEEP_ALIVE_S
            + patience_s,  # uvicorn ends it first, in good form, unless the peer keeps it from that
        }
        # A proxy's connections are everybody's.
        self._shared = {network_of(each) for each in settings.proxies} if settings.tls == "proxy" else set()
        self._inside: dict[int, Visitor] = {}
        self._counts: Counter[str] = Counter(refused=0, made_room=0, late=0)
        self._log = LimitedLog(log)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that may stay, as ``socket.accept``; BlockingIOError where there is none."""
        while True:
            if len(self._inside) >= self.most + LEAVING:
                raise BlockingIOError("those who were sent away must be gone first")
            accepted, peer = super().accept()
            visitor = Visitor(self, accepted, network_of(peer[0]))
            if self._make_room(visitor.address):
                self._inside[visitor.fileno()] = visitor
                visitor.wait_for("first")
                return visitor, peer
            visitor.close()

    def close(self) -> None:
        """Let nobody in any more; only those to whom an answer is owed stay for it."""
        if self.fileno() != -1:
            for each in [each for each in self._inside.values() if each.awaited is not None]:
                each.send_away()
        super().close()

    def visitor(self, transport: asyncio.BaseTransport) -> Visitor:
        """The connection below a transport, TLS or not."""
        return self._inside[transport.get_extra_info("socket").fileno()]

    def gone(self, visitor: Visitor) -> None:
        """Forget a connection that is closed now."""
        if self._inside.get(visitor.fileno()) is visitor:
            del self._inside[visitor.fileno()]

    def late(self, visitor: Visitor) -> None:
        """Send away whom was waited for too long."""
        what = visitor.awaited or "first"
        if what != "idle":
            self._counts["late"] += 1
        if what not in ("first", "idle"):  # browsers keep silent connections in reserve
            self._log.warning(
                what, f"a connection from {visitor.address} was closed: {WAITS[what]} in {self.limits_s[what]:g} s"
            )
        visitor.send_away()

    def status(self) -> dict[str, int]:
        """How many are connected, and since the start: refused, sent away to make room, sent away because late."""
        return {"connections": len(self._inside), "most": self.most, **self._counts}

    def _make_room(self, address: str) -> bool:
        staying = [each for each in self._inside.values() if not each.leaving]
        held = Counter(each.address for each in staying)
        if held[address] >= self.per_address and address not in self._shared:
            staying = [each for each in staying if each.address == address]
        elif len(staying) < self.most:
            return True
        waiting = [each for each in staying if each.awaited is not None]
        if not waiting:
            self._counts["refused"] += 1
            self._log.warning("refused", f"a connection from {address} was refused: all {len(staying)} are in use")
            return False
        longest = min(waiting, key=lambda each: (-held[each.address], each.since))
        self._counts["made_room"] += 1
        self._log.warning(
            "made_room",
            f"{held[longest.address]} connections from {longest.address}, {held.total()} in all: "
            f"the one that was waited for longest was closed ({WAITS[longest.awaited or 'first']})",
        )
        longest.send_away()
        return True


class Conversation(H11Protocol):
    """uvicorn's HTTP/1.1, which tells the door what it waits for. Only ``at_door`` makes one that works."""

    door: ClassVar[Door]
    _visitor: Visitor
    _unread = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """From here on the connection ends with its transport, which has more to put away than a socket."""
        super().connection_made(transport)
        self._visitor = self.door.visitor(transport)
        self._visitor.abort = transport.abort
        # The peer is asked to read every piece of an answer before the next: a pause says that it does not.
        transport.set_write_buffer_limits(high=1, low=0)
        if self._visitor.leaving:
            self.loop.call_soon(transport.abort)  # not now: asyncio is still setting it up

    def data_received(self, data: bytes) -> None:
        """Take what came, unless the connection ends."""
        if not self._visitor.leaving:
            super().data_received(data)
            self._tell()

    def on_response_complete(self) -> None:
        """The peer's turn again."""
        super().on_response_complete()
        self._tell()

    def pause_writing(self) -> None:
        """The peer does not read what it asked for."""
        super().pause_writing()
        self._unread = True
        self._tell()

    def resume_writing(self) -> None:
        """It has read all that there was."""
        super().resume_writing()
        self._unread = False
        self._tell()

    def _tell(self) -> None:
        self._visitor.wait_for(self._awaited())

    def _awaited(self) -> str | None:
        if self._unread:
            return "answer"
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY):
            return None
        return "head" if self.conn.trailing_data[0] else "idle"


def at_door(door: Door) -> type[Conversation]:
    """The protocol class of the connections that ``door`` lets in."""
    return type("ConversationAtDoor", (Conversation,), {"door": door})


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows it, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _within_file_limit(wanted: int) -> int:
    """``wanted``, or as many connections as leave the rest of the host its files; raises ConfigError."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return wanted
    most = (limit - RESERVED_FILES) // 2 - LEAVING  # a connection and the picture that it is sent
    way_out = "raise it: LimitNOFILE= of a systemd unit, ulimit -n, nofile of a container"
    if most < FEWEST:
        raise ConfigError(
            f"this process may open {limit} files; expected {RESERVED_FILES + 2 * (FEWEST + LEAVING)}; {way_out}"
        )
    if most < wanted:
        log.warning(
            "this process may open %d files: the pages get %d connections, not %d; %s", limit, most, wanted, way_out
        )
    return min(most, wanted)
