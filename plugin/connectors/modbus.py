"""``modbus://``: a Modbus TCP server that a line controller polls for numbered results (hop 10).

``modbus://127.0.0.1:502``, ``modbus://10.1.0.5:502?allow=10.1.0.10,10.1.0.11``, ``...&ack=0``. One server, one line.
Modbus knows no sign-in, so an address that other machines can reach needs ``allow``: the controllers' addresses or
networks. Nothing that a controller writes can change a verdict.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from plugin.connectors.base import Connector, LineOutput, Plant
from plugin.connectors.modbus_server import ILLEGAL_ADDRESS, Connection, IllegalError, Memory
from plugin.connectors.registers import SIZE, WRITE_FIRST, Registers
from plugin.errors import ConfigError, ConnectorError
from plugin.logs import LimitedLog
from plugin.settings import is_loopback

PORT = 502
BEAT_S = 0.1
MAX_CONTROLLERS = 16
START_S = 10.0
OPTIONS = ("ack", "allow")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
log = logging.getLogger(__name__)


class Modbus(Connector, Memory):
    """Serves a line's register map; results are put into it by ``publish``, the heartbeat by a loop of its own."""

    def __init__(self, url: str, base_dir: Path) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query, keep_blank_values=True)
        if unknown := sorted(set(query) - set(OPTIONS)):
            raise ConfigError(f"{url}: unknown option {unknown[0]!r}; there are: {', '.join(OPTIONS)}")
        self.url = url
        self._host = parts.hostname or "127.0.0.1"
        self._port = _port(url)
        self._acknowledged = _switch(url, query.get("ack", ["1"])[0])
        self._allowed = _networks(url, query.get("allow", [""])[0])
        if not self._allowed and not is_loopback(self._host):
            raise ConfigError(
                f"{url}: {self._host} can be reached from other machines and Modbus has no sign-in: name the "
                f"controllers, for example {parts.scheme}://{parts.netloc}?allow=10.1.0.10"
            )
        self.address = (self._host, self._port)
        self.polled_ns = 0
        self.refused = 0
        self._log = LimitedLog(log)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: list[Connection] = []
        self._ready = threading.Event()
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"modbus {self._host}:{self._port}", daemon=True)

    def start(self, plant: Plant) -> None:
        """Listen, and begin to beat. Raises ConfigError."""
        if len(plant.lines) != 1:
            raise ConfigError(
                f"{self.url}: one Modbus server serves one line, this one would serve {list(plant.lines)}: "
                'give each line a connector of its own with lines = ["ID"] and another port'
            )
        self._plant, (self._line,) = plant, plant.lines
        self.registers = Registers(plant.last_number(self._line), self._acknowledged)
        self._thread.start()
        if not self._ready.wait(START_S) or self._trouble:
            raise ConfigError(f"{self.url}: {self._trouble or 'the server did not start'}")

    def publish(self, output: LineOutput) -> None:
        if not self.registers.offer(output):
            raise ConnectorError("the line controller had not acknowledged the results before this one by its deadline")

    def status(self) -> dict[str, object]:
        """Where it listens, how many controllers are connected, when one polled last (milliseconds ago, -1 never)."""
        age_ms = (time.monotonic_ns() - self.polled_ns) / 1e6 if self.polled_ns else -1.0
        return {
            "address": list(self.address),
            "controllers": len(self._connections),
            "polled_ms": round(age_ms, 1),
            "refused": self.refused,
        }

    def interrupt(self) -> None:
        self.registers.close()

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self.registers.close()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(2.0)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._trouble = f"the server failed: {error}"
            log.exception("%s", self.url)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        listener = _listener(self._host, self._port)
        if isinstance(listener, str):
            self._trouble = listener
            return
        self.address = listener.getsockname()[:2]
        server = await self._loop.create_server(
            lambda: Connection(self, self._connections, MAX_CONTROLLERS), sock=listener
        )
        self._ready.set()
        try:
            await self._beat()
        finally:
            server.close()
            for connection in list(self._connections):
                connection.close()

    async def _beat(self) -> None:
        """Until stopped; a beat that fails is no beat."""
        while not self._stop.is_set():
            try:
                state = self._plant.state(self._line)  # first: a trouble that it explains is known by its words
                self.registers.beat(self._plant.trouble(self._line), self._plant.recipe(self._line), state)
                for output in self.registers.unread():
                    self._plant.fail(output, "no line controller read it by its deadline")
            except Exception as error:  # noqa: BLE001 - the results must go on to be served
                self._log.warning("beat", f"{self.url}: no heartbeat: {error!r}")
            try:
                await asyncio.wait_for(self._stop.wait(), BEAT_S)
            except TimeoutError:
                continue

    def read(self, first: int, count: int) -> list[int]:
        """A controller's read."""
        if first + count > SIZE:
            raise IllegalError(ILLEGAL_ADDRESS)
        self.polled_ns = time.monotonic_ns()
        return self.registers.read(first, count)

    def write(self, first: int, values: list[int]) -> None:
        """A controller's write, of the words from 200 on alone."""
        if first < WRITE_FIRST or first + len(values) > SIZE:
            raise IllegalError(ILLEGAL_ADDRESS)
        now_ns = time.monotonic_ns()
        asked = self.registers.write(first, values)
        if asked.counters:
            self._plant.counted(self._line, asked.counters, now_ns)
        if asked.gate is not None:
            self._plant.gate(self._line, *asked.gate)
        if asked.command is not None:
            self._plant.command(self._line, asked.command)
        if asked.recipe is not None:
            number = asked.recipe
            self._plant.select_recipe(self._line, number, lambda refusal: self._hear(number, refusal))

    def _hear(self, number: int, refusal: str | None) -> None:
        if refusal is not None:
            self._log.warning("recipe", f"{self.url}: recipe {number} is refused: {refusal}")
            self.registers.refuse_recipe(number)

    def admits(self, peer: str) -> bool:
        """Whether a controller at ``peer`` is in ``allow``."""
        address = ipaddress.ip_address(peer.partition("%")[0])
        if not self._allowed or any(address in network for network in self._allowed):
            return True
        self.refused += 1
        self._log.warning("peer", f"{self.url}: a connection from {peer} was closed: it is not in allow")
        return False

    def crowded(self, peer: str, closed: str | None) -> None:
        """Say that there was no room for a connection from ``peer``."""
        if closed is None:
            self.refused += 1
            text = f"a connection from {peer} was closed: others poll on all that there are"
        else:
            text = f"a connection from {closed} that asked for nothing was closed to make room for one from {peer}"
        self._log.warning("crowded", f"{self.url}: {text}")


def _listener(host: str, port: int) -> socket.socket | str:
    """A listening socket, or why there is none."""
    listener = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        if listener is not None:
            listener.close()
        hint = "; ports below 1024 need a privilege, see docs/modbus.md" if isinstance(error, PermissionError) else ""
        return f"cannot listen on {host} port {port} ({error.strerror or error}){hint}"
    return listener


def _port(url: str) -> int:
    try:
        port = urlsplit(url).port
    except ValueError as error:
        raise ConfigError(f"{url}: the port must be a number from 0 to 65535") from error
    return PORT if port is None else port


def _switch(url: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise ConfigError(f"{url}: ack is {value!r}; expected 1 (results wait for the acknowledgement) or 0")
    return value == "1"


def _networks(url: str, value: str) -> list[Network]:
    try:
        return [ipaddress.ip_network(each.strip()) for each in value.split(",") if each.strip()]
    except ValueError as error:
        raise ConfigError(f"{url}: allow: {error}; expected addresses or networks, separated by commas") from error
