"""The connector passes Flawline's kit, with a controller on the other side that obeys the protocol and no more."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from flawline_acme import Acme

from contract.event import LineCode
from plugin.connectors.kit import CHECKS, Peer, Took, run
from plugin.errors import ConfigError

BELIEVED_S = 1.5


class Controller(Peer):
    """A real server at one address, whatever becomes of it; every exchange can be made slow."""

    def __init__(self) -> None:
        self._door = _bound(0)
        self._port = int(self._door.getsockname()[1])
        self._gone = threading.Event()
        self._guest: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._slow_s = 0.0
        self._last = 0
        self._taken: list[Took] = []
        self._inspected_until = 0.0

    @property
    def url(self) -> str:
        return f"acme://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._gone = threading.Event()
        self._door.listen()
        self._thread = threading.Thread(target=self._serve, args=(self._door, self._gone), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end()
        self._door = _bound(self._port)  # nobody else takes the address meanwhile; without listen() nobody is there

    def slow(self, seconds: float) -> None:
        self._slow_s = seconds

    def took(self) -> Sequence[Took]:
        return tuple(self._taken)

    def inspected(self) -> bool:
        return time.monotonic() < self._inspected_until

    def close(self) -> None:
        self._end()

    def _end(self) -> None:
        self._gone.set()
        for each in (self._door, self._guest):
            if each is not None:
                _shut(each)
        if self._thread is not None:
            self._thread.join(10)
        self._door.close()
        self._inspected_until = 0.0

    def _serve(self, door: socket.socket, gone: threading.Event) -> None:
        while not gone.is_set():
            try:
                self._guest, _ = door.accept()
            except OSError:
                return
            with self._guest, self._guest.makefile("rw", encoding="ascii", newline="\n") as lines:
                try:
                    lines.write("READY\n")
                    lines.flush()
                    while request := lines.readline():
                        arrived = time.monotonic()
                        if gone.wait(self._slow_s):
                            break
                        lines.write(self._answer(request.split(), arrived) + "\n")
                        lines.flush()
                except (OSError, ValueError):
                    pass  # the host hung up
            self._inspected_until = 0.0

    def _answer(self, words: list[str], arrived: float) -> str:
        if words[0] == "LINE":
            self._inspected_until = time.monotonic() + BELIEVED_S * (words[1] == "1")
            return "OK"
        number, code, left_ms = map(int, words[1:])
        if number <= self._last:
            return f"OLD {number}"
        late = time.monotonic() > arrived + left_ms / 1000
        self._last = number
        self._taken.append(Took(number, LineCode.NOT_INSPECTED if late else code, time.monotonic_ns()))
        return f"LATE {number}" if late else f"OK {number}"


def _bound(port: int) -> socket.socket:
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("127.0.0.1", port))
    return door


def _shut(each: socket.socket) -> None:
    try:
        each.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is closed, or nobody was connected


@pytest.mark.parametrize("check", CHECKS)
def test_it_passes_the_kit(check: str, tmp_path: Path) -> None:
    lacking = run(check, Controller(), tmp_path)  # raises KitError where it does not pass
    if lacking is not None:
        pytest.skip(lacking)


@pytest.mark.parametrize("url", ["acme://", "acme://box", "acme://box:x", "acme://box:1/path", "acme://box:1?a=b"])
def test_a_wrong_url_is_a_sentence(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected acme://HOST:PORT"):
        Acme(url, tmp_path)
