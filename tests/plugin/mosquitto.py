"""A real broker (Debian's mosquitto) for a test, and a consumer that obeys docs/mqtt.md."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trustme
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from contract.event import LineCode
from plugin.connectors.kit import Took
from tests.needs import lacking
from tests.plugin.order import Order
from tests.processes import free_port, freeze, until

NOT_HEARD_S = 3.0


class Mosquitto:
    """One broker at one port; ``start`` again after ``kill``. ``more``: lines of its configuration."""

    def __init__(self, folder: Path, more: str = "allow_anonymous true") -> None:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        if not Path(program).exists():
            lacking("mosquitto is not installed (Debian: apt-get install mosquitto)")
        self.port = free_port()
        self._conf = folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        self._conf.write_text(f"listener {self.port} 127.0.0.1\npersistence false\nuser root\nlog_type all\n{more}\n")
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self._conf)], stdout=log, stderr=log)
        until(self._listens, f"mosquitto listens: {self.log()[-500:]}")

    def kill(self) -> None:
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        freeze(self._process.pid)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


SECRET = "correct-horse"


def secured(folder: Path) -> tuple[Mosquitto, Callable[[Client], None]]:
    """A broker with TLS and a password, ``ca.pem`` and ``mqtt.login`` in the folder, and how a consumer signs in."""
    program = shutil.which("mosquitto_passwd")
    if program is None:
        lacking("mosquitto_passwd is not installed (Debian: apt-get install mosquitto)")
    passwords = folder / "passwords"
    subprocess.run([program, "-b", "-c", str(passwords), "flawline", SECRET], check=True, capture_output=True)
    ca = trustme.CA()
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    login(folder, SECRET)

    def sign_in(client: Client) -> None:
        context = ssl.create_default_context()
        ca.configure_trust(context)
        client.tls_set_context(context)
        client.username_pw_set("flawline", SECRET)

    files = f"password_file {passwords}\ncertfile {folder}/cert.pem\nkeyfile {folder}/key.pem"
    return Mosquitto(folder, f"allow_anonymous false\n{files}"), sign_in


def login(folder: Path, password: str, mode: int = 0o600) -> None:
    (folder / "mqtt.login").write_text(f"flawline\n{password}\n")
    (folder / "mqtt.login").chmod(mode)


class Consumer:
    """What docs/mqtt.md asks of a consumer; ``raw`` has every message as it came."""

    def __init__(self, port: int, topic: str, options: Callable[[Client], None] | None = None) -> None:
        self.raw: list[tuple[MQTTMessage, dict[str, Any]]] = []
        self.taken: list[Took] = []
        self.status: dict[str, Any] | None = None
        self._order = Order()
        self._beat: tuple[str, int] = ("", -1)
        self._beaten_at = -NOT_HEARD_S
        self._subscribed = False
        self._topic = topic
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(0.05, 0.2)  # type: ignore[arg-type]
        if options is not None:
            options(self._client)
        self._client.connect_async("127.0.0.1", port, keepalive=5)
        self._client.loop_start()

    @property
    def inspected(self) -> bool:
        """Connected, told so, and the beat went on a moment ago."""
        told = self._subscribed and self.status is not None and bool(self.status["inspected"])
        return told and time.monotonic() - self._beaten_at < NOT_HEARD_S

    @property
    def subscribed(self) -> bool:
        return self._subscribed

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Client, _data: Any, _flags: Any, _reason: Any, _more: Any) -> None:
        client.subscribe(f"{self._topic}/#", qos=1)

    def _on_subscribe(self, *_more: Any) -> None:
        self._subscribed = True

    def _on_disconnect(self, *_more: Any) -> None:
        self._subscribed, self.status = False, None

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        body = json.loads(message.payload)
        self.raw.append((message, body))
        if body["version"] != 1:
            return
        if body["kind"] == "status":
            self._hear(body, message.retain)
        elif body["kind"] == "result" and not message.retain:
            self._take(body)

    def _hear(self, body: dict[str, Any], retained: bool) -> None:
        self.status = body
        beat = (body["session"], body["beat"])
        if beat != self._beat and not retained:  # what was retained may be old: it is no beat
            self._beaten_at = time.monotonic()
        self._beat = beat

    def _take(self, body: dict[str, Any]) -> None:
        if not self._order.admits(body["session"], body["number"]):
            return
        late = datetime.now(UTC) > datetime.fromisoformat(body["due"])
        code = LineCode.NOT_INSPECTED if late else LineCode(body["code"])
        self.taken.append(Took(body["number"], code, time.monotonic_ns()))
