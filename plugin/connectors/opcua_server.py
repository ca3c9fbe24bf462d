"""The process of ``opcua://``: an asyncua server that is fed by the host over a socket and ends with it (hop 10).

Started as ``python -m plugin.connectors.opcua_server HOST_FD LISTENER_FD``. Messages are JSON, one in each packet.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import json
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PACKET = 64 << 10
SILENT_S = 0.5
STATUS_S = 1.0
LATEST_ANSWER_S = 900.0
QUIET_S = 5.0
log = logging.getLogger("plugin.connectors.opcua_server")


class LimitedRecords(logging.Filter):
    """One record a place in the code every few seconds, without its traceback: a stranger causes them at any rate."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("asyn"):  # asyncua, asyncio
            return True
        record.exc_info = record.exc_text = None
        record.msg, record.args = record.getMessage()[:300], ()
        place, now = (record.pathname, record.lineno), time.monotonic()
        if now - self._last.get(place, -QUIET_S) < QUIET_S:
            return False
        self._last[place] = now
        return True


class Link:
    """The socket to the host; when it closes, this process has nothing left to do."""

    def __init__(self, host: socket.socket) -> None:
        self._host = host
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._latest: dict[int, tuple[str, int]] = {}
        host.setblocking(False)

    def send(self, kind: str, **what: Any) -> None:
        """Say something; what the host does not take is lost to it, as if it had not been said."""
        with suppress(BlockingIOError):
            self._host.send(json.dumps({"kind": kind, **what}).encode())

    async def receive(self) -> dict[str, Any] | None:
        """The host's next message; None where there is no host any more."""
        data = await asyncio.get_running_loop().sock_recv(self._host, PACKET)
        return json.loads(data) if data else None

    async def ask(self, line: str, what: str, value: int | str | None, wait_s: float) -> Any:
        """The host's answer to something asked of the line's edges; None where it takes longer."""
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        if what == "recipe" and isinstance(value, int):
            self._latest[number] = line, value
        self.send("ask", number=number, line=line, what=what, value=value)
        try:
            return await asyncio.wait_for(asyncio.shield(future), wait_s)
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(number, None)

    def answered(self, number: int, reply: Any) -> tuple[str, int] | None:
        """Hand an answer to who waits for it; the line and number of the recipe that it is about."""
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(reply)
        return self._latest.pop(number, None)


class Process:
    """The server and its lines."""

    def __init__(self, link: Link, listener: socket.socket, hello: dict[str, Any]) -> None:
        from plugin.connectors.opcua_guard import Rules, make_server
        from plugin.opcua_certificates import TrustList
        from plugin.opcua_folder import Users

        self._link = link
        self._hello = hello
        self._folder = Path(hello["folder"])
        self._rules = Rules()
        secure = not hello["insecure"]
        users, trust = (Users(self._folder), TrustList(self._folder)) if secure else (None, None)
        self.server = make_server(users, trust, listener, self._rules)
        self._trust = trust
        self.lines: dict[str, Any] = {}
        self._heard = time.monotonic()

    async def build(self) -> None:
        """The address space; takes seconds."""
        from plugin.connectors.opcua_model import OWN_URI, URI, VisionSystem, register_subtypes
        from plugin.opcua_folder import CERTIFICATE, KEY, nodeset_of

        server, hello = self.server, self._hello
        await server.init()
        server.set_endpoint(hello["url"])
        server.set_server_name("Flawline")
        server.manufacturer_name, server.product_uri = "Flawline", "urn:flawline"
        await server.set_application_uri(hello["uri"])
        if self._trust is not None:
            await server.load_certificate(self._folder / CERTIFICATE)
            await server.load_private_key(self._folder / KEY)
        await server.import_xml(str(nodeset_of(self._folder)))
        index = await server.get_namespace_index(URI)
        own = await server.register_namespace(OWN_URI)
        await register_subtypes(server, index)
        for line, deadline_ms in hello["lines"].items():
            self.lines[line] = VisionSystem(
                server, line, deadline_ms, hello["session"], hello["jobs"], self._ask, self._told
            )
            await self.lines[line].build(index, own, self._rules)

    async def run(self) -> None:
        """Serve until the host closes the socket."""
        from plugin.connectors.opcua_guard import turn_out

        async with self.server:
            self._link.send("ready")
            others = [asyncio.create_task(work) for work in (turn_out(self.server), self._watch(), self._report())]
            try:
                await self._listen()
            finally:
                for task in others:
                    task.cancel()

    async def _listen(self) -> None:
        while (message := await self._link.receive()) is not None:
            try:
                await self._take(message)
            except Exception:
                log.exception("a message of the host was not understood: %s", str(message)[:200])

    async def _take(self, message: dict[str, Any]) -> None:
        from contract.event import LineCode
        from plugin.connectors.base import LineOutput
        from plugin.connectors.opcua_model import Facts, Reply

        if message["kind"] == "beat":
            self._heard = time.monotonic()
            for line, facts in message["lines"].items():
                await self.lines[line].beat(Facts(*facts))
        elif message["kind"] == "output":
            output = LineOutput(*message["output"])
            output = output._replace(code=LineCode(output.code))
            if not await self.lines[output.line].emit(output):
                self._link.send("unheard", line=output.line, number=output.number)
        elif message["kind"] == "answer":
            reply = Reply(message["refusal"], tuple(message["parts"]))
            asked = self._link.answered(message["number"], reply)
            if asked is not None:
                await self.lines[asked[0]].recipe_answered(asked[1], reply.refusal)

    async def _ask(self, line: str, what: str, value: int | str | None, wait_s: float) -> Any:
        return await self._link.ask(line, what, value, wait_s)

    def _told(self, line: str, number: int) -> None:
        self._link.send("told", line=line, number=number)

    async def _watch(self) -> None:
        """Nothing stays inspected while the host says nothing."""
        while True:
            await asyncio.sleep(SILENT_S / 5)
            if time.monotonic() - self._heard > SILENT_S:
                for line in self.lines.values():
                    await line.silent()

    async def _report(self) -> None:
        """A sign of life for the host, and what its health page shows."""
        internal: Any = self.server.iserver
        while True:
            self._link.send(
                "status",
                clients=len(self.server.bserver.clients) if self.server.bserver else 0,
                subscriptions=len(internal.subscription_service.subscriptions),
                refused=dict(internal.counts),
                trouble=None if self._trust is None else self._trust.trouble,
            )
            await asyncio.sleep(STATUS_S)


async def serve(link: Link, listener: socket.socket) -> None:
    """From the host's first message to the end of its socket."""
    hello = await link.receive()
    if hello is None:
        return
    # The seconds of building must not take a processor from the host's own threads.
    _give_way(os.SCHED_BATCH)
    gc.disable()
    process = Process(link, listener, hello)
    await process.build()
    gc.freeze()  # a hundred thousand objects that stay: no later collection has to look at them
    gc.enable()
    _give_way(os.SCHED_OTHER)
    await process.run()


def _give_way(policy: int) -> None:
    with suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, policy, os.sched_param(0))


def main() -> None:
    """Run as a process of the host, which is gone when ``getppid`` says another than it was told."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    host_fd, listener_fd, parent = (int(word) for word in sys.argv[1:4])
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the host ends this process
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger().handlers[0].addFilter(LimitedRecords())
    with socket.socket(fileno=host_fd) as host, socket.socket(fileno=listener_fd) as listener, suppress(OSError):
        asyncio.run(serve(Link(host), listener))


if __name__ == "__main__":
    main()
