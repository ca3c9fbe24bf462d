"""``opcua://``: an OPC UA server with the Machine Vision model of OPC 40100-1, in a process of its own (hop 10).

``opcua://10.1.0.5:4840?folder=opcua``, ``opcua://0.0.0.0:4840?folder=opcua&names=vision.plant.local``,
``opcua://127.0.0.1:4840?folder=opcua&insecure=1`` to try it out. The folder holds the nodeset, the certificates and the
users (`flawline host opcua`). Nothing that a client does can change a verdict.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

from plugin.connectors.base import Connector, LineOutput, Plant
from plugin.errors import ConfigError, ConnectorError
from plugin.logs import LimitedLog
from plugin.opcua_folder import USERS, nodeset_of, read_users
from plugin.settings import is_loopback

PORT = 4840
BEAT_S = 0.1
PACKET = 64 << 10
START_S = 120.0
"""Longest time from the start of the server's process to its first word; on a busy machine it takes ten seconds."""

DEAF_S = 10.0
BIND_S = 2.0
"""How long a port that an earlier host's process may still hold is tried for."""

PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
WELL_S = 60.0
UNSENT_BYTES = 1 << 20
OPTIONS = ("folder", "names", "jobs", "insecure")
log = logging.getLogger(__name__)


class Child(NamedTuple):
    """A server's process and our end of the socket to it."""

    process: subprocess.Popen[bytes]
    host: socket.socket
    began: float


