"""A real HTTP server that takes webhooks and obeys docs/webhook.md; a test can make it misbehave."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

from contract.event import LineCode
from plugin.connectors.kit import Took
from tests.plugin.order import Order
from tests.processes import free_port

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOT_HEARD_S = 3.0
TOLERANCE_S = 300


def write_secret(folder: Path, text: str = SECRET, mode: int = 0o600) -> None:
    (folder / "webhook.secret").write_text(text + "\n")
    (folder / "webhook.secret").chmod(mode)


def is_signed(headers: Any, body: bytes) -> bool:
    """As the specification says it, without a line of ours."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    fresh = abs(time.time() - int(headers["webhook-timestamp"])) < TOLERANCE_S
    return fresh and hmac.compare_digest(wanted, headers["webhook-signature"])


class Receiver:
    """``behave``: what a request does before it is taken, given its handler and body; True: nothing more happens."""

    def __init__(self, ca: trustme.CA | None = None) -> None:
        self.port = free_port()
        self.taken: list[Took] = []
        self.raw: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.slow_s = 0.0
        self.behave: Callable[[BaseHTTPRequestHandler, dict[str, Any]], bool] = lambda handler, body: False
        self.status: dict[str, Any] | None = None
        self._heard_at = -NOT_HEARD_S
        self._order = Order()
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._tls: ssl.SSLContext | None = None
        if ca is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            ca.issue_cert("localhost", "127.0.0.1").configure_cert(self._tls)

    def start(self) -> None:
        self._server = _Server(self.port, self, self._tls)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """As if its power were cut."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.cut()

    @property
    def inspected(self) -> bool:
        told = self._server is not None and self.status is not None and bool(self.status["inspected"])
        return told and time.monotonic() - self._heard_at < NOT_HEARD_S

    def take_time(self) -> None:
        began = time.monotonic()
        while time.monotonic() - began < self.slow_s and self._server is not None:
            time.sleep(0.01)

    def take(self, headers: dict[str, str], body: dict[str, Any]) -> None:
        now = datetime.now(UTC)
        with self._lock:
            self.raw.append((headers, body))
            if body["kind"] == "status":
                if now - datetime.fromisoformat(body["sent"]) < timedelta(seconds=NOT_HEARD_S):
                    self.status, self._heard_at = body, time.monotonic()
                return
            if not self._order.admits(body["session"], body["number"]):
                return
            late = now > datetime.fromisoformat(body["due"])
            code = LineCode.NOT_INSPECTED if late else LineCode(body["code"])
            self.taken.append(Took(body["number"], code, time.monotonic_ns()))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, receiver: Receiver, tls: ssl.SSLContext | None) -> None:
        self.receiver = receiver
        self._tls = tls
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        try:
            if self._tls is None:
                super().finish_request(request, client_address)
            else:
                with suppress(OSError), self._tls.wrap_socket(request, server_side=True) as wrapped:
                    self._open.add(wrapped)
                    super().finish_request(wrapped, client_address)
        finally:
            self._open.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was cut is what the tests want."""

    def cut(self) -> None:
        for each in list(self._open):
            with suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        receiver = self.server.receiver
        if not is_signed(self.headers, data):
            self.answer(401)
            return
        body = json.loads(data)
        receiver.take_time()
        if receiver.behave(self, body):
            return
        receiver.take({name.lower(): value for name, value in self.headers.items()}, body)
        self.answer(204)

    def answer(self, code: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if code != 204:
            self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Not on the test's output."""
