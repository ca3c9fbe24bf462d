"""``modbus-io://``: a coil of a remote I/O module that opens the gate for good parts alone (hop 10).

``modbus-io://10.1.0.20:502?coil=0&delay_ms=1000&hold_ms=150&ready=1``. The coil is on only from ``delay_ms`` after the
capture of a part that passed, for ``hold_ms``, which must be shorter than the time between two parts; a part that did
not pass keeps it off for that time, whatever its neighbours are. So the gate must reject at rest: no verdict, no host,
no network and no power all reject. ``ready`` is a second coil, on while the line is inspected. Coils are written anew
every 100 ms for the module's own watchdog, which must switch them off when the writing ends.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException

from contract.event import LineCode
from plugin.connectors.base import Connector, LineOutput, Plant
from plugin.errors import ConfigError, ConnectorError
from plugin.logs import LimitedLog

PORT = 502
REFRESH_NS = 100_000_000
TIMEOUT_S = 0.5
RETRY_NS = 500_000_000
DEFAULTS = {"coil": 0, "delay_ms": -1, "hold_ms": 200, "ready": -1, "unit": 1}
HIGHEST = {"coil": 65535, "delay_ms": 600_000, "hold_ms": 60_000, "ready": 65535, "unit": 255}
log = logging.getLogger(__name__)


class Window(NamedTuple):
    """The time in which a part is at the gate, CLOCK_MONOTONIC nanoseconds."""

    opens_ns: int
    closes_ns: int
    output: LineOutput

    def holds(self, now_ns: int) -> bool:
        return self.opens_ns <= now_ns < self.closes_ns


class ModbusIo(Connector):
    """Writes coils from a thread of its own; ``publish`` only sets down when the part is at the gate."""

    takes_late = True  # what is no PASS keeps the gate shut whenever it comes

    def __init__(self, url: str, base_dir: Path) -> None:
        parts = urlsplit(url)
        self.url = url
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url}: the port must be a number from 1 to 65535") from error
        if not parts.hostname:
            raise ConfigError(f"{url}: expected the module's address, for example modbus-io://10.1.0.20:502?coil=0")
        self._options = _options(url, parts.query)
        self._client = ModbusTcpClient(
            parts.hostname, port=PORT if port is None else port, timeout=TIMEOUT_S, retries=0, reconnect_delay=0
        )
        self._log = LimitedLog(log)
        self._change = threading.Condition()
        self._windows: list[Window] = []
        self._written: set[int] = set()
        self._trouble: str | None = "it has not answered yet"
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"modbus-io {parts.netloc}", daemon=True)

    def start(self, plant: Plant) -> None:
        """Begin to write. Raises ConfigError."""
        if len(plant.lines) != 1:
            raise ConfigError(
                f"{self.url}: one gate belongs to one line, this one would serve {list(plant.lines)}: "
                'give each line a connector of its own with lines = ["ID"]'
            )
        self._plant, (self._line,) = plant, plant.lines
        deadline_ms = plant.deadline_ms(self._line)
        if self._options["delay_ms"] < deadline_ms:
            raise ConfigError(
                f"{self.url}: a part is at the gate {self._options['delay_ms']} ms after its capture, and may have no "
                f"verdict until deadline_ms = {deadline_ms}: a neighbour's could open the gate for it. Set the "
                f"deadline_ms of line {self._line!r} to {self._options['delay_ms']} or less"
            )
        self._thread.start()

    def publish(self, output: LineOutput) -> None:
        now_ns = time.monotonic_ns()
        opens_ns = (output.captured_ns or now_ns) + self._options["delay_ms"] * 1_000_000
        window = Window(opens_ns, opens_ns + self._options["hold_ms"] * 1_000_000, output)
        if now_ns >= window.closes_ns:
            raise ConnectorError("the part had passed the gate")
        with self._change:
            if self._trouble is None or output.code is not LineCode.PASS:  # one that must not pass shuts out neighbours
                self._windows.append(window)
                self._change.notify()
            if self._trouble is not None:
                raise ConnectorError(f"the module does not take it: {self._trouble}")

    def status(self) -> dict[str, object]:
        """Whether the module answers."""
        return {"trouble": self._trouble, "scheduled": len(self._windows)}

    def close(self) -> None:
        with self._change:
            self._closing = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join(2 * TIMEOUT_S)

    def _run(self) -> None:
        closing = False
        while not closing:
            connected = self._connect()
            with self._change:  # only now, since connecting may have taken its time
                closing = self._closing
                now_ns = time.monotonic_ns()
                self._drop_passed(now_ns, closing)
                passing = [] if closing else _passing(self._windows, now_ns)
                until_ns = self._next_change_ns(now_ns)
            if connected:
                self._write(passing, ready=not closing)
            if closing:
                self._drop()
                return
            with self._change:
                if not self._closing:
                    # Of the moment of decision: a change that came while the coil was being written is due now.
                    self._change.wait(max(0.0, (until_ns - time.monotonic_ns()) / 1e9))

    def _next_change_ns(self, now_ns: int) -> int:
        """When the coil may have to change, at the latest when it is written anew."""
        edges = [edge for window in self._windows for edge in window[:2] if edge > now_ns]
        return min([*edges, now_ns + (REFRESH_NS if self._trouble is None else RETRY_NS)])

    def _drop_passed(self, now_ns: int, closing: bool) -> None:
        """Forget the parts that are behind the gate; where one should have passed and could not, that is told."""
        for window in [window for window in self._windows if closing or window.closes_ns <= now_ns]:
            self._windows.remove(window)
            number = window.output.number
            if window.output.code is LineCode.PASS and number not in self._written:
                self._plant.fail(window.output, self._trouble or "the gate stayed shut for a neighbour, or too late")
            self._written.discard(number)

    def _connect(self) -> bool:
        if self._client.connected:
            return True
        try:
            connected = self._client.connect()  # type: ignore[no-untyped-call]
            handle = self._client.socket
            if connected and handle is not None:
                # When closed, what was not delivered is thrown away: an ON that arrives late would open the gate.
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return True
            self._fail("no connection")
        except Exception as error:  # noqa: BLE001 - as below
            self._fail(str(error))
        return False

    def _write(self, passing: list[Window], ready: bool) -> None:
        try:
            self._set_coil(self._options["coil"], bool(passing))
            if self._options["ready"] >= 0:
                self._set_coil(self._options["ready"], ready and self._inspected())
        except Exception as error:  # noqa: BLE001 - whatever the module or the library does, the gate rejects meanwhile
            self._fail(str(error) or type(error).__name__)
            return
        if self._trouble is not None:
            log.info("%s: the module answers", self.url)
        self._trouble = None
        done_ns = time.monotonic_ns()  # a module that answered after the part had passed did not let it go
        self._written |= {window.output.number for window in passing if done_ns < window.closes_ns}

    def _inspected(self) -> bool:
        """Where nobody can say, it is not: the coil must not stay as it was while others are written."""
        try:
            return self._plant.trouble(self._line) is None
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._log.warning("plant", f"{self.url}: the host cannot say how the line is: {error!r}")
            return False

    def _fail(self, trouble: str) -> None:
        self._drop()
        self._trouble = trouble[:300]
        self._log.warning("write", f"{self.url}: the module does not answer, its gate rejects: {self._trouble}")

    def _drop(self) -> None:
        self._client.close()  # type: ignore[no-untyped-call]

    def _set_coil(self, address: int, on: bool) -> None:
        answer = self._client.write_coil(address, on, device_id=self._options["unit"])
        if answer.isError():
            raise ModbusException(f"coil {address} is refused: {answer}")


def _passing(windows: list[Window], now_ns: int) -> list[Window]:
    """The parts at the gate, where all of them passed; a neighbour that did not keeps it shut."""
    there = [window for window in windows if window.holds(now_ns)]
    return there if all(window.output.code is LineCode.PASS for window in there) else []


def _options(url: str, query: str) -> dict[str, int]:
    given = parse_qs(query, keep_blank_values=True)
    if unknown := sorted(set(given) - set(DEFAULTS)):
        raise ConfigError(f"{url}: unknown option {unknown[0]!r}; there are: {', '.join(DEFAULTS)}")
    options = dict(DEFAULTS)
    for name, (value, *_rest) in given.items():
        if not value.isdecimal() or int(value) > HIGHEST[name]:
            raise ConfigError(f"{url}: {name} is {value!r}; expected a number from 0 to {HIGHEST[name]}")
        options[name] = int(value)
    if options["delay_ms"] < 0:
        raise ConfigError(
            f"{url}: delay_ms is missing: the milliseconds from a part's capture to its place at the gate"
        )
    if options["hold_ms"] == 0:
        raise ConfigError(f"{url}: hold_ms is 0; a gate that opens for no time rejects everything")
    if options["ready"] == options["coil"]:
        raise ConfigError(f"{url}: coil and ready are the same coil")
    return options
