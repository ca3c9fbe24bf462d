"""Who a request comes from and whether that may be done: sign-in, sessions, roles, tokens (before hop 11)."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fastapi import Depends, HTTPException, Request
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute, Mount

from plugin.accounts import ROLES, SCOPES, Accounts, Actor, Lifetimes, Proven, Role, Scope, plain_name
from plugin.logs import LimitedLog
from plugin.settings import HttpSettings
from plugin.throttle import Key, Throttle

ACCOUNT_FREE, ADDRESS_FREE = 5, 20
WAITING_HASHES = 8
REFUSALS_NOTED = 600
READING = ("GET", "HEAD", "OPTIONS")
OPEN_MOUNTS = ("/static",)
FOR_PROGRAMS = ("/api/", "/healthz", "/metrics")
"""What a token reaches; the pages, accounts among them, are a person's."""

CSRF_FIELD, CSRF_HEADER = "csrf", "x-csrf-token"
log = logging.getLogger(__name__)


class Viewer(NamedTuple):
    """The account behind a request; the token that its session's forms carry, or the scope of a program's token."""

    name: str
    role: Role
    csrf: str
    scope: Scope | None = None

    def may(self, role: Role) -> bool:
        """Whether the account's role reaches to ``role``."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Opened(NamedTuple):
    """A new session: its account and the token for the cookie."""

    account: Proven
    token: str


class Refused(NamedTuple):
    """Why nobody was signed in: status, a sentence, seconds until another attempt is looked at."""

    status: int
    text: str
    wait_s: float = 0.0


class SignIn:
    """Accounts behind everything that makes guessing slow and harmless. Any thread may ask."""

    def __init__(self, accounts: Accounts, settings: HttpSettings, throttle: Throttle | None = None) -> None:
        self.accounts = accounts
        self.secure = settings.secure
        # A browser takes the prefix as a promise: over https, this host alone, every path.
        self.cookie = "__Host-flawline" if settings.secure else "flawline"
        others, inspectors = 60.0 * settings.idle_minutes, 60.0 * settings.inspector_idle_minutes
        self._lifetimes = Lifetimes(
            {role: inspectors if role == "inspector" else others for role in ROLES}, 3600.0 * settings.session_hours
        )
        self._throttle = throttle or Throttle()
        self._room = threading.BoundedSemaphore(1 + WAITING_HASHES)
        self._hashing = threading.Lock()
        self._count_lock = threading.Lock()
        self._counts: Counter[str] = Counter(
            signed_in=0, wrong=0, delayed=0, busy=0, not_signed_in=0, beyond_role=0, beyond_scope=0, without_token=0
        )
        self._log = LimitedLog(log)

    def counts(self) -> dict[str, int]:
        """What was let in and refused since the start."""
        with self._count_lock:
            return dict(self._counts)

    def sign_in(self, name: str, password: str, address: str, old_token: str | None = None) -> Opened | Refused:
        """Check a password and open a session under a new token; an old session of the same browser ends."""
        proven = self._prove(name, password, address)
        if isinstance(proven, Refused):
            return proven
        if old_token:
            self.accounts.close_session(old_token, address)
        token = self.accounts.open_session(proven, address)
        self.count("signed_in")
        return Opened(proven, token)

    def change_password(self, name: str, old: str, new: str, address: str) -> Refused | None:
        """Set one's own password; every session of the account ends. Raises AccountError as accounts do."""
        proven = self._prove(name, old, address)
        if isinstance(proven, Refused):
            return proven
        with self.hashing() as room:
            if not room:
                return self._busy(address)
            self.accounts.set_password(name, new, Actor(name, address))
        return None

    @contextmanager
    def hashing(self) -> Iterator[bool]:
        """One hash at a time and a few that wait; False where even the queue is full, so that threads stay free."""
        if not self._room.acquire(blocking=False):
            yield False
            return
        try:
            with self._hashing:
                yield True
        finally:
            self._room.release()

    def viewer(self, request: Request, touch: bool = False) -> Viewer | None:
        """Whoever is signed in in this browser, or the account of a program's token."""
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            for_programs = request.url.path.startswith(FOR_PROGRAMS)
            holder = self.accounts.of_token(bearer.strip()) if for_programs else None
            return None if holder is None else Viewer(holder.name, holder.role, "", holder.scope)
        token = request.cookies.get(self.cookie)
        found = self.accounts.session(token, self._lifetimes, touch) if token else None
        return None if found is None or token is None else Viewer(found.name, found.role, csrf_of(token))

    def sign_out(self, request: Request) -> None:
        """End the browser's session."""
        if token := request.cookies.get(self.cookie):
            self.accounts.close_session(token, address_of(request))

    def count(self, kind: str, text: str | None = None) -> None:
        """Count an event and say it in the log, at most one line of a kind every few seconds."""
        with self._count_lock:
            self._counts[kind] += 1
        if text is not None:
            self._log.warning(kind, text)

    def _prove(self, name: str, password: str, address: str) -> Proven | Refused:
        typed, name = name[:80], plain_name(name)
        epoch = self.accounts.epoch(name)
        # Where the account signed in before, failures from elsewhere do not count: nobody can lock it out of there.
        # A new password starts anew (the epoch), so that the command line always helps.
        place = address if self.accounts.known_at(name, address) else "elsewhere"
        account = Key(f"account {typed.lower()} {epoch} {place}", ACCOUNT_FREE)
        everybody = Key(f"address {network_of(address)}", ADDRESS_FREE)
        # What is typed as a name may be a password; only names that exist are written down.
        who = name if epoch >= 0 else "an unknown name"
        if wait_s := self._throttle.admit(account, everybody):
            self.count("delayed", f"sign-in refused: too many failures, {who} from {address} must wait {wait_s:.0f} s")
            return Refused(429, f"Too many failures. Try again in {_span(wait_s)}.", wait_s)
        with self.hashing() as room:
            if not room:
                self._throttle.take_back(account, everybody)
                return self._busy(address)
            proven = self.accounts.check(name, password)
        if proven is None:
            self.count("wrong", f"sign-in refused: wrong name or password, {who} from {address}")
            self._note_refusal(who, address)
            return Refused(401, "Name or password is wrong.")
        self._throttle.take_back(everybody)
        self._throttle.forget(account)
        return proven

    def _note_refusal(self, who: str, address: str) -> None:
        # The audit must not fill the disk for whoever guesses; the rest is counted and said in the log.
        limit = Key("audit of refusals", REFUSALS_NOTED)
        if not self._throttle.admit(limit):
            self.accounts.note(Actor(who, address), "refused", who, "wrong name or password")

    def _busy(self, address: str) -> Refused:
        self.count("busy", f"sign-in refused: too many at once, the last from {address}")
        return Refused(503, "Too many people sign in at this moment. Try again in a few seconds.", 5.0)


