"""The line controllers that the connector kit is run with: a peer for every connector of the table."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, NamedTuple

import trustme
from asyncua import Client as OpcUaClient
from asyncua import ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from asyncua.ua.uaerrors import UaError
from paho.mqtt.client import Client

from contract.event import LineCode
from plugin.connectors.base import LineOutput
from plugin.connectors.kit import DEADLINE_MS, LINE, Peer, Took
from tests.plugin.controller import Controller, Master, ModbusError, Module
from tests.plugin.mosquitto import Consumer, Mosquitto, secured
from tests.plugin.opcua_client import OWN_URI, URI, Loop, Scada, abandon, content_of, identity, make_folder
from tests.plugin.receiver import Receiver, write_secret
from tests.plugin.relay import Relay
from tests.processes import free_port


class Came(NamedTuple):
    """One result as it came, taken or not, of a part; ``key`` is what a reader knows a repetition by."""

    key: object
    number: int
    trigger: int


class LoopPeer(Peer):
    """The file of a ``loop://``, which is the controller."""

    lacks: ClassVar = {
        "heartbeat": "a file tells nobody anything while no part passes",
        "restart of peer": "a file does not go away",
        "slow peer": "a file is not slow",
        "absent peer": "a file that cannot be written is refused at the start",
    }

    def __init__(self, folder: Path) -> None:
        self._path = folder / "peer.jsonl"

    @property
    def url(self) -> str:
        return f"loop://{self._path}"

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def slow(self, seconds: float) -> None: ...

    def took(self) -> Sequence[Took]:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        mono_minus_wall_ns = time.monotonic_ns() - time.time_ns()
        rows = [json.loads(line) for line in lines]
        return [Took(row["number"], row["code"], int(row["t"] * 1e9) + mono_minus_wall_ns) for row in rows]

    def inspected(self) -> bool:
        return True


class ModbusPeer(Peer):
    """The controller of docs/modbus.md on libmodbus; it polls and connects again."""

    cycle_s = 0.01

    def __init__(self, folder: Path) -> None:
        self._address = ("127.0.0.1", free_port())
        self._taken: list[Took] = []
        self._came: list[Came] = []
        self._slow_s = 0.0
        self._controller: Controller | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"modbus://127.0.0.1:{self._address[1]}"

    def start(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stopping,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10)
        self._thread = self._controller = None

    def slow(self, seconds: float) -> None:
        self._slow_s = seconds

    def took(self) -> Sequence[Took]:
        return list(self._taken)

    def came(self) -> list[Came]:
        return list(self._came)

    def inspected(self) -> bool:
        controller = self._controller
        return controller is not None and controller.inspected

    def close(self) -> None:
        self.stop()

    def _run(self, stopping: threading.Event) -> None:
        while not self._wait(stopping):
            try:
                self._cycle()
            except ModbusError:
                self._connect()
        if self._controller is not None:
            self._controller.master.close()

    def _wait(self, stopping: threading.Event) -> bool:
        """Until the next cycle; a controller that becomes quick again does not finish a slow one first."""
        began = time.monotonic()
        while time.monotonic() - began < max(self.cycle_s, self._slow_s):
            if stopping.wait(self.cycle_s):
                return True
        return False

    def _cycle(self) -> None:
        if self._controller is None:
            self._controller = Controller(self._address)
        before = len(self._controller.taken)
        self._controller.poll()
        now_ns = time.monotonic_ns()
        new = self._controller.taken[before:]
        self._came += [Came(part.seq, part.seq, part.trigger_id) for part in new]
        self._taken += [Took(part.seq, part.code, now_ns) for part in new]

    def _connect(self) -> None:
        if self._controller is None:
            return
        self._controller.master.close()
        try:
            self._controller.master = Master(self._address)
        except ModbusError:
            return


