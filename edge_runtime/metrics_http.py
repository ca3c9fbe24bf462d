"""Serves the metrics over HTTP to a bounded number of readers, none of whom can hold it up (beside hops 2 to 6)."""

from __future__ import annotations

import hmac
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from contract.errors import ConfigError
from contract.keys import read_key_file
from edge_runtime.settings import MetricsSettings

READERS = 8
REQUEST_S, ANSWER_S = 5.0, 10.0
"""Longest time, in all, until a request is complete, and until its answer has been read."""

MAX_REQUEST_BYTES = 8 << 10
SHORTEST_TOKEN = 16
PATH = "/metrics"
REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    503: "Service Unavailable",
}  # fmt: skip
log = logging.getLogger(__name__)

Render = Callable[[str], tuple[str, bytes]]


class RefusedError(Exception):
    """A request that gets no metrics: the status that is answered."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class MetricsServer:
    """Listens from its making on, so that a port that is taken is known before anything else begins."""

    def __init__(self, settings: MetricsSettings, render: Render) -> None:
        """``render``: Accept header -> content type and body. Raises ConfigError, KeyFileError."""
        self._render = render
        self._token = None if settings.token is None else read_token(settings.token)
        self._listener = _listen(settings)
        self._seats = threading.BoundedSemaphore(READERS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let nobody in any more; whoever is being answered is let go with the process."""
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        self._listener.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                reader, _ = self._listener.accept()
            except OSError as error:
                if not self._stopping.is_set():
                    log.warning("nobody can read the metrics for a second: %s", error)
                    self._stopping.wait(1.0)
                continue
            if not self._seats.acquire(blocking=False):
                reader.setblocking(False)
                with suppress(OSError), reader:
                    reader.send(_answer(503, f"{READERS} readers are being served already\n".encode()))
                continue
            threading.Thread(target=self._serve, args=(reader,), name="metrics-reader", daemon=True).start()

    def _serve(self, reader: socket.socket) -> None:
        try:
            with reader, suppress(OSError):  # a reader that goes away, or reads too slowly
                answer = self._answer_to(reader)
                reader.settimeout(ANSWER_S)  # of sendall it is the time in all
                reader.sendall(answer)
        finally:
            self._seats.release()

    def _answer_to(self, reader: socket.socket) -> bytes:
        try:
            method, headers = _read_request(reader, time.monotonic() + REQUEST_S)
            self._admit(headers.get("authorization", ""))
            content_type, body = self._render(headers.get("accept", ""))
            return _answer(200, body, content_type, head=method == "HEAD")
        except RefusedError as refused:
            return _answer(refused.status, f"{refused}\n".encode())
        except OSError:
            raise
        except Exception:
            log.exception("the metrics could not be made")
            return _answer(500, b"the metrics could not be made; the edge's log says why\n")

    def _admit(self, authorization: str) -> None:
        if self._token is None:
            return
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self._token)
        if scheme.lower() != "bearer" or not same:
            raise RefusedError(401, "expected: Authorization: Bearer, and the token of [metrics] in edge.toml")


def read_token(path: Path) -> bytes:
    """The token in a file that nobody else can read. Raises ConfigError, KeyFileError."""
    if not path.exists():
        raise ConfigError(f"{path}: no token for the metrics; make one: (umask 077; openssl rand -hex 32 > {path})")
    token = read_key_file(path, secret=True).strip()
    if len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"{path}: a token of {len(token)} characters, expected at least {SHORTEST_TOKEN}: "
            f"(umask 077; openssl rand -hex 32 > {path})"
        )
    return token.encode()


def _listen(settings: MetricsSettings) -> socket.socket:
    host, port = settings.address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=READERS)
    except OSError as error:
        raise ConfigError(
            f"[metrics] listen = {settings.listen!r}: cannot listen there ({error.strerror or error}); stop what uses "
            "the port, or give another one"
        ) from error


def _read_request(reader: socket.socket, deadline: float) -> tuple[str, dict[str, str]]:
    """Method and headers (names in small letters) of a request for PATH. Raises RefusedError, OSError."""
    data = b""
    while b"\r\n\r\n" not in data:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise RefusedError(408, f"no complete request within {REQUEST_S:g} s")
        reader.settimeout(left_s)
        try:
            piece = reader.recv(4096)
        except TimeoutError:
            continue
        if not piece:
            raise ConnectionAbortedError
        data += piece
        if len(data) > MAX_REQUEST_BYTES:
            raise RefusedError(431, f"a request of over {MAX_REQUEST_BYTES} bytes")
    first, *lines = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise RefusedError(400, "expected an HTTP/1.1 request")
    if words[0] not in ("GET", "HEAD"):
        raise RefusedError(405, "expected GET")
    if words[1].partition("?")[0] != PATH:
        raise RefusedError(404, f"there is only {PATH}")
    named = (line.partition(":") for line in lines)
    return words[0], {name.strip().lower(): value.strip() for name, _, value in named}


def _answer(status: int, body: bytes, content_type: str = "text/plain; charset=utf-8", head: bool = False) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    lines += ["Connection: close", "Cache-Control: no-store"]
    if status == 401:
        lines.append("WWW-Authenticate: Bearer")
    if status == 405:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else body)
