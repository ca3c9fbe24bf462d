"""Peers that connect to a real host and say nothing, little or slowly: whoever works beside them gets pages."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.event import Verdict
from plugin.review.door import LEAVING, Conversation
from plugin.settings import HttpSettings
from tests.plugin.people import NO_TLS, Site, Stuck, certificate
from tests.plugin.synthetic import Dealer, HostProcess, flagged, until

FLOOD = 320
PROMPT_S = 1.0
SERVING = 60
"""Files of the threads that read store and ledger for a page."""

PATIENT = "patience_s = 60"
HEAD = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n"
REQUEST = HEAD + b"\r\n"
HELLO = b"\x16\x03\x01\x20\x00\x01\x00\x1f\xfc\x03\x03" + bytes(8000)
"""A TLS greeting that goes on."""

POST = b"POST /api/parts/1/verdict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 60000\r\n\r\n"
PICTURES = b"GET /api/attachments/2 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 60


class Crowd:
    """Connections that mean no good."""

    def __init__(self, url: str, trust: ssl.SSLContext | None) -> None:
        parts = httpx.URL(url)
        self._address, self._trust = (parts.host, parts.port or 0), trust
        self.sockets: list[socket.socket] = []

    def join(self, count: int, first: bytes = b"", source: str = "127.0.0.1") -> None:
        """``count`` more, each saying ``first``; where that is empty not even TLS is begun."""
        for _ in range(count):
            peer = socket.socket()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.bind((source, 0))
            peer.settimeout(10)
            peer.connect(self._address)
            with suppress(OSError):  # a host may close at once
                if first and self._trust is not None:
                    peer = self._trust.wrap_socket(peer, server_hostname="127.0.0.1")
                if first:
                    peer.send(first)
                if first == REQUEST:
                    assert peer.recv(4096).startswith(b"HTTP/1.1 200")
                peer.setblocking(False)
            self.sockets.append(peer)

    def say(self, position: int) -> None:
        """One more byte from everybody who is still there, never the last of what is expected."""
        for each in self.sockets:
            bare = self._trust is not None and not isinstance(each, ssl.SSLSocket)
            with suppress(OSError):
                each.send(HELLO[position : position + 1] if bare else b"x")

    def left(self) -> int:
        """How many the host has not ended."""
        poll = select.poll()
        for each in self.sockets:
            poll.register(each, select.POLLRDHUP)
        return len(self.sockets) - len(poll.poll(0))

    def leave(self, connections: Callable[[], int]) -> None:
        """Go, and wait until the host has seen it."""
        self.close()
        self.sockets.clear()
        until(lambda: connections() <= 1, what="a host without company")

    def close(self) -> None:
        for each in self.sockets:
            each.close()


class Victim:
    """A real host over http or https, and its visitors."""

    def __init__(self, scheme: str, folder: Path, http: str, **options: Any) -> None:
        self.trust: ssl.SSLContext | None = None
        if scheme == "https":
            *_, self.trust = certificate(folder, "127.0.0.1")
            http += '\ncertificate = "host.pem"\nkey = "host.key"'
        self.host = HostProcess(folder, deadline_ms=60_000, http=http, **options)
        self.host.start()
        assert self.host.url.startswith(f"{scheme}:")
        self.crowd = Crowd(self.host.url, self.trust)

    def browser(self, address: str = "127.0.0.1") -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=address, verify=self.trust or NO_TLS)
        return httpx.Client(base_url=self.host.url, transport=transport, timeout=10)

    def serves(self, *addresses: str) -> None:
        """A new browser at each address gets its pages within a second (on a busy machine one of four does)."""
        for address in addresses:
            times = []
            while not times or (min(times) >= PROMPT_S and len(times) < 4):
                with self.browser(address) as browser:
                    start = time.monotonic()
                    for path in ("/queue", "/static/review.css"):
                        assert browser.get(path).status_code == 200
                    times.append(time.monotonic() - start)
            assert min(times) < PROMPT_S, (address, times)

    def pages(self) -> dict[str, int]:
        with self.browser() as browser:
            found: dict[str, int] = browser.get("/healthz").json()["pages"]
        return found

    def files(self) -> int:
        assert self.host.process is not None
        return len(os.listdir(f"/proc/{self.host.process.pid}/fd"))

    def pictures_open(self) -> list[str]:
        assert self.host.process is not None
        found = []
        for each in Path(f"/proc/{self.host.process.pid}/fd").iterdir():
            with suppress(OSError):
                found.append(str(each.readlink()))
        return [each for each in found if "/blobs/" in each]

    def log(self) -> str:
        return self.host.log.read_text()


def add_part(host: HostProcess, seq: int = 1) -> None:
    dealer = Dealer(host.endpoint)
    for message in flagged(seq, f"part-{seq}", Verdict.REJECT, 4.0, seed=seq):
        dealer.send(message)
    dealer.wait_acked(seq, seq + 1, seq + 2)
    dealer.close()


def end(victim: Victim) -> None:
    code = victim.host.end()
    victim.crowd.close()
    assert code == 0
    assert "Traceback" not in victim.log()
    assert "Too many open files" not in victim.log()


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Callable[..., Victim]]:
    made: list[Victim] = []

    def make(scheme: str = "http", http: str = PATIENT, **options: Any) -> Victim:
        made.append(Victim(scheme, tmp_path, http, **options))
        return made[-1]

    yield make
    for each in made:
        end(each)


@pytest.fixture(scope="module", params=["http", "https"])
def patient(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A host that waits so long that only its limits help it."""
    victim = Victim(request.param, tmp_path_factory.mktemp(request.param), PATIENT)
    victim.serves("127.0.0.1")  # the first page takes longer
    yield victim
    end(victim)


