"""``webhook+http://``, ``webhook+https://``: a signed POST of JSON for each part, and for how the line is (hop 10).

``webhook+https://mes.example:8443/flawline?secret=webhook.secret&ca=ca.pem``. Signed as Standard Webhooks ask for, so
that receivers find a library. What is not answered is sent again within the part's deadline, under the same id. For a
plant's software; nothing that stands at a gate.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import threading
import time
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from plugin.connectors.base import Connector, LineOutput, Plant
from plugin.connectors.credentials import read_private, trusting
from plugin.connectors.messages import LOOK_S, Heart, encode, new_session, result
from plugin.errors import ConfigError, ConnectorError
from plugin.logs import LimitedLog

OPTIONS = ("secret", "ca")
SCHEME = "webhook+"
PREFIX = "whsec_"
SECRET_BYTES = (24, 64)
AGAIN_S = 0.1
LONGEST_S = 2.0
"""Between two attempts at one part: first and longest."""

STATUS_S = 3.0
"""For one status; the next is then newer."""

LAST_WORDS_S = 1.0
MAX_ANSWER = 16 * 1024
"""An answer is read so far and no further; only its status counts."""

AGAIN = frozenset({408, 425, 429})
log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # it would say every request


class Webhook(Connector):
    """One receiver; a loop of its own posts, so that a deadline ends whatever a receiver does."""

    def __init__(self, url: str, base_dir: Path) -> None:
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                f"{parts.scheme}://{parts.hostname}: user and password have no place in a URL, which stands in logs; "
                "requests are signed with secret=FILE"
            )
        self.url = url
        self._target = _target(url)
        options = _options(url, parts.query)
        self._key = _read_key(base_dir / options["secret"])
        secure = self._target.startswith("https:")
        if "ca" in options and not secure:
            raise ConfigError(f"{url}: ca is for {SCHEME}https://, and this connection is not encrypted")
        self._tls = trusting(base_dir / options["ca"] if "ca" in options else None) if secure else None
        self._session = new_session()
        self._log = LimitedLog(log)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = threading.Event()
        self._lock = threading.Lock()
        self._posting: Future[None] | None = None
        self._interrupted = False
        self._trouble: str | None = "it has not answered yet"
        self._counts = {"delivered": 0, "attempts": 0}
        self._thread = threading.Thread(target=self._run, name=f"webhook {parts.netloc}", daemon=True)

    def start(self, plant: Plant) -> None:
        """Begin to tell how the lines are."""
        self._hearts = [Heart(plant, line, self._session) for line in plant.lines]
        self._thread.start()
        self._begun.wait()

    def publish(self, output: LineOutput) -> None:
        """Until it is answered, or past its deadline; other parts wait meanwhile, so that the order stands."""
        body = encode(result(output, self._session))
        message_id = f"{self._session}-{output.line}-{output.number}"
        with self._lock:
            if self._interrupted or self._loop is None:
                raise ConnectorError("the host stopped before it was delivered")
            work = self._deliver(message_id, body, output.due_ns)
            self._posting = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            self._posting.result()
        except CancelledError:
            raise ConnectorError("the host stopped before the receiver answered") from None
        self._counts["delivered"] += 1

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            if self._posting is not None:
                self._posting.cancel()

    def status(self) -> dict[str, object]:
        """How the last request went, and how many parts took how many attempts."""
        return {"target": self._target, "trouble": self._trouble, **self._counts}

    def close(self) -> None:
        self.interrupt()
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.is_alive():
            self._thread.join(STATUS_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("%s", self.url)
        finally:
            self._begun.set()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        verify = True if self._tls is None else self._tls
        # No proxy and no .netrc of the environment: what the file says is where verdicts go.
        async with httpx.AsyncClient(verify=verify, trust_env=False, follow_redirects=False, timeout=None) as client:  # noqa: S113 - each request has a deadline
            self._client = client
            self._loop = asyncio.get_running_loop()
            self._begun.set()
            await asyncio.gather(*(self._beat(heart) for heart in self._hearts))
        self._loop = None

    async def _deliver(self, message_id: str, body: bytes, due_ns: int) -> None:
        """Raises ConnectorError where it was refused, or not answered by the deadline."""
        trouble, pause_s = "there was no time", AGAIN_S
        try:
            async with asyncio.timeout((due_ns - time.monotonic_ns()) / 1e9):
                while True:
                    self._counts["attempts"] += 1
                    code, trouble = await self._post(message_id, body)
                    if code is not None and 200 <= code < 300:
                        return
                    if code is not None and code < 500 and code not in AGAIN:
                        raise ConnectorError(f"the receiver refuses it: {trouble}")
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, LONGEST_S)
                    trouble = f"{trouble}, then no answer"
        except TimeoutError:
            self._note(trouble)
            raise ConnectorError(f"the receiver had not taken it by its deadline: {trouble}") from None

    async def _post(self, message_id: str, body: bytes) -> tuple[int | None, str]:
        """One attempt: the status of its answer, None where there was none, and in words."""
        opened: list[Any] = []

        async def trace(event: str, info: dict[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                opened.append(info["return_value"])

        headers = sign(self._key, message_id, int(time.time()), body)
        request = self._client.stream("POST", self._target, content=body, headers=headers, extensions={"trace": trace})
        found: tuple[int | None, str] = None, "no answer"
        try:
            async with request as answer:
                await _drain(answer)
            found = answer.status_code, f"it answers {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            found = None, f"{type(error).__name__}: {error}"[:200]
        finally:
            if found[0] is None:  # the library leaves open what is cancelled during a TLS handshake
                for stream in opened:
                    await stream.aclose()
        self._note(None if found[0] is not None and 200 <= found[0] < 300 else found[1])
        return found

    def _note(self, trouble: str | None) -> None:
        self._trouble = trouble
        if trouble is not None:
            self._log.warning("post", f"{self.url}: {trouble}")

    async def _beat(self, heart: Heart) -> None:
        """Tell how one line is until the host stops, then that it did."""
        number = 0
        while not self._stop.is_set():
            if (message := heart.look()) is not None:
                number += 1
                await self._tell(message, number)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), LOOK_S)
        await self._tell(heart.last(), number + 1)

    async def _tell(self, message: dict[str, object], number: int) -> None:
        left_s = LAST_WORDS_S if self._stop.is_set() else STATUS_S
        with suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._post(f"{self._session}-{message['line']}-status-{number}", encode(message))


async def _drain(answer: httpx.Response) -> None:
    """Read what there is, so that the connection serves again; of a long answer no more, which ends it."""
    size = 0
    async for piece in answer.aiter_raw():
        size += len(piece)
        if size > MAX_ANSWER:
            return


def sign(key: bytes, message_id: str, t_s: int, body: bytes) -> dict[str, str]:
    """The headers of one request: HMAC-SHA256 over id, time and body (standardwebhooks.com)."""
    digest = hmac.new(key, f"{message_id}.{t_s}.".encode() + body, hashlib.sha256).digest()
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(t_s),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _target(url: str) -> str:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url}: the port must be a number from 1 to 65535") from error
    if not parts.hostname:
        raise ConfigError(f"{url}: expected the receiver's address, for example {SCHEME}https://mes.example/flawline")
    if parts.fragment:
        raise ConfigError(f"{url}: what stands behind # is never sent; leave it out")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    return f"{parts.scheme.removeprefix(SCHEME)}://{netloc}{parts.path or '/'}"


def _options(url: str, query: str) -> dict[str, str]:
    given = parse_qs(query, keep_blank_values=True)
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise ConfigError(f"{url}: unknown option {unknown[0]!r}; there are: {', '.join(OPTIONS)}")
    if "secret" not in given:
        raise ConfigError(f"{url}: secret=FILE is missing: without a signature anybody could post verdicts")
    return {name: values[0] for name, values in given.items()}


def _read_key(path: Path) -> bytes:
    lines = read_private(path, "the secret")
    text = lines[0].strip() if len(lines) == 1 else ""
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not text.startswith(PREFIX) or not SECRET_BYTES[0] <= len(key) <= SECRET_BYTES[1]:
        raise ConfigError(
            f"{path}: expected one line, {PREFIX} and {SECRET_BYTES[0]} to {SECRET_BYTES[1]} random bytes in base64; "
            f'make one: (umask 077; echo "{PREFIX}$(openssl rand -base64 32)" > {path.name})'
        )
    return key