class Needs:
    """A route's dependency: the role that it needs, None for everybody; ``background`` is no sign of life.

    ``writes``: the scope that a token needs where the route is no reading one.
    """

    def __init__(self, role: Role | None, background: bool = False, writes: Scope = "administer") -> None:
        self.role = role
        self.writes = writes
        self._background = background

    async def __call__(self, request: Request) -> None:
        sign_in: SignIn | None = request.app.state.host.sign_in
        if sign_in is None or self.role is None:
            return
        viewer = await run_in_threadpool(sign_in.viewer, request, not self._background)
        place = f"{request.method} {request.url.path[:80]!r} from {address_of(request)}"
        if viewer is None:
            if not self._background:
                # A browser that opens a page is led to the sign-in page: every morning's start, nothing to warn of.
                harmless = request.method in READING and not request.url.path.startswith("/api/")
                sign_in.count("not_signed_in", None if harmless else f"refused: nobody is signed in, {place}")
            raise HTTPException(401, "Sign in first.")
        if not viewer.may(self.role):
            sign_in.count("beyond_role", f"refused: {viewer.name} is {viewer.role}, {self.role} is needed, {place}")
            raise HTTPException(403, f"This needs the role {self.role}; {viewer.name} is {viewer.role}.")
        if request.method not in READING:
            await self._may_write(request, sign_in, viewer, place)
        request.state.viewer = viewer

    async def _may_write(self, request: Request, sign_in: SignIn, viewer: Viewer, place: str) -> None:
        """No browser sends a program's token by itself, so that only a session needs its own token besides."""
        if viewer.scope is not None:
            if SCOPES.index(viewer.scope) < SCOPES.index(self.writes):
                sign_in.count("beyond_scope", f"refused: a token of {viewer.name} to {viewer.scope}, {place}")
                raise HTTPException(403, f"This needs a token to {self.writes}; this one is to {viewer.scope}.")
        elif not await _has_token(request, viewer.csrf):
            sign_in.count("without_token", f"refused: a form of {viewer.name} without the session's token, {place}")
            raise HTTPException(403, "This did not come from a page of this session. Load the page anew and try again.")


OPEN = Depends(Needs(None))
INSPECTOR, ENGINEER, ADMINISTRATOR = (Depends(Needs(role)) for role in ROLES)
INSPECTOR_REVIEWS = Depends(Needs("inspector", writes="review"))
INSPECTOR_BACKGROUND = Depends(Needs("inspector", background=True))


def undeclared(routes: list[BaseRoute]) -> list[str]:
    """Paths of routes that do not say, exactly once, who may use them; static files are everybody's."""
    return [
        str(getattr(route, "path", route))
        for route in flat(routes)
        if not (isinstance(route, Mount) and route.path in OPEN_MOUNTS) and len(declared(route)) != 1
    ]


def flat(routes: list[BaseRoute]) -> list[BaseRoute]:
    """Routes with those of included routers, which newer versions of FastAPI keep together as one."""
    found = []
    for route in routes:
        inner = getattr(route, "original_router", None)
        found += [route] if inner is None else flat(inner.routes)
    return found


def declared(route: BaseRoute) -> list[Role | None]:
    """What a route declares."""
    return [each.role for each in needs(route)]


def needs(route: BaseRoute) -> list[Needs]:
    """A route's declarations; exactly one, where nothing was forgotten."""
    dependencies = route.dependencies if isinstance(route, APIRoute) else []
    return [each.dependency for each in dependencies if isinstance(each.dependency, Needs)]


def viewer_of(request: Request) -> Viewer | None:
    """Who is signed in, for pages that show it; None as well where sign-in is off."""
    if not hasattr(request.state, "viewer"):
        sign_in: SignIn | None = request.app.state.host.sign_in
        request.state.viewer = None if sign_in is None else sign_in.viewer(request)
    viewer: Viewer | None = request.state.viewer
    return viewer


def csrf_of(token: str) -> str:
    """The token that a session's forms carry; from it nobody learns the session's own."""
    return hmac.digest(token.encode("utf-8", "replace"), b"flawline form", "sha256").hex()


def address_of(request: Request) -> str:
    """The browser's address."""
    return request.client.host[:64] if request.client is not None else "unknown"


def network_of(address: str) -> str:
    """What failures are counted by: an IPv4 address, an IPv6 customer's 64 bits."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))


async def _has_token(request: Request, wanted: str) -> bool:
    given = request.headers.get(CSRF_HEADER)
    if given is None and request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        found = (await request.form()).get(CSRF_FIELD)
        given = found if isinstance(found, str) else None
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _span(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
