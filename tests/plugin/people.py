"""A host with accounts for the tests of sign-in: cheap hashes, a clock to turn, browsers from several addresses."""

from __future__ import annotations

import re
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import trustme
from argon2 import PasswordHasher

from contract.event import Verdict
from plugin.accounts import DATABASE, Accounts, Actor
from plugin.review.signin import SignIn
from plugin.service import Service
from plugin.settings import EventSettings, HostSettings, HttpSettings, LineSettings, ReviewSettings
from plugin.throttle import Throttle
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer

PASSWORD = "seven washers fall"
PEOPLE = {"ada": "administrator", "eve": "engineer", "ivan": "inspector", "olga": "inspector"}
NO_TLS = ssl.create_default_context()  # made once: each takes longer than what most tests ask of it
TEST = Actor("test", "here")


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def cheap() -> PasswordHasher:
    return PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


class Stuck(PasswordHasher):
    """Compares nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=64, parallelism=1)
        self.go, self.busy, self.most, self._now = threading.Event(), threading.Event(), 0, 0

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]
        self._now += 1
        self.most = max(self.most, self._now)
        self.busy.set()
        assert self.go.wait(20)
        self._now -= 1
        return super().verify(hash, password)  # type: ignore[return-value]


def accounts_in(folder: Path, clock: Clock | None = None, hasher: PasswordHasher | None = None) -> Accounts:
    accounts = Accounts(folder / DATABASE, hasher or cheap(), clock or time.time)
    accounts._connection.execute("PRAGMA synchronous=OFF")  # these tests cut no power, and each wait for a disk adds up
    for name, role in PEOPLE.items():
        if accounts.epoch(name) < 0:
            accounts.add(name, PASSWORD, role, TEST)  # type: ignore[arg-type]
    return accounts


class Site:
    """A real host in this process, its sign-in on a clock of its own."""

    def __init__(
        self, folder: Path, hasher: PasswordHasher | None = None, review: ReviewSettings | None = None, **http: Any
    ) -> None:
        self.clock = Clock()
        self._browsers: list[Browser] = []
        self.folder = folder
        settings = HostSettings(
            state_dir=folder / "state",
            events=EventSettings(bind="tcp://127.0.0.1:*"),
            http=HttpSettings(**{"port": 0, "sign_in": True, **http}),
            review=review or ReviewSettings(),
            lines=[LineSettings(id="line-1", deadline_ms=60_000)],
        )
        self.accounts = accounts_in(folder / "state", self.clock, hasher)
        self.sign_in = SignIn(self.accounts, settings.http, Throttle(self.clock))
        self.service = Service(settings, folder, self.sign_in if settings.http.needs_sign_in else None)
        self.service.start()

    @property
    def app(self) -> Any:
        return self.service.app

    def browser(self, address: str = "127.0.0.1", url: str = "", **options: Any) -> Browser:
        self._browsers.append(Browser(url or self.service.url, address, **options))
        return self._browsers[-1]

    def signed_in(self, name: str, address: str = "127.0.0.1") -> Browser:
        browser = self.browser(address)
        answer = browser.sign_in(name)
        assert answer.status_code == 303, answer.text
        return browser

    def counted(self, kind: str) -> int:
        return self.sign_in.counts()[kind]

    def stop(self) -> None:
        for browser in self._browsers:
            browser.close()
        self.service.stop()


class Browser(httpx.Client):
    """Keeps cookies and finds the token of its session's forms; follows nothing by itself."""

    def __init__(self, url: str, address: str = "127.0.0.1", **options: Any) -> None:
        transport = httpx.HTTPTransport(local_address=address, verify=options.pop("verify", NO_TLS))
        super().__init__(base_url=url, transport=transport, follow_redirects=False, timeout=20, **options)

    def sign_in(self, name: str, password: str = PASSWORD, **more: str) -> httpx.Response:
        return self.post("/sign-in", data={"name": name, "password": password, **more})

    def token(self) -> str:
        found = re.search(r'name="csrf" value="([0-9a-f]{64})"', self.get("/queue").text)
        assert found is not None
        return found[1]

    def submit(self, path: str, **fields: str) -> httpx.Response:
        """Post a form as the session's own pages do."""
        return self.post(path, data={"csrf": self.token(), **fields})


def add_part(site: Site) -> None:
    dealer = Dealer(site.service.endpoint)
    for message in s.flagged(1, "worst", Verdict.REJECT, 4.0, seed=1):
        dealer.send(message)
    dealer.wait_acked(1, 2, 3)
    dealer.close()


def certificate(folder: Path, *names: str) -> tuple[Path, Path, ssl.SSLContext]:
    """(certificate, key of mode 0600, a browser's trust in it)."""
    authority = trustme.CA()
    pair = authority.issue_cert(*names)
    files = folder / "host.pem", folder / "host.key"
    files[0].write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    files[1].touch(mode=0o600)
    files[1].write_bytes(pair.private_key_pem.bytes())
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return *files, trust
