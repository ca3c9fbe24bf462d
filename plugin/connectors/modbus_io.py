"""``modbus-io://``: a coil of a remote I/O module that opens the gate for good parts alone (hop 10).

``modbus-io://10.1.0.20:502?coil=0&delay_ms=400&hold_ms=150&ready=1``. The coil is on only from ``delay_ms`` after the
capture of a part that passed, for ``hold_ms``; a part that did not pass keeps it off for that time whatever its
neighbours are. So the gate must reject at rest: no verdict, no host, no network, no power all reject. ``ready`` is a
second coil, on while the line is inspected. Coils are written anew every 100 ms for the module's own watchdog, which
must switch them off when the writing ends.
"""

from __future__ import annotations

import logging
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
RETRY_S = 0.5
DEFAULTS = {"coil": 0, "delay_ms": 0, "hold_ms": 200, "ready": -1, "unit": 1}
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

    def __init__(self, url: str, base_dir: Path) -> None:
        parts = urlsplit(url)
        self.url = url
        self._options = _options(url, parts.query)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url}: the port must be a number from 1 to 65535") from error
        if not parts.hostname:
            raise ConfigError(f"{url}: expected the module's address, for example modbus-io://10.1.0.20:502?coil=0")
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
        while True:
            with self._change:
                now_ns = time.monotonic_ns()
                self._drop_passed(now_ns)
                passing = [] if self._closing else _passing(self._windows, now_ns)
                closing = self._closing
            self._write(passing)
            if closing:
                self._client.close()  # type: ignore[no-untyped-call]
                return
            with self._change:
                if not self._closing:
                    self._change.wait(self._pause_s())

    def _pause_s(self) -> float:
        """Until the coil may have to change, at most until it is written anew."""
        if self._trouble is not None:
            return RETRY_S
        now_ns = time.monotonic_ns()
        edges = [edge for window in self._windows for edge in window[:2] if edge > now_ns]
        return (min([*edges, now_ns + REFRESH_NS]) - now_ns) / 1e9

    def _drop_passed(self, now_ns: int) -> None:
        """Forget the parts that are behind the gate; one that should have passed and met no written coil is told."""
        for window in [window for window in self._windows if window.closes_ns <= now_ns]:
            self._windows.remove(window)
            number = window.output.number
            if window.output.code is LineCode.PASS and number not in self._written:
                self._plant.fail(window.output, self._trouble or "the coil was not written while the part was there")
            self._written.discard(number)

    def _write(self, passing: list[Window]) -> None:
        try:
            if not self._client.connected and not self._client.connect():  # type: ignore[no-untyped-call]
                raise ModbusException("no connection")
            self._set_coil(self._options["coil"], bool(passing))
            if self._options["ready"] >= 0:
                self._set_coil(self._options["ready"], not self._closing and self._plant.trouble(self._line) is None)
        except Exception as error:  # noqa: BLE001 - whatever the module or the library does, the gate rejects meanwhile
            self._client.close()  # type: ignore[no-untyped-call]
            self._trouble = str(error)[:300] or type(error).__name__
            self._log.warning("write", f"{self.url}: the module does not answer, its gate rejects: {self._trouble}")
            return
        if self._trouble is not None:
            log.info("%s: the module answers", self.url)
        self._trouble = None
        self._written |= {window.output.number for window in passing}

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
    if options["hold_ms"] == 0:
        raise ConfigError(f"{url}: hold_ms is 0; a gate that opens for no time rejects everything")
    if options["ready"] == options["coil"]:
        raise ConfigError(f"{url}: coil and ready are the same coil")
    return options