class ModbusIoPeer(Peer):
    """A remote I/O module whose coil is the gate: a part is taken where the gate opens in the part's time."""

    spacing_s = 0.3  # a gate that a busy machine opens late is still nearest to its own part
    slow_s = 0.01
    delay_ns = DEADLINE_MS * 1_000_000
    hold_ns = 80_000_000

    def __init__(self, folder: Path) -> None:
        self._module = Module()
        self._port = free_port()
        self._running = False
        self._opens_ns: dict[int, int] = {}
        self._written = (0, 0.0)
        self._ready_since = 1 << 62

    @property
    def url(self) -> str:
        options = f"coil=0&ready=1&delay_ms={self.delay_ns // 1_000_000}&hold_ms={self.hold_ns // 1_000_000}"
        return f"modbus-io://127.0.0.1:{self._port}?{options}"

    def start(self) -> None:
        self._module.start(self._port)
        self._running = True

    def stop(self) -> None:
        if self._running:
            self._module.stop()
        self._running = False

    def slow(self, seconds: float) -> None:
        self._module.slow_s = seconds

    def expects(self, output: LineOutput) -> None:
        self._opens_ns[output.number] = output.captured_ns + self.delay_ns

    def tells(self, output: LineOutput) -> bool:
        return output.code is LineCode.PASS

    def until_ns(self, output: LineOutput) -> int:
        return output.captured_ns + self.delay_ns + self.hold_ns

    def took(self) -> Sequence[Took]:
        opened = [int(t * 1e9) for coil, on, t in list(self._module.history) if coil == 0 and on]
        return [Took(self._part_at(t_ns), LineCode.PASS, t_ns) for t_ns in opened]

    def _part_at(self, t_ns: int) -> int:
        return min(self._opens_ns, key=lambda number: abs(self._opens_ns[number] + self.hold_ns // 2 - t_ns))

    def inspected(self) -> bool:
        """By the module's own watchdog: coils that nobody writes any more are off, and one write is no connection."""
        if self._written[0] != self._module.writes:
            self._written = (self._module.writes, time.monotonic())
        ready = self._running and self._module.coils[1] and time.monotonic() - self._written[1] < 0.5
        self._ready_since = min(self._ready_since, self._written[0]) if ready else 1 << 62
        return ready and self._written[0] > self._ready_since + 2

    def close(self) -> None:
        self.stop()


class MqttPeer(Peer):
    """A mosquitto behind a slow network, and a consumer beside it."""

    def __init__(self, folder: Path) -> None:
        self._broker, self._options = self._make_broker(folder)
        self._relay = Relay(self._broker.port)
        self._consumer: Consumer | None = None

    def _make_broker(self, folder: Path) -> tuple[Mosquitto, Callable[[Client], None] | None]:
        return Mosquitto(folder), None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self._relay.port}/plant-7/press-3"

    def start(self) -> None:
        self._broker.start()
        if self._consumer is None:
            self._consumer = Consumer(self._broker.port, f"flawline/plant-7/{LINE}/press-3", self._options)

    def stop(self) -> None:
        self._broker.kill()

    def slow(self, seconds: float) -> None:
        self._relay.delay_s = seconds

    def took(self) -> Sequence[Took]:
        return [] if self._consumer is None else list(self._consumer.taken)

    def came(self) -> list[Came]:
        bodies = [] if self._consumer is None else [body for _, body in list(self._consumer.raw)]
        results = [body for body in bodies if body["kind"] == "result"]
        return [Came((body["session"], body["number"]), body["number"], body["trigger"]) for body in results]

    def inspected(self) -> bool:
        return self._consumer is not None and self._consumer.inspected

    def close(self) -> None:
        self._relay.close()
        if self._consumer is not None:
            self._consumer.close()
        self._broker.kill()


class MqttsPeer(MqttPeer):
    """The same over TLS, with a password."""

    @property
    def url(self) -> str:
        return f"mqtts://127.0.0.1:{self._relay.port}/plant-7/press-3?ca=ca.pem&login=mqtt.login"

    def _make_broker(self, folder: Path) -> tuple[Mosquitto, Callable[[Client], None] | None]:
        return secured(folder)


class WebhookPeer(Peer):
    """An HTTP server."""

    def __init__(self, folder: Path) -> None:
        write_secret(folder)
        self._receiver = self._make_receiver(folder)

    def _make_receiver(self, folder: Path) -> Receiver:
        return Receiver()

    @property
    def url(self) -> str:
        return f"webhook+http://127.0.0.1:{self._receiver.port}/flawline?secret=webhook.secret"

    def start(self) -> None:
        self._receiver.start()

    def stop(self) -> None:
        self._receiver.stop()

    def slow(self, seconds: float) -> None:
        self._receiver.slow_s = seconds

    def took(self) -> Sequence[Took]:
        return list(self._receiver.taken)

    def came(self) -> list[Came]:
        results = [(headers, body) for headers, body in list(self._receiver.raw) if body["kind"] == "result"]
        return [Came(headers["webhook-id"], body["number"], body["trigger"]) for headers, body in results]

    def inspected(self) -> bool:
        return self._receiver.inspected

    def close(self) -> None:
        self.stop()


class WebhooksPeer(WebhookPeer):
    """The same over TLS."""

    @property
    def url(self) -> str:
        return f"webhook+https://127.0.0.1:{self._receiver.port}/flawline?secret=webhook.secret&ca=webhook-ca.pem"

    def _make_receiver(self, folder: Path) -> Receiver:
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(folder / "webhook-ca.pem"))
        return Receiver(ca)


