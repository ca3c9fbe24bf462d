"""A SCADA system made with asyncua's client, and the folder of a server for it to sign in to."""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from asyncua import Client, Node, ua
from asyncua.client.client import Client as RawClient
from asyncua.common.subscription import Subscription
from asyncua.crypto.cert_gen import (
    dump_private_key_as_pem,
    generate_private_key,
    generate_self_signed_app_certificate,
)
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from plugin.opcua_folder import PACKAGE, PACKAGE_VERSION, TRUSTED, Users, take_nodeset
from tests.needs import lacking

URI = "http://opcfoundation.org/UA/MachineVision"
OWN_URI = "urn:flawline:opcua"
CLIENT_URI = "urn:test:scada"
PATIENCE_S = 20.0
"""asyncua's client gives up a server that takes a second for an answer; a machine full of tests does."""

AGAIN_S = 4.0
"""One that comes back by itself waits no longer for a server that may not be there yet."""

PASSWORDS = {"scada": "kiln-harbour-92", "panel": "quiet-lamp-517"}
"""``scada`` may control, ``panel`` may read."""


@functools.cache
def identity() -> tuple[Path, Path]:
    """The certificate and key of the client that is trusted."""
    folder = Path(tempfile.mkdtemp(prefix="scada-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_identity(folder, "scada")


@functools.cache
def nodesets() -> Path:
    """The npm package's tarball, fetched once; skips the test where it cannot be had."""
    folder = Path(tempfile.mkdtemp(prefix="nodesets-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    npm = shutil.which("npm")
    if npm is None:
        lacking("npm is not installed (Debian: apt-get install npm)")
    words = [npm, "pack", "--silent", "--ignore-scripts", f"{PACKAGE}@{PACKAGE_VERSION}"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    found = next(folder.glob("*.tgz"), None)
    if found is None:
        lacking(f"npm pack {PACKAGE}: {done.stderr.strip()[-200:]}")
    return found


def make_identity(folder: Path, name: str, uri: str = CLIENT_URI) -> tuple[Path, Path]:
    """A client's certificate and key."""
    key = generate_private_key()
    usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = generate_self_signed_app_certificate(key, name, {}, [x509.UniformResourceIdentifier(uri)], usage)
    paths = folder / f"{name}.der", folder / f"{name}.pem"
    paths[0].write_bytes(certificate.public_bytes(Encoding.DER))
    paths[1].write_bytes(dump_private_key_as_pem(key))
    return paths


def make_folder(folder: Path) -> Path:
    """A server's folder with two users, whose passwords are quick to check, and one trusted client."""
    take_nodeset(folder, nodesets())
    users = Users(folder, PasswordHasher(1, 8, 1))
    users.put("scada", "control", PASSWORDS["scada"])
    users.put("panel", "read", PASSWORDS["panel"])
    (folder / TRUSTED).mkdir()
    shutil.copy(identity()[0], folder / TRUSTED)
    return folder


class Loop:
    """An asyncio loop in a thread, for tests that are plain functions."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, Any], timeout_s: float = 30.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        with suppress(TimeoutError):
            self.do(_cancel_all(), 5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait(others, timeout=2) if others else None


class Scada:
    """One client: its events as they came, reads and calls."""

    def __init__(self, loop: Loop, port: int, own: tuple[Path, Path] | None = None) -> None:
        self._loop = loop
        self.events: list[Any] = []
        self.statuses: list[Any] = []
        self.client: RawClient = Client(
            f"opc.tcp://127.0.0.1:{port}/", timeout=PATIENCE_S, watchdog_intervall=PATIENCE_S
        )
        self.client.application_uri = CLIENT_URI
        self._identity = own or identity()

    @staticmethod
    def plain(port: int, user: str = "scada") -> RawClient:
        """A client that is not connected yet, for a loop of one's own."""
        client = Client(f"opc.tcp://127.0.0.1:{port}/", timeout=AGAIN_S, watchdog_intervall=AGAIN_S)
        client.application_uri = CLIENT_URI
        client.set_user(user)
        client.set_password(PASSWORDS[user])
        return client

    def sign_in(
        self, user: str = "scada", password: str | None = None, policy: Any = SecurityPolicyBasic256Sha256
    ) -> Scada:
        """Connect with certificate and password."""
        self._loop.do(self.client.set_security(policy, str(self._identity[0]), str(self._identity[1])))
        self.client.set_user(user)
        self.client.set_password(PASSWORDS.get(user, "") if password is None else password)
        return self.connect()

    def connect(self) -> Scada:
        self.do(self.client.connect())
        self.index = self.do(self.client.get_namespace_index(URI))
        self.own = self.do(self.client.get_namespace_index(OWN_URI))
        self.do(self.client.load_data_type_definitions())
        return self

    def do(self, work: Coroutine[Any, Any, Any], timeout_s: float = 30.0) -> Any:
        return self._loop.do(work, timeout_s)

    def node(self, name: str) -> Node:
        """One of our nodes by its identifier, ``line-1.Heartbeat``."""
        return self.client.get_node(ua.NodeId(name, self.own))

    def read(self, name: str) -> Any:
        return self.do(self.node(name).read_value())

    def state(self, line: str = "line-1") -> tuple[str, str]:
        machine = f"{line}.VisionStateMachine"
        return (
            self.read(f"{machine}.CurrentState").Text,
            self.read(f"{machine}.AutomaticModeStateMachine.CurrentState").Text,
        )

    def call(self, object_name: str, method: str, *values: Any) -> Any:
        """Call a method of the standard by its name."""
        node = self.node(object_name)
        return self.do(node.call_method(ua.QualifiedName(method, self.index), *values))

    def listen(self, period_ms: float = 20, types: tuple[int, ...] = (1024,), node: Any = None) -> Subscription:
        """Collect events, by default results, from the server object."""
        subscription = self.do(self.client.create_subscription(period_ms, self))
        event_types = [self.client.get_node(ua.NodeId(number, self.index)) for number in types]
        self.do(subscription.subscribe_events(node or ua.ObjectIds.Server, event_types))
        return subscription

    def event_notification(self, event: Any) -> None:
        self.events.append(event)

    def status_change_notification(self, status: Any) -> None:
        self.statuses.append(status)

    def datachange_notification(self, node: Node, value: Any, data: Any) -> None:
        """Not asked for."""

    def results(self) -> list[dict[str, Any]]:
        """What each ResultContent said, in the order of arrival."""
        return [content_of(event) for event in list(self.events) if event.EventType.Identifier == 1024]

    def close(self) -> None:
        try:
            self.do(self.client.disconnect(), 10)
        except Exception:  # noqa: BLE001 - whatever the test did to the connection, the next one begins anew
            self.do(abandon(self.client))


async def abandon(client: RawClient) -> None:
    """Let go of a client whose connection may be lost, and of what runs for it."""
    publishing = client.uaclient.session._publish_task
    if publishing is not None:
        publishing.cancel()
    client.disconnect_socket()


def content_of(event: Any) -> dict[str, Any]:
    return {pair.Key.Name: pair.Value.Value for pair in event.ResultContent}


def until_served(port: int, loop: Loop, timeout_s: float = 60.0) -> None:
    """Wait until a server answers at a port."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            loop.do(Client(f"opc.tcp://127.0.0.1:{port}/", timeout=20).connect_and_get_server_endpoints(), 30)
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
