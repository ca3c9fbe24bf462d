"""Hands each numbered output to every connector of its line, none of which can delay another (hop 9 to hop 10)."""

from __future__ import annotations

import importlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, NamedTuple

from contract.event import LineCode
from contract.overseer import Overseer, Pulse
from plugin.connectors.base import Connector, LineOutput, Plant
from plugin.errors import ConfigError
from plugin.logs import LimitedLog
from plugin.settings import ConnectorSettings

CONNECTORS = {
    "loop": "plugin.connectors.loop:Loop",
    "modbus": "plugin.connectors.modbus:Modbus",
    "modbus-io": "plugin.connectors.modbus_io:ModbusIo",
    "mqtt": "plugin.connectors.mqtt:Mqtt",
    "mqtts": "plugin.connectors.mqtt:Mqtt",
    "opcua": "plugin.connectors.opcua:OpcUa",
    "webhook+http": "plugin.connectors.webhook:Webhook",
    "webhook+https": "plugin.connectors.webhook:Webhook",
}
IDLE_S = 1.0
GRACE_S = 0.2  # for a connector that was interrupted to say what became of its outputs
EXTRAS = {
    "modbus": "modbus",
    "modbus-io": "modbus",
    "mqtt": "mqtt",
    "mqtts": "mqtt",
    "opcua": "opcua",
    "webhook+http": "webhook",
    "webhook+https": "webhook",
}
"""Connectors whose library is an extra of its own."""

ENTRY_POINTS = "flawline.connectors"
log = logging.getLogger(__name__)


class Sent(NamedTuple):
    """What became of one output at one connector; ``t_wall_ns`` is UTC."""

    line: str
    number: int
    connector: str
    outcome: Literal["published", "refused", "late"]
    detail: str | None
    t_wall_ns: int


def make_connector(url: str, base_dir: Path) -> Connector:
    """The connector of a URL's scheme: from the table, else a site's own from the entry points."""
    scheme = url.partition("://")[0]
    target = CONNECTORS.get(scheme)
    if target is not None:
        module, _, name = target.partition(":")
        try:
            kind = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(scheme, "host")
            raise ConfigError(f"{url}: {error.name} is not installed: pip install 'flawline[{extra}]'") from error
    else:
        found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        if scheme not in found:
            raise ConfigError(f"{url}: no connector {scheme!r}; there are: {', '.join(sorted({*CONNECTORS, *found}))}")
        kind = found[scheme].load()
    if not (isinstance(kind, type) and issubclass(kind, Connector)):
        raise ConfigError(f"{url}: {kind!r} is not a plugin.connectors.base.Connector")
    return kind(url, base_dir)


class Dispatcher:
    """A bounded queue and a thread for each connector; ``record`` is told every outcome, from any thread."""

    def __init__(
        self, connectors: Sequence[tuple[ConnectorSettings, Connector]], record: Callable[[Sent], None]
    ) -> None:
        self.workers = [_Worker(settings, connector, record) for settings, connector in connectors]

    def start(self, plant: Callable[[str, tuple[str, ...]], Plant]) -> None:
        """Start each connector; ``plant`` makes what one of a URL and lines is given. Raises ConfigError: none runs."""
        begun = []
        try:
            for worker in self.workers:
                worker.connector.start(plant(worker.url, tuple(worker.lines)))
                begun.append(worker)
        except BaseException:
            for worker in begun:
                worker.connector.close()
            raise
        for worker in self.workers:
            worker.start()

    def watch(self, overseer: Overseer) -> None:
        """Have each connector's loop watched, before ``start``; two of one URL are two loops."""
        for number, worker in enumerate(self.workers, start=1):
            worker.pulse = overseer.watch(f"connector {number} ({worker.url.partition('://')[0]})")

    def status(self) -> list[dict[str, object]]:
        """What each connector says of itself, and how many outputs wait for it."""
        return [{"url": each.url, "waiting": each.waiting(), **each.connector.status()} for each in self.workers]

    def serves(self, line: str) -> bool:
        """Whether any connector listens to ``line``."""
        return any(not worker.lines or line in worker.lines for worker in self.workers)

    def publish(self, outputs: Sequence[LineOutput]) -> None:
        """Queue outputs whose numbers are committed. Never blocks."""
        for output in outputs:
            for worker in self.workers:
                if not worker.lines or output.line in worker.lines:
                    worker.offer(output)

    def stop(self, timeout_s: float) -> None:
        """Let queued outputs leave; a connector that hangs longer is abandoned with its outcomes unknown."""
        for worker in self.workers:
            worker.stop()
        deadline = time.monotonic() + timeout_s
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                worker.connector.interrupt()
        for worker in self.workers:
            worker.join(GRACE_S)


class _Worker(threading.Thread):
    def __init__(self, settings: ConnectorSettings, connector: Connector, record: Callable[[Sent], None]) -> None:
        super().__init__(name=f"connector {settings.url}", daemon=True)
        self.url = settings.url
        self.lines = settings.lines
        self.connector = connector
        self.pulse = Pulse(self.name)
        self._record = record
        self._waiting: queue.Queue[LineOutput | None] = queue.Queue(settings.queue)
        self._stopping = threading.Event()
        self._log = LimitedLog(log)

    def offer(self, output: LineOutput) -> None:
        try:
            self._waiting.put_nowait(output)
        except queue.Full:
            self._log.warning("full", f"{self.url}: does not keep up; outputs are refused")
            self._report(output, "refused", "the connector's queue is full")

    def waiting(self) -> int:
        return self._waiting.qsize()

    def stop(self) -> None:
        self._stopping.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return  # it is not waiting, and looks at the event after the next output

    def run(self) -> None:
        while not (self._stopping.is_set() and self._waiting.empty()):
            self.pulse.turn()
            with suppress(queue.Empty):
                output = self._waiting.get(timeout=IDLE_S)
                if output is not None:
                    self.pulse.turn(self.connector.patience_s)
                    self._send(output)
        self.pulse.turn(self.connector.patience_s)
        self.connector.close()

    def _send(self, output: LineOutput) -> None:
        late_is_of_use = self.connector.takes_late and output.code is not LineCode.PASS
        if time.monotonic_ns() > output.due_ns and not late_is_of_use:
            self._report(output, "late", "waited in the connector's queue past its deadline")
            return
        try:
            self.connector.publish(output)
        except Exception as error:  # noqa: BLE001 - a site's own connector may raise anything; the others go on
            self._log.warning("refused", f"{self.url}: output {output.number} was refused: {error}")
            self._report(output, "refused", str(error)[:500])
        else:
            self._report(output, "published", None)

    def _report(self, output: LineOutput, outcome: Literal["published", "refused", "late"], detail: str | None) -> None:
        self._record(Sent(output.line, output.number, self.url, outcome, detail, time.time_ns()))
