"""``mqtt://``, ``mqtts://``: JSON on an MQTT 5 broker, for plant data and dashboards rather than for a gate (hop 10).

``mqtts://10.1.0.9:8883/plant-7/press-3?ca=ca.pem&login=mqtt.login``: site and station, and files beside host.toml. One
connector speaks for one line, on ``flawline/<site>/<line>/<station>/status`` (retained, with a last will) and
``.../result``. Every connection is a new client of the library: what one did not deliver ends with it, and is never
sent by itself once the broker is back.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from plugin.connectors.base import Connector, LineOutput, Plant
from plugin.connectors.credentials import read_private, trusting
from plugin.connectors.messages import LOOK_S, Heart, encode, last_will, new_session, result
from plugin.errors import ConfigError, ConnectorError
from plugin.logs import LimitedLog
from plugin.settings import is_loopback

PORTS = {"mqtt": 1883, "mqtts": 8883}
OPTIONS = ("ca", "login")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
ROOT = "flawline"
KEEPALIVE_S = 5
TIMEOUT_S = 3.0
"""For a connection, and for the acknowledgement of a status."""

RETRY_S = 0.5
LAST_WORDS_S = 0.5
INSPECTED_EXPIRES_S = 5
"""How long a broker keeps a status that says inspected: longer than a few beats it is a memory, not a sign of life."""

NOBODY = 0x10
"""The broker's reason code for a message that no consumer has subscribed to."""

log = logging.getLogger(__name__)


