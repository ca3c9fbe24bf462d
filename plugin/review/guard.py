"""Keeps foreign web pages out: only this host's names, no cross-origin writes, strict headers (before hop 11)."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plugin.review.signin import FOR_PROGRAMS
from plugin.settings import is_loopback

MAX_BODY_BYTES = 64 << 10
READING = ("GET", "HEAD", "OPTIONS")
POLICY = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """ASGI middleware around everything.

    A page anywhere can point its own name at 127.0.0.1 (DNS rebinding) or post a form here; both show in headers that
    a page cannot forge.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bound = (scope.get("server") or ("",))[0].removeprefix("::ffff:")
        problem = refusal(scope["method"], Headers(scope=scope), self._names | {bound})
        if problem is not None:
            status, text = problem
            answer: Response = PlainTextResponse(f"{text}\n", status)
            if scope["path"].startswith(FOR_PROGRAMS):
                answer = JSONResponse({"error": text}, status)
            answer.headers.update(POLICY)
            await answer(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in POLICY.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_policy)


def refusal(method: str, headers: Headers, names: Collection[str] = ()) -> tuple[int, str] | None:
    """(status, sentence) where a request must not be answered, else None. ``names`` come beside those of loopback."""
    host = headers.get("host", "")
    name = _name(f"//{host}")
    if not name or not (is_loopback(name) or name in names):
        return 403, (
            "These pages answer to this host's own names only (127.0.0.1, localhost, the address that is bound, "
            "`http.names`)."
        )
    if method in READING:
        return None
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return 403, "A verdict must come from these pages themselves."
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return 403, "A verdict must come from these pages themselves."
    if "transfer-encoding" in headers:  # which wins over a length that is stated beside it
        return 413, "A request whose length is stated is expected, not one in chunks."
    length = headers.get("content-length", "")
    if not length.isdecimal() or int(length[:12]) > MAX_BODY_BYTES:
        return 413, f"A request of at most {MAX_BODY_BYTES} bytes with its length stated is expected."
    return None


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
