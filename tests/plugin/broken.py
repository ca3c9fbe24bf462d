"""A connector and its controller in memory, right but for the one fault that its URL names: ``broken://twice``."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from contract.event import LineCode
from plugin.connectors.base import Connector, LineOutput, Plant
from plugin.connectors.kit import LINE, Peer, Took
from plugin.errors import ConnectorError

FAULTS = {
    "twice": "order",
    "backwards": "order",
    "always pass": "order",
    "forgets": "order",
    "refuses": "order",
    "late": "deadline",
    "unwatched": "heartbeat",
    "stays alive": "heartbeat",
    "repeats": "restart of host",
    "claims": "restart of peer",
    "invents": "slow peer",
    "waits at the start": "absent peer",
    "deaf": "stop",
}
"""Which check has to find it."""


class Controller:
    """What every connector and peer of one test share."""

    def __init__(self) -> None:
        self.taken: list[Took] = []
        self.present = threading.Event()
        self.slow_s = 0.0
        self.connected: Broken | None = None

    def take(self, number: int, code: int) -> None:
        self.taken.append(Took(number, code, time.monotonic_ns()))


current = [Controller()]
"""The newest is in use; a connector that was abandoned keeps its own."""


class Broken(Connector):
    def __init__(self, url: str, base_dir: Path) -> None:
        self._fault = url.partition("://")[2].replace("%20", " ")
        self._controller = current[-1]
        self._interrupted = threading.Event()
        self._first: LineOutput | None = None

    def start(self, plant: Plant) -> None:
        self._plant = plant
        if self._fault == "waits at the start":
            self._controller.present.wait(2.0)
        if self._fault == "repeats" and self._controller.taken:
            self._controller.take(*self._controller.taken[-1][:2])
        self._controller.connected = self

    def publish(self, output: LineOutput) -> None:
        fault = self._fault
        if fault == "claims" and not self._controller.present.is_set():
            return
        if fault == "refuses" and output.number == 7:
            self._controller.take(output.number, output.code)
            raise ConnectorError("taken all the same")
        if fault == "forgets" and output.number == 7:
            return
        if fault == "backwards" and output.number == 7:
            self._first = output
            return
        self._deliver(output)
        if self._first is not None:
            self._deliver(self._first)
            self._first = None

    def _deliver(self, output: LineOutput) -> None:
        patient = self._fault in ("late", "deaf")
        due_s = 30.0 if patient else (output.due_ns - time.monotonic_ns()) / 1e9
        began = time.monotonic()
        while not self._controller.present.is_set() or time.monotonic() - began < self._controller.slow_s:
            if time.monotonic() - began > due_s or (self._interrupted.is_set() and not patient):
                raise ConnectorError("nobody took it in time")
            time.sleep(0.005)
        code = LineCode.PASS if self._fault == "always pass" else output.code
        self._controller.take(output.number, code)
        if self._fault == "twice":
            self._controller.take(output.number, code)
        if self._fault == "invents" and output.number == 1:
            self._controller.take(99, LineCode.PASS)

    def interrupt(self) -> None:
        self._interrupted.set()

    def says_inspected(self) -> bool:
        if self._fault == "unwatched":
            return True
        try:
            return self._plant.trouble(LINE) is None
        except OSError:
            return False

    def close(self) -> None:
        if self._fault != "stays alive":
            self._controller.connected = None


class BrokenPeer(Peer):
    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._controller = Controller()
        current.append(self._controller)

    @property
    def url(self) -> str:
        return f"broken://{self._fault.replace(' ', '%20')}"

    def start(self) -> None:
        self._controller.present.set()

    def stop(self) -> None:
        self._controller.present.clear()

    def slow(self, seconds: float) -> None:
        self._controller.slow_s = seconds

    def took(self) -> Sequence[Took]:
        return list(self._controller.taken)

    def inspected(self) -> bool:
        connected = self._controller.connected
        return self._controller.present.is_set() and connected is not None and connected.says_inspected()