class Mqtt(Connector):
    """Speaks for one line; a thread of its own connects, connects again, and tells how the line is."""

    def __init__(self, url: str, base_dir: Path) -> None:
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                f"{parts.scheme}://{parts.hostname}: user and password have no place in a URL, which stands in logs: "
                "put them on two lines of a file of mode 0600 and name it with login=FILE"
            )
        self.url = url
        self._secure = parts.scheme == "mqtts"
        self._host = parts.hostname or ""
        self._port = _port(url)
        self._site, self._station = _names(url)
        options = _options(url, parts.query)
        if "ca" in options and not self._secure:
            raise ConfigError(f"{url}: ca is for mqtts://, and this connection is not encrypted")
        if "login" in options and not self._secure and not is_loopback(self._host):
            raise ConfigError(f"{url}: the password would travel in clear to {self._host}: use mqtts://")
        self._tls = None
        if self._secure:
            self._tls = trusting(base_dir / options["ca"] if "ca" in options else None)
            self._tls.sslsocket_class = _ClosedOnFailure
        self._login = _login(base_dir / options["login"]) if "login" in options else None
        self._session = new_session()
        self._log = LimitedLog(log)
        self._change = threading.Condition()
        self._link: _Link | None = None
        self._trouble = "the broker has not answered yet"
        self._interrupted = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mqtt {self._host}:{self._port}", daemon=True)

    def start(self, plant: Plant) -> None:
        """Begin to connect. Raises ConfigError."""
        if len(plant.lines) != 1:
            raise ConfigError(
                f"{self.url}: one connection has one last will and speaks for one line, this one would for "
                f'{list(plant.lines)}: give each line a connector of its own with lines = ["ID"]'
            )
        (line,) = plant.lines
        self._line = line
        self._topic = f"{ROOT}/{self._site}/{line}/{self._station}"
        self._heart = Heart(plant, line, self._session)
        self._thread.start()

    def publish(self, output: LineOutput) -> None:
        """Until the broker has acknowledged it; over a new connection where one is lost meanwhile."""
        body = encode(result(output, self._session))
        while True:
            link = self._wait_for_link(output.due_ns)
            if time.monotonic_ns() > output.due_ns:  # it was there, just too late
                raise ConnectorError("its deadline passed before it could be sent again")
            expires_s = max(1, math.ceil((output.due_ns - time.monotonic_ns()) / 1e9))
            mid = link.send(f"{self._topic}/result", body, expires_s=expires_s)
            reason = self._wait_for_ack(link, mid, output.due_ns)
            if reason is None:
                continue
            if reason.value == NOBODY:
                raise ConnectorError(f"no consumer has subscribed to {self._topic}/result")
            if reason.is_failure:
                raise ConnectorError(f"the broker refuses it: {reason}")
            return

    def interrupt(self) -> None:
        with self._change:
            self._interrupted = True
            self._change.notify_all()

    def status(self) -> dict[str, object]:
        """Whether the broker is there, and the topic."""
        connected = self._link is not None
        topic = f"{ROOT}/{self._site}/{getattr(self, '_line', '')}/{self._station}"
        return {"connected": connected, "topic": topic, "trouble": None if connected else self._trouble}

    def close(self) -> None:
        self._closing.set()
        self.interrupt()
        if self._thread.is_alive():
            self._thread.join(LAST_WORDS_S + 1.0)

    def _wait_for_link(self, due_ns: int) -> _Link:
        with self._change:
            self._wait(lambda: self._link is not None, due_ns)
            if self._link is None:
                raise ConnectorError(f"no connection to the broker by its deadline: {self._trouble}")
            return self._link

    def _wait_for_ack(self, link: _Link, mid: int, due_ns: int) -> ReasonCode | None:
        """The broker's answer; None where the connection was lost first. Raises ConnectorError at the deadline."""
        with self._change:
            self._wait(lambda: mid in link.answers or link.lost, due_ns)
            if mid in link.answers:
                return link.answers.pop(mid)
            if link.lost:
                return None
            if self._link is link:
                self._link, self._trouble = None, "the broker does not answer"
        link.sever()  # whatever of it has not left yet never will
        raise ConnectorError("the broker had not acknowledged it by its deadline")

    def _wait(self, question: Any, due_ns: int) -> None:
        left_s = max(0.0, (due_ns - time.monotonic_ns()) / 1e9)
        self._change.wait_for(lambda: question() or self._interrupted, min(left_s, threading.TIMEOUT_MAX))
        if self._interrupted and not question():
            raise ConnectorError("the host stopped before the broker acknowledged it")

    def _run(self) -> None:
        while not self._closing.is_set():
            link = _Link(self._client(), self._change)
            try:
                link.connect(self._host, self._port)
                with self._change:
                    self._link = link
                    self._change.notify_all()
                log.info("%s: connected", self.url)
                self._beat(link)
            except (OSError, ValueError, ConnectorError) as error:  # ValueError: an answer that is no MQTT 5
                self._trouble = str(error)[:300] or type(error).__name__
                self._log.warning("link", f"{self.url}: no connection to the broker: {self._trouble}")
            finally:
                with self._change:
                    self._link = None
                link.sever()
            self._closing.wait(RETRY_S)

    def _client(self) -> Client:
        """A client of the library for one connection. The same name again, so that the broker ends a forgotten one."""
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"{ROOT}-{self._site}-{self._line}-{self._station}",
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = TIMEOUT_S
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._login is not None:
            client.username_pw_set(*self._login)
        client.will_set(f"{self._topic}/status", encode(last_will(self._line, self._session)), qos=1, retain=True)
        return client

    def _beat(self, link: _Link) -> None:
        """Tell how the line is until the connection is lost, the broker stops answering, or the host stops."""
        anew, asked, asked_at = True, 0, 0.0
        while not self._closing.is_set():
            if link.lost:
                raise ConnectorError(link.reason)
            if asked and link.has_answered(asked):
                asked = 0
            if asked and time.monotonic() - asked_at > TIMEOUT_S:
                raise ConnectorError(f"it has not answered for {TIMEOUT_S:.0f} s")
            if not asked and (message := self._heart.look(anew)) is not None:
                anew, asked_at = False, time.monotonic()
                asked = self._tell(link, message)
            self._closing.wait(LOOK_S)
        self._part(link)

    def _tell(self, link: _Link, message: dict[str, object]) -> int:
        expires_s = INSPECTED_EXPIRES_S if message["inspected"] else None
        return link.send(f"{self._topic}/status", encode(message), retain=True, expires_s=expires_s)

    def _part(self, link: _Link) -> None:
        """In order: the broker is told that the host stopped, so that it needs no last will."""
        mid = self._tell(link, self._heart.last())
        with self._change:
            self._change.wait_for(lambda: mid in link.answers or link.lost, LAST_WORDS_S)
        link.leave()


