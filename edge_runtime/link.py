"""The edge's connection to a socket of the host: keys, what became of it in words, and new attempts (hop 6)."""

from __future__ import annotations

import logging
import time
from contextlib import suppress

import zmq

from contract.curve import FAILED, MECHANISM_MISMATCH, Monitor, keep_alive, secure_client
from contract.keys import PUBLIC, KeyPair, fingerprint, load_pair, load_public
from contract.unread import Unread
from edge_runtime.settings import HostLink

RETRY_S = 3.0
"""Pause before a refused edge tries again: ZeroMQ itself gives up for good after a refusal."""

UNEXPLAINED = 3
"""Handshakes that ended without a word until that means something: a host that is being restarted ends one or two."""

LOOK_MS = 250
"""Between looks at a connection that has stood for a while and brings nothing: an idle edge's core is not for looking.
"""

CLOSE_LOOK_MS = 50
"""Between looks at a new connection, and while a long message is on its way: what comes meanwhile lies in memory."""

log = logging.getLogger(__name__)
Socket = zmq.Socket[bytes]


class Keys:
    """The edge's own pair and the public key of the host that it speaks to."""

    def __init__(self, own: KeyPair, host: str) -> None:
        self.own = own
        self.host = host


class Link:
    """A DEALER that connects out. Made, tended and closed by one thread; any may read ``trouble``."""

    def __init__(
        self, context: zmq.Context[Socket], endpoint: str, keys: Keys | None, window: int, max_frame_bytes: int
    ) -> None:
        self.trouble: str | None = None
        self._endpoint = endpoint
        self._keys = keys
        self._retry_at: float | None = None
        self._unexplained = 0
        self._unread = Unread(max_frame_bytes, window * max_frame_bytes, quiet=True)
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.IMMEDIATE, 1)
        self.socket.set(zmq.SNDHWM, window)
        self.socket.set(zmq.RCVHWM, window)
        self.socket.set(zmq.RECONNECT_IVL, 100)
        self.socket.set(zmq.RECONNECT_IVL_MAX, 2000)
        self.socket.set(zmq.MAXMSGSIZE, max_frame_bytes)
        keep_alive(self.socket)
        if keys is not None:
            secure_client(self.socket, keys.own, keys.host)
        self._monitor = Monitor(context, self.socket)
        self.socket.connect(endpoint)

    @property
    def look_ms(self) -> int:
        """How long the owner may wait until it calls ``tend`` again."""
        return CLOSE_LOOK_MS if self._unread.is_close() else LOOK_MS

    def register(self, poller: zmq.Poller) -> None:
        """Wake the poller for messages and for what happens to the connection."""
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self._monitor.socket, zmq.POLLIN)

    def receive(self) -> list[bytes]:
        """The next message. Raises zmq.Again where none waits."""
        frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        self._unread.heard(frames[0], sum(map(len, frames)))
        return [frame.bytes for frame in frames]

    def tend(self) -> bool:
        """Note what happened to the connection, connect anew where it was refused a while ago; True: it stands anew.

        Call it when everything that waits was received, after ``look_ms`` at most: a message of the host that does
        not end is ended here.
        """
        reached = False
        for happening in self._monitor.happenings():
            event, value = happening
            self._unread.note(happening)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected()
                reached = True
            elif event & FAILED:
                self._refused(event, value)
        for problem in self._unread.look(drained=True):
            log.error("%s: %s", self._endpoint, problem)
        if self._retry_at is not None and time.monotonic() >= self._retry_at:
            self._retry_at = None
            with suppress(zmq.ZMQError):  # given up by ZeroMQ itself
                self.socket.disconnect(self._endpoint)
            self.socket.connect(self._endpoint)
        return reached

    def close(self, linger_ms: int) -> None:
        """Close the connection, sending for at most ``linger_ms``."""
        self._monitor.close()
        self.socket.close(linger=linger_ms)

    def _connected(self) -> None:
        if self.trouble is not None:
            log.info("%s: the host lets this edge in again", self._endpoint)
        self.trouble, self._retry_at, self._unexplained = None, None, 0

    def _refused(self, event: int, value: int) -> None:
        if self._retry_at is None:
            self._retry_at = time.monotonic() + RETRY_S
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._unexplained += 1
            if self.trouble is not None or self._unexplained < UNEXPLAINED:
                return  # the other side may have been faster to close than we to read why
        trouble = f"{self._endpoint}: {self._why(event, value)}"
        if trouble != self.trouble:  # once, not with every attempt
            self.trouble = trouble
            log.error("%s; tried again every %g s", trouble, RETRY_S)

    def _why(self, event: int, value: int) -> str:
        if self._keys is None:
            if value == MECHANISM_MISMATCH:
                return (
                    "the host speaks only to edges with keys, and this edge has none: flawline keys new EDGE_ID, then "
                    "`key` and `server_key` under [host]"
                )
            return "what answers there is no Flawline host, or ended the connection at once"
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            own = self._keys.own
            return (
                f"the host does not know this edge's key (fingerprint {fingerprint(own.public)}), or has revoked it; "
                f"on the host: flawline keys authorise {own.name}{PUBLIC}"
            )
        if value == MECHANISM_MISMATCH:
            return "the host speaks without keys, so that nobody knows who it is; give it keys: flawline keys new host"
        return (
            "the host there does not have the key that `server_key` says "
            f"(fingerprint {fingerprint(self._keys.host)}); nothing is sent to it. Compare with "
            "`flawline keys show host` on the host"
        )


def load_keys(link: HostLink) -> Keys | None:
    """The keys of a link that has any. Raises KeyFileError where a file cannot be trusted."""
    if link.key is None or link.server_key is None:
        return None
    return Keys(load_pair(link.key), load_public(link.server_key))