@pytest.mark.parametrize("first", [b"", HEAD, POST, REQUEST], ids=["silent", "half a head", "half a body", "idle"])
def test_a_crowd_keeps_nobody_out(patient: Victim, first: bytes) -> None:
    # 320 handshakes and requests take a while; 100 are more than one address may have as well.
    flood = 100 if first == REQUEST or (first and patient.trust is not None) else FLOOD
    before, files = patient.pages(), patient.files()
    patient.crowd.join(flood, first)
    patient.serves("127.0.0.1", "127.0.0.2")
    assert patient.pages()["made_room"] >= before["made_room"] + flood - 64
    assert patient.crowd.left() <= 64
    assert patient.files() <= files + 64 + LEAVING + SERVING
    assert "the one that was waited for longest was closed" in patient.log()
    assert patient.log().count("the one that was waited for longest") < 20, "said, and not once for each"
    patient.crowd.leave(lambda: patient.pages()["connections"])


def test_a_crowd_from_everywhere_keeps_nobody_out(patient: Victim) -> None:
    files = patient.files()
    for number in range(3, 9):
        patient.crowd.join(64, source=f"127.0.0.{number}")
        patient.serves("127.0.0.2")
    patient.serves("127.0.0.1", "127.0.0.3")
    pages = patient.pages()
    assert pages["connections"] <= pages["most"] + LEAVING == 256 + LEAVING
    assert patient.crowd.left() <= 256
    assert patient.files() <= files + 256 + LEAVING + SERVING
    patient.crowd.leave(lambda: patient.pages()["connections"])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_keeps_the_host_waiting_is_closed(victim: Callable[..., Victim], scheme: str) -> None:
    target = victim(scheme, "patience_s = 0.5", files="-S -n 400")
    address = httpx.URL(target.host.url)
    kind = http.client.HTTPConnection if scheme == "http" else http.client.HTTPSConnection
    honest = kind(address.host, address.port, timeout=10, **({"context": target.trust} if target.trust else {}))
    honest.request("GET", "/healthz")
    honest.getresponse().read()
    port = honest.sock.getsockname()[1]
    for first in (b"", HEAD, POST):
        target.crowd.join(20, first)
    position = itertools.count()

    def all_gone() -> bool:
        target.crowd.say(next(position))  # a byte now and then gains no time
        return target.crowd.left() == 0

    until(all_gone, what="the end of every slow connection")
    honest.request("GET", "/healthz")
    pages = json.loads(honest.getresponse().read())["pages"]
    assert honest.sock.getsockname()[1] == port, "between two requests there is more time"
    assert (pages["late"], pages["connections"], pages["made_room"]) == (60, 1, 0)
    for what in ("no complete request", "no complete request body"):
        assert f"a connection from 127.0.0.1 was closed: {what} in 0.5 s" in target.log()
    honest.close()
    answers_that_nobody_reads_hold_nothing(target)
    assert target.host.process is not None
    limits = Path(f"/proc/{target.host.process.pid}/limits").read_text()
    soft, hard = next(line for line in limits.splitlines() if "open files" in line).split()[3:5]
    assert soft == str(min(int(hard), 65536)), "a host takes the files that it may have"
    assert target.pages()["most"] == 256


