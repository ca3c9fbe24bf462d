"""``acme://HOST:PORT``: tells one made-up line controller each part's code, in lines of text over TCP.

The controller listens. It greets whoever connects with ``READY`` and answers each line with one of its own:

    LINE 1               -> OK           the line is inspected; LINE 0: it is not. Comes every 300 ms.
    OUT 4711 1 380       -> OK 4711      part 4711 is PASS (2 REJECT, 3 REVIEW, 4 NOT_INSPECTED) and has 380 ms left;
                         or LATE 4711    it was too late: the part is not OK

What the controller has to do: a part is OK where ``OUT`` with code 1 was taken within its time. After 1.5 s without
``LINE 1``, and as soon as the connection ends, the line is not inspected. A number that is not above the last is old.

The host sends a line only after the answer to the one before, so that nothing old ever waits in a buffer.
"""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from plugin.connectors.base import Connector, LineOutput, Plant
from plugin.errors import ConfigError, ConnectorError

HEART_S = 0.3
PATIENCE_S = 1.0
LONGEST = 100


class Acme(Connector):
    """One controller of one line. ``publish`` has a thread of its own, the heart another; the lock keeps them apart."""

    def __init__(self, url: str, base_dir: Path) -> None:
        # Only read the URL here, and say in a sentence what is wrong with it. Nothing is connected yet.
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if not parts.hostname or port is None or parts.path or parts.query:
            raise ConfigError(f"{url}: expected acme://HOST:PORT")
        self._address = (parts.hostname, port)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._link: socket.socket | None = None
        self._trouble: str | None = "not connected yet"
        self._heart = threading.Thread(target=self._beat, name="acme", daemon=True)

    def start(self, plant: Plant) -> None:
        # Return at once, whether or not the controller is there: the host starts all the same.
        if len(plant.lines) != 1:
            raise ConfigError(f'acme: one controller serves one line, not {list(plant.lines)}: lines = ["ID"]')
        self._plant, (self._line,) = plant, plant.lines
        self._heart.start()

    def publish(self, output: LineOutput) -> None:
        # Return once the controller has it. Raise where it does not, or nobody knows: the part is not OK then.
        if not self._lock.acquire(timeout=max(0.0, _left_s(output.due_ns))):
            raise ConnectorError("the controller was busy until it was too late")
        try:
            left_ms = int(_left_s(output.due_ns) * 1000)
            answer = self._ask(f"OUT {output.number} {int(output.code)} {left_ms}", output.due_ns)
            if answer != f"OK {output.number}":
                self._hang_up()
                raise ConnectorError(f"the controller answers {answer!r}")
        finally:
            self._lock.release()

    def interrupt(self) -> None:
        # The host stops: whoever waits for the controller, on whichever thread, must end now.
        self._stopping.set()
        link = self._link
        if link is not None:
            try:
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it has ended by itself

    def status(self) -> dict[str, object]:
        return {"connected": self._link is not None, "trouble": self._trouble}

    def close(self) -> None:
        self.interrupt()
        if self._heart.is_alive():
            self._heart.join(2 * PATIENCE_S)
        self._hang_up()

    def _beat(self) -> None:
        while not self._stopping.wait(HEART_S):
            with self._lock:
                try:
                    self._ask(f"LINE {int(self._is_inspected())}", time.monotonic_ns() + int(PATIENCE_S * 1e9))
                    self._trouble = None
                except ConnectorError as error:
                    self._trouble = str(error)

    def _is_inspected(self) -> bool:
        try:
            return self._plant.trouble(self._line) is None
        except Exception:  # noqa: BLE001 - where nobody can say how the line is, it is not inspected
            return False

    def _ask(self, request: str, until_ns: int) -> str:
        """One line there, one line back, on a connection that is made where there is none."""
        if self._stopping.is_set():
            raise ConnectorError("the host stops")
        try:
            link = self._link or self._connect(until_ns)
            link.settimeout(_time_left(until_ns))
            link.sendall(f"{request}\n".encode())
            return _line(link, until_ns)
        except OSError as error:
            # An answer that comes later must not be taken for that to another question: begin anew.
            self._hang_up()
            raise ConnectorError(f"the controller does not answer ({error})") from error

    def _connect(self, until_ns: int) -> socket.socket:
        self._link = socket.create_connection(self._address, min(PATIENCE_S, _time_left(until_ns)))
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if (greeting := _line(self._link, until_ns)) != "READY":
            raise OSError(f"it greets with {greeting!r}")
        return self._link

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()


def _left_s(until_ns: int) -> float:
    return (until_ns - time.monotonic_ns()) / 1e9


def _time_left(until_ns: int) -> float:
    left_s = _left_s(until_ns)
    if left_s <= 0:
        raise TimeoutError("the time is over")
    return left_s


def _line(link: socket.socket, until_ns: int) -> str:
    """The next line, whole before the time is over, however it trickles in."""
    data = b""
    while not data.endswith(b"\n"):
        link.settimeout(_time_left(until_ns))
        piece = link.recv(LONGEST)
        if not piece or len(data) + len(piece) > LONGEST:
            raise ConnectionError("it hung up" if not piece else "it says too much")
        data += piece
    return data.decode("ascii", "replace").strip()