class OpcUaPeer(Peer):
    """A SCADA system on a slow network, which obeys docs/opcua.md: it signs in, listens, and comes back by itself."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder / "opcua")
        self._port = free_port()
        self._relay = Relay(self._port)
        self._loop = Loop()
        self._running: asyncio.Task[None] | None = None
        self._taken: list[Took] = []
        self._came: list[Came] = []
        self._beat = (-1, 0.0)
        self._inspected = False

    @property
    def url(self) -> str:
        return f"opcua://127.0.0.1:{self._port}?folder=opcua"

    def start(self) -> None:
        async def begin() -> None:
            self._running = asyncio.create_task(self._run())

        self._loop.do(begin())

    def stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            self._relay.cut()
            self._loop.loop.call_soon_threadsafe(running.cancel)
        self._inspected = False

    def slow(self, seconds: float) -> None:
        self._relay.delay_s = seconds

    def took(self) -> Sequence[Took]:
        return list(self._taken)

    def came(self) -> list[Came]:
        return list(self._came)

    def inspected(self) -> bool:
        return self._inspected and time.monotonic() - self._beat[1] < 0.5

    def close(self) -> None:
        self.stop()
        self._relay.close()
        self._loop.close()

    async def _run(self) -> None:
        while True:
            client = Scada.plain(self._relay.port)
            try:
                await self._listen(client)
            except (OSError, TimeoutError, UaError):
                await asyncio.sleep(0.1)
            finally:
                self._inspected = False
                await abandon(client)

    async def _listen(self, client: OpcUaClient) -> None:
        await client.set_security(SecurityPolicyBasic256Sha256, *map(str, identity()))
        await client.connect()
        own, index = [await client.get_namespace_index(uri) for uri in (OWN_URI, URI)]
        subscription = await client.create_subscription(20, self)
        await subscription.subscribe_events(ua.ObjectIds.Server, [client.get_node(ua.NodeId(1024, index))])
        nodes = [client.get_node(ua.NodeId(f"{LINE}.{name}", own)) for name in ("Heartbeat", "Inspected")]
        while True:
            beat, self._inspected = await client.read_values(nodes)
            if beat != self._beat[0]:
                self._beat = beat, time.monotonic()
            await asyncio.sleep(0.02)

    def event_notification(self, event: object) -> None:
        """Only a result in time, of a number that was not taken before, is what it says."""
        said = content_of(event)
        self._came.append(Came((said["Session"], said["Number"]), said["Number"], said["TriggerId"]))
        in_time = not said["Stale"] and said["Deadline"] > datetime.now(UTC)
        code = LineCode[said["Verdict"]] if in_time else LineCode.NOT_INSPECTED
        if not self._taken or said["Number"] > self._taken[-1].number:
            self._taken.append(Took(said["Number"], code, time.monotonic_ns()))

    def status_change_notification(self, status: object) -> None: ...


PEERS: dict[str, Callable[[Path], Peer]] = {
    "loop": LoopPeer,
    "modbus": ModbusPeer,
    "modbus-io": ModbusIoPeer,
    "mqtt": MqttPeer,
    "mqtts": MqttsPeer,
    "webhook+http": WebhookPeer,
    "webhook+https": WebhooksPeer,
    "opcua": OpcUaPeer,
}
"""By the scheme of the connector's URL."""