def answers_that_nobody_reads_hold_nothing(target: Victim) -> None:
    add_part(target.host)
    target.crowd.join(4, PICTURES)
    target.serves("127.0.0.1", "127.0.0.2")
    until(lambda: target.pages()["connections"] <= 1, what="the end of who does not read")
    assert target.pages()["late"] == 60 + 4
    assert "an answer that is not read in 1.5 s" in target.log()
    assert not target.pictures_open()


def test_store_ledger_and_edges_keep_their_files(victim: Callable[..., Victim]) -> None:
    target = victim(files="-n 548")
    assert "may open 548 files: the pages get 50 connections, not 256" in target.log()
    add_part(target.host)
    target.crowd.join(FLOOD)
    for number in range(2, 6):
        target.crowd.join(12, PICTURES, f"127.0.0.{number}")
    add_part(target.host, 4)
    target.serves("127.0.0.1", "127.0.0.99")
    with target.browser() as browser:
        assert len(browser.get("/api/parts/2").json()["attachments"]) == 3
    assert [each["part_id"] for each in target.host.published()] == ["part-1", "part-4"]
    assert target.files() < 548 - 128


def test_a_host_with_too_few_files_says_so(tmp_path: Path) -> None:
    host = HostProcess(tmp_path, files="-n 400")
    with pytest.raises(AssertionError, match="may open 400 files; expected 480; raise it: LimitNOFILE"):
        host.start()
    assert host.process is not None
    assert host.process.wait(30) == 2
    host.end()


def test_where_every_connection_is_in_use_a_newcomer_is_refused(tmp_path: Path) -> None:
    hasher = Stuck()
    hasher.go.set()
    site = Site(tmp_path, hasher=hasher, connections=16, connections_per_address=8)
    hasher.go.clear()
    try:
        browsers = [site.browser("127.0.0.9") for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(browser.sign_in, f"name-{n}", "x" * 12) for n, browser in enumerate(browsers)]
            status = site.service.health
            until(lambda: status()["pages"]["connections"] == 8 and len(site.service._http.server_state.tasks) == 8)
            with pytest.raises(httpx.TransportError):
                site.browser("127.0.0.9").get("/sign-in")
            assert site.browser("127.0.0.8").get("/sign-in").status_code == 200
            assert status()["pages"]["refused"] == 1
            hasher.go.set()
            assert {each.result().status_code for each in asked} == {401}, "nobody who is served is sent away"
        assert site.browser("127.0.0.9").get("/sign-in").status_code == 200
    finally:
        hasher.go.set()
        site.stop()


def test_behind_a_proxy_addresses_have_no_share(tmp_path: Path) -> None:
    site = Site(tmp_path, tls="proxy", connections=32, connections_per_address=8, patience_s=60)
    crowd = Crowd(site.service.url, None)
    try:
        crowd.join(20)
        assert site.browser().get("/sign-in").status_code == 200
        assert crowd.left() == 20
        for visitor in site.service._door._inside.values():
            assert visitor.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "else each answer's body is 40 ms late"
        crowd.join(20, source="127.0.0.7")
        assert site.browser("127.0.0.7").get("/sign-in").status_code == 200
        assert crowd.left() <= 20 + 8
    finally:
        crowd.close()
        site.stop()


def test_uvicorn_still_is_what_the_door_is_built_on() -> None:
    base = Conversation.__base__
    assert base is not None
    ours = {name for name, value in vars(Conversation).items() if callable(value)} - {"_tell", "_awaited"}
    assert {name for name in ours if not name.startswith("__") and not callable(getattr(base, name, None))} == set()
    assert ours >= {"connection_made", "data_received", "on_response_complete", "pause_writing", "resume_writing"}


def test_settings_are_bounded() -> None:
    for wrong in ({"connections": 0}, {"connections_per_address": 1}, {"patience_s": 0.0}, {"patience_s": 1e9}):
        with pytest.raises(ValueError, match=r"greater than|less than"):
            HttpSettings(**wrong)  # type: ignore[arg-type]
