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
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.server.requesthandler import ServerRequestHandler
from pymodbus.simulator import DataType, SimData, SimDevice

from plugin.connectors.base import Connector, LineOutput, Plant
from plugin.connectors.registers import SIZE, WRITE_FIRST, Registers
from plugin.errors import ConfigError, ConnectorError
from plugin.logs import LimitedLog
from plugin.settings import is_loopback

PORT = 502
BEAT_S = 0.1
MAX_CONTROLLERS = 16
START_S = 10.0
READS = (3, 4)
WRITES = (6, 16)
OPTIONS = ("ack", "allow")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
log = logging.getLogger(__name__)
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # what it says of strangers' mistakes is said here, bounded


class Modbus(Connector):
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
        server = getattr(self, "_server", None)
        return {
            "address": list(self.address),
            "controllers": 0 if server is None else len(server.active_connections),
            "polled_ms": round(age_ms, 1),
            "refused": self.refused,
        }

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
        self._server = server = _Server(self, listener)
        await server.serve_forever(background=True)
        self._ready.set()
        try:
            await self._beat()
        finally:
            await server.shutdown()  # type: ignore[no-untyped-call]
            server.close_all()

    async def _beat(self) -> None:
        """Until stopped; a beat that fails is no beat."""
        while not self._stop.is_set():
            try:
                self.registers.beat(self._plant.trouble(self._line), self._plant.recipe(self._line))
            except Exception as error:  # noqa: BLE001 - the results must go on to be served
                self._log.warning("beat", f"{self.url}: no heartbeat: {error!r}")
            try:
                await asyncio.wait_for(self._stop.wait(), BEAT_S)
            except TimeoutError:
                continue

    def access(self, first: int, memory: list[int], values: list[int] | list[bool] | None) -> None:
        """A controller's read fills ``memory``; what it writes is taken in."""
        if values is None:
            self.polled_ns = time.monotonic_ns()
            memory[:] = self.registers.read()
            return
        now_ns = time.monotonic_ns()
        asked = self.registers.write(first, values)
        for counter in asked.counters:
            self._plant.counted(self._line, counter, now_ns)
        if asked.recipe is not None:
            number = asked.recipe
            self._plant.select_recipe(self._line, number, lambda refusal: self._hear(number, refusal))

    def _hear(self, number: int, refusal: str | None) -> None:
        if refusal is not None:
            self._log.warning("recipe", f"{self.url}: recipe {number} is refused: {refusal}")
            self.registers.refuse_recipe(number)

    def admits(self, peer: str, connected: int) -> bool:
        """Whether a controller at ``peer`` may stay."""
        reason = None
        address = ipaddress.ip_address(peer.partition("%")[0])
        if self._allowed and not any(address in network for network in self._allowed):
            reason = "is not in allow"
        elif connected > MAX_CONTROLLERS:
            reason = f"is one more than {MAX_CONTROLLERS}"
        if reason is not None:
            self.refused += 1
            self._log.warning("peer", f"{self.url}: a connection from {peer} was closed: it {reason}")
        return reason is None


class _Server(ModbusTcpServer):
    """pymodbus' server on a socket of ours, with our memory behind it."""

    def __init__(self, connector: Modbus, listener: socket.socket) -> None:
        memory = [
            SimData(0, count=WRITE_FIRST, datatype=DataType.REGISTERS, readonly=True),
            SimData(WRITE_FIRST, count=SIZE - WRITE_FIRST, datatype=DataType.REGISTERS),
        ]
        # Device 0 stands for all: controllers put anything into the unit id.
        super().__init__(SimDevice(0, memory, action=self._action), address=listener.getsockname()[:2])
        self.connector = connector
        self._listener = listener
        self.call_create = self._create

    def _create(self) -> Coroutine[Any, Any, Any]:
        return self.loop.create_server(self.handle_new_connection, sock=self._listener)

    async def _action(
        self,
        function: int,
        start: int,
        address: int,
        count: int,
        memory: list[int],
        values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        if function not in (*READS, *WRITES) or (values is not None and function not in WRITES):
            return ExcCodes.ILLEGAL_FUNCTION
        self.connector.access(address, memory, values)
        return None

    def callback_new_connection(self) -> ServerRequestHandler:
        handler = _Handler(self, None, None, None)  # type: ignore[no-untyped-call]
        handler.connected = len(self.active_connections) + 1
        return handler

    def close_all(self) -> None:
        """Close what controllers still hold open."""
        for connection in list(self.active_connections.values()):
            connection.close()


class _Handler(ServerRequestHandler):
    """One controller's connection; ``connected``: how many there were with it when it came."""

    connected = 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if not self.server.connector.admits(peer[0], self.connected):
            asyncio.get_running_loop().call_soon(self.close)  # not now: asyncio is still setting the connection up
            return
        handle = transport.get_extra_info("socket")
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A controller that lost its power sends no farewell; without these its connection would be kept for ever.
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


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