class OpcUa(Connector):
    """Feeds the server's process, and starts it anew when it ends."""

    def __init__(self, url: str, base_dir: Path) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query, keep_blank_values=True)
        if unknown := sorted(set(query) - set(OPTIONS)):
            raise ConfigError(f"{url}: unknown option {unknown[0]!r}; there are: {', '.join(OPTIONS)}")
        if importlib.util.find_spec("asyncua") is None:
            raise ConfigError(f"{url}: asyncua is not installed: pip install 'flawline[opcua]'")
        self.url = url
        self._bind = parts.hostname or "127.0.0.1", _port(url)
        self._folder = (base_dir / query.get("folder", ["opcua"])[0]).resolve()
        self._names = [name.strip() for name in query.get("names", [""])[0].split(",") if name.strip()]
        self._jobs = _switch(url, "jobs", query)
        self._insecure = _switch(url, "insecure", query)
        if self._insecure and not is_loopback(self._bind[0]):
            raise ConfigError(f"{url}: {self._bind[0]} can be reached from other machines; insecure=1 is for 127.0.0.1")
        self.address = self._bind
        self.starts = 0
        self.pid: int | None = None
        self._log = LimitedLog(log)
        self._session = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._ready = False
        self._said: dict[str, Any] = {}
        self._heard = 0.0
        self._untold: dict[tuple[str, int], LineOutput] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"opcua {parts.netloc}", daemon=True)

    def start(self, plant: Plant) -> None:
        """Listen, and have the server's process started; it serves some seconds later. Raises ConfigError."""
        self._plant = plant
        nodeset_of(self._folder)
        self._uri = "urn:flawline:opcua:insecure"
        if not self._insecure:
            from plugin.opcua_certificates import make_certificate

            own = make_certificate(self._folder, [*self._names, *_reached_as(self._bind[0])])
            self._uri = own.uri
            self._check_users()
            (self._folder / "trusted").mkdir(exist_ok=True)
            if own.days_left < 60:
                log.warning("%s: the server's certificate ends in %d days", self.url, own.days_left)
        self._listener = _listener(self.url, self._bind)
        self.address = self._listener.getsockname()[:2]
        self._thread.start()

    def _check_users(self) -> None:
        path = self._folder / USERS
        if not path.exists():
            raise ConfigError(
                f"{path}: there is no user yet, and nobody is let in without one: "
                f"flawline host opcua user {self._folder} NAME"
            )
        read_users(path)

    def publish(self, output: LineOutput) -> None:
        with self._lock:
            if not self._ready:
                raise ConnectorError("the OPC UA server is being started")
            self._untold[output.line, output.number] = output
            if not self._send("output", output=[*output[:6], int(output.code), *output[7:]]):
                del self._untold[output.line, output.number]
                raise ConnectorError("the OPC UA server does not take results")

    def status(self) -> dict[str, object]:
        """Where it listens, and what the server said last of its clients."""
        return {
            "address": list(self.address),
            "ready": self._ready,
            "starts": self.starts,
            **{name: self._said.get(name) for name in ("clients", "subscriptions", "refused", "trouble")},
        }

    def interrupt(self) -> None:
        self._closing.set()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    # The thread of the connector

    def _run(self) -> None:
        pause_s = PAUSE_S
        try:
            while not self._closing.is_set():
                began = time.monotonic()
                try:
                    why = self._live(self._begin())
                except OSError as error:
                    why = str(error)
                if self._closing.is_set():
                    return
                pause_s = PAUSE_S if time.monotonic() - began > WELL_S else min(2 * pause_s, LONGEST_PAUSE_S)
                self._log.warning("ended", f"{self.url}: the server's process {why}; started again in {pause_s:g} s")
                self._closing.wait(pause_s)
        finally:
            self._listener.close()

    def _begin(self) -> Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT_BYTES)
        ours.settimeout(0)
        with theirs:
            handles = (theirs.fileno(), self._listener.fileno())
            # Exactly this process's modules, and no folder that it happens to have been started in.
            path = os.pathsep.join(entry for entry in sys.path if entry)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "plugin.connectors.opcua_server", *map(str, handles), str(os.getpid())],
                pass_fds=handles,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )
        child = Child(process, ours, time.monotonic())
        with self._lock:
            self._child, self._ready, self.pid = child, False, process.pid
            self.starts += 1
            self._send("hello", **self._hello())
        return child

    def _hello(self) -> dict[str, Any]:
        host = self._names[0] if self._names else next(iter(_reached_as(self._bind[0])), "127.0.0.1")
        return {
            "folder": str(self._folder),
            "url": f"opc.tcp://{f'[{host}]' if ':' in host else host}:{self.address[1]}/",
            "uri": self._uri,
            "session": self._session,
            "insecure": self._insecure,
            "jobs": self._jobs,
            "lines": {line: self._plant.deadline_ms(line) for line in self._plant.lines},
        }

    def _live(self, child: Child) -> str:
        """Beat and listen until the process ends; why it did."""
        next_beat = self._heard = time.monotonic()
        try:
            while not self._closing.is_set():
                now = time.monotonic()
                if self._ready and now >= next_beat:
                    next_beat = max(next_beat + BEAT_S, now)
                    self._beat()
                    self._give_up_late()
                if now - self._heard > (DEAF_S if self._ready else START_S):
                    return "does not answer"
                child.host.settimeout(max(0.001, next_beat - now) if self._ready else BEAT_S)
                with suppress(TimeoutError):
                    data = child.host.recv(PACKET)
                    if not data:
                        return f"ended ({child.process.wait(5)})"
                    self._heard = time.monotonic()
                    self._hear(json.loads(data))
            return "is no longer needed"
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"was lost ({error})"
        finally:
            self._end(child)

    def _end(self, child: Child) -> None:
        with self._lock:
            self._ready, self._child, self.pid = False, None, None
            untold, self._untold = self._untold, {}
        child.host.close()
        child.process.kill()
        child.process.wait()
        for output in untold.values():
            self._plant.fail(output, "the OPC UA server ended before a client took it")

    def _beat(self) -> None:
        lines = {line: self._facts(line) for line in self._plant.lines}
        with self._lock:
            self._send("beat", lines=lines)

    def _facts(self, line: str) -> list[object]:
        try:
            recipe = self._plant.recipe(line)
            trouble, held = self._plant.trouble_and_held(line)
            drift = self._plant.state(line).drift
            return [trouble, recipe.number, recipe.model, self._plant.last_number(line), held, drift]
        except Exception as error:  # noqa: BLE001 - of what nobody can say how it is, nothing is inspected
            self._log.warning("facts", f"{self.url}: no heartbeat: {error!r}")
            return [f"nobody can say: {str(error)[:200]}", 0, 0, 0, False, None]

    def _give_up_late(self) -> None:
        now_ns = time.monotonic_ns()
        with self._lock:
            late = [key for key, output in self._untold.items() if now_ns > output.due_ns]
            outputs = [self._untold.pop(key) for key in late]
        for output in outputs:
            self._plant.fail(output, "no client took it by its deadline")

    def _hear(self, message: dict[str, Any]) -> None:
        kind = message.pop("kind")
        if kind == "ready":
            self._ready = True
            log.info("%s: the OPC UA server is ready at %s port %d", self.url, *self.address)
        elif kind == "told":
            with self._lock:
                output = self._untold.get((message["line"], message["number"]))
                if output is not None and time.monotonic_ns() <= output.due_ns:
                    del self._untold[message["line"], message["number"]]
        elif kind == "unheard":
            with self._lock:
                output = self._untold.pop((message["line"], message["number"]), None)
            if output is not None:
                self._plant.fail(output, "no client listens to results")
        elif kind == "ask":
            self._pass_on(**message)
        elif kind == "status":
            self._said = message

    def _pass_on(self, number: int, line: str, what: Literal["recipe", "start", "stop", "trigger"], value: Any) -> None:
        """Ask the plant; it answers at once or later, from any thread."""
        try:
            if what == "recipe":
                self._plant.select_recipe(line, value, lambda refusal: self._answer(number, refusal, ()))
            else:
                self._plant.ask(line, what, value, partial(self._answer, number))
        except Exception as error:  # noqa: BLE001 - what a client made of it must not end the beats
            self._log.warning("ask", f"{self.url}: {what} was not asked: {error!r}")
            self._answer(number, f"it could not be asked: {str(error)[:200]}", ())

    def _answer(self, number: int, refusal: str | None, parts: tuple[str, ...]) -> None:
        with self._lock:
            self._send("answer", number=number, refusal=refusal, parts=parts)

    def _send(self, kind: str, **what: Any) -> bool:
        """Whether the process could be told. With the lock."""
        child = self._child
        if child is None:
            return False
        try:
            child.host.send(json.dumps({"kind": kind, **what}).encode(), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True


def _reached_as(host: str) -> list[str]:
    return [] if host in ("0.0.0.0", "::") else [host]  # noqa: S104 - addresses to bind, none to go to


def _listener(url: str, bind: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + BIND_S
    while True:
        listener = None
        try:
            family, _, _, _, address = socket.getaddrinfo(*bind, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(64)
            return listener
        except OSError as error:
            if listener is not None:
                listener.close()
            if time.monotonic() > deadline:
                why = error.strerror or error
                raise ConfigError(f"{url}: cannot listen on {bind[0]} port {bind[1]} ({why})") from error
            time.sleep(0.1)


def _port(url: str) -> int:
    try:
        port = urlsplit(url).port
    except ValueError as error:
        raise ConfigError(f"{url}: the port must be a number from 0 to 65535") from error
    return PORT if port is None else port


def _switch(url: str, name: str, query: dict[str, list[str]]) -> bool:
    value = query.get(name, ["0"])[0]
    if value not in ("0", "1"):
        raise ConfigError(f"{url}: {name} is {value!r}; expected 1 or 0")
    return value == "1"