class _Link:
    """One connection to the broker. ``change`` is notified of every answer, kept in ``answers``, and of its end."""

    def __init__(self, client: Client, change: threading.Condition) -> None:
        self.answers: dict[int, ReasonCode] = {}
        self.lost = False
        self.reason = "the connection was lost"
        self._client = client
        self._change = change
        self._admitted: ReasonCode | None = None
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish

    def connect(self, host: str, port: int) -> None:
        """Raises OSError or ConnectorError where the broker does not let us in within the time."""
        self._client.connect(host, port, keepalive=KEEPALIVE_S, clean_start=True)
        self._set_linger(True)
        self._client.loop_start()
        with self._change:
            self._change.wait_for(lambda: self._admitted is not None or self.lost, TIMEOUT_S)
        if self._admitted is None:
            raise ConnectorError(self.reason if self.lost else f"it has not answered for {TIMEOUT_S:.0f} s")
        if self._admitted.is_failure:
            raise ConnectorError(f"it refuses us: {self._admitted}")

    def send(self, topic: str, body: bytes, retain: bool = False, expires_s: int | None = None) -> int:
        """Begin to send; the returned number will be among ``answers``, or the link will be ``lost``."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = "application/json"
        properties.PayloadFormatIndicator = 1
        if expires_s is not None:
            properties.MessageExpiryInterval = expires_s
        info = self._client.publish(topic, body, qos=1, retain=retain, properties=properties)
        if info.rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._lose(f"it was lost: {info.rc.name}")
        return info.mid

    def has_answered(self, mid: int) -> bool:
        """Whether it did, which is told once."""
        with self._change:
            return self.answers.pop(mid, None) is not None

    def leave(self) -> None:
        """End the connection in order, where the broker lets us."""
        with suppress(OSError):
            self._set_linger(False)
            self._client.disconnect()
        with self._change:
            self._change.wait_for(lambda: self.lost, LAST_WORDS_S)

    def sever(self) -> None:
        """End the connection at once; what was not delivered is thrown away."""
        handle = self._client.socket()
        if isinstance(handle, socket.socket):
            with suppress(OSError):
                # TLS has a shutdown of its own, behind which the library's thread would go on in clear for a moment.
                socket.socket.shutdown(handle, socket.SHUT_RDWR)
        self._client.loop_stop()

    def _set_linger(self, throw_away: bool) -> None:
        handle = self._client.socket()
        if isinstance(handle, socket.socket):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", throw_away, 0))

    def _lose(self, reason: str) -> None:
        with self._change:
            self.lost, self.reason = True, reason
            self._change.notify_all()

    def _on_connect(self, _client: Client, _data: Any, _flags: ConnectFlags, reason: ReasonCode, _more: Any) -> None:
        with self._change:
            self._admitted = reason
            self._change.notify_all()

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, reason: ReasonCode, _more: Any
    ) -> None:
        self._lose(f"the connection was lost: {reason}")

    def _on_publish(self, _client: Client, _data: Any, mid: int, reason: ReasonCode, _more: Any) -> None:
        with self._change:
            self.answers[mid] = reason
            self._change.notify_all()


class _ClosedOnFailure(ssl.SSLSocket):
    """The library leaves a socket open whose handshake failed."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _port(url: str) -> int:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url}: the port must be a number from 1 to 65535") from error
    if not parts.hostname:
        raise ConfigError(f"{url}: expected the broker's address, for example mqtt://10.1.0.9/plant-7/press-3")
    return PORTS[parts.scheme] if port is None else port


def _names(url: str) -> tuple[str, str]:
    names = urlsplit(url).path.removeprefix("/").split("/")
    if len(names) != 2 or not all(NAME.fullmatch(name) for name in names):
        raise ConfigError(
            f"{url}: expected a site and a station of letters, digits, - _ and . behind the address, for example "
            "mqtt://10.1.0.9/plant-7/press-3"
        )
    return names[0], names[1]


def _options(url: str, query: str) -> dict[str, str]:
    given = parse_qs(query, keep_blank_values=True)
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise ConfigError(f"{url}: unknown option {unknown[0]!r}; there are: {', '.join(OPTIONS)}")
    return {name: values[0] for name, values in given.items()}


def _login(path: Path) -> tuple[str, str]:
    lines = read_private(path, "the user and the password")
    if len(lines) != 2 or not all(lines):
        raise ConfigError(f"{path}: expected the user on the first line and the password on the second")
    return lines[0], lines[1]
