"""A client of the stream, as small as one can be: a plain socket that reads when it is told to."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Heard(NamedTuple):
    """One event of the stream."""

    name: str
    data: Any
    id: str


class Client:
    """Reads `/api/v1/stream`; nothing is taken from the socket but in ``read``."""

    def __init__(self, url: str, token: str = "", last: str = "", buffer: int = 0) -> None:
        address = urlsplit(url)
        self._socket = socket.socket()
        if buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._socket.settimeout(15)
        self._socket.connect((address.hostname, address.port))
        headers = f"authorization: Bearer {token}\r\n" if token else ""
        headers += f"last-event-id: {last}\r\n" if last else ""
        self._socket.sendall(f"GET /api/v1/stream HTTP/1.1\r\nhost: {address.netloc}\r\n{headers}\r\n".encode())
        self._rest = b""
        head = self._upto(b"\r\n\r\n").decode()
        self.status = int(head.split()[1])
        self.head = head.lower()
        self.ended = False
        self._text = b""

    def read(self, enough: Callable[[list[Heard]], bool]) -> list[Heard]:
        """Events until there are enough, or the answer ends."""
        heard: list[Heard] = []
        while not enough(heard):
            while b"\n\n" not in self._text:
                size = int(self._upto(b"\r\n"), 16)
                if size == 0:
                    self.ended = True
                    return heard
                self._text += self._upto(b"\r\n", size)
            block, _, self._text = self._text.partition(b"\n\n")
            fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if not line.startswith(":"))
            if fields:
                heard.append(Heard(fields["event"], json.loads(fields["data"]), fields.get("id", "")))
        return heard

    def _upto(self, end: bytes, least: int = 0) -> bytes:
        while end not in self._rest[least:]:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the host has hung up")
            self._rest += data
        at = self._rest.index(end, least)
        found, self._rest = self._rest[:at], self._rest[at + len(end) :]
        return found

    def close(self) -> None:
        self._socket.close()
