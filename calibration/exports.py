"""Reads what a host exports of inspectors' verdicts, over HTTP or from a file (from hop 12 to the engineer's desk)."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from calibration.errors import CalibrationError
from contract.keys import is_loopback
from contract.verdicts import MAX_PAGE, MAX_PAGE_BYTES, VerdictPage

PATH = "/api/export/verdicts"
TIMEOUT_S = 30.0
PAGE_S = 120.0
MAX_TOKEN_BYTES = 4096
CHUNK = 1 << 16


class AnswerError(CalibrationError):
    """The host answered with another status than 200, and ``said`` why."""

    def __init__(self, text: str, status: int, said: str) -> None:
        super().__init__(text)
        self.status = status
        self.said = said


class Source(NamedTuple):
    """Where an export is: ``https://HOST:PORT``, ``http://`` on this machine alone, or ``file:PATH``.

    ``token_file``: a file of mode 0600 with the host's token; ``ca``: PEM of who signed the host's certificate, None:
    the authorities that this machine trusts.
    """

    url: str
    token_file: Path | None = None
    ca: Path | None = None


def read_pages(source: Source) -> Iterator[VerdictPage]:
    """Every page of an export, in order. Raises CalibrationError."""
    scheme = urlsplit(source.url).scheme
    if scheme == "file":
        if source.token_file is not None or source.ca is not None:
            raise CalibrationError(f"{source.url}: a file needs neither --token-file nor --ca: leave them out")
        return _file_pages(Path(unquote(source.url.partition(":")[2].removeprefix("//"))))
    if scheme in ("http", "https"):
        return _host_pages(source)
    raise CalibrationError(
        f"--from-verdicts {source.url!r}: expected https://HOST:PORT, http://127.0.0.1:PORT on the host itself, or "
        "file:PATH of what `flawline host export` wrote"
    )


def _file_pages(path: Path) -> Iterator[VerdictPage]:
    try:
        with path.open("rb") as file:
            number, more = 0, True
            while line := file.readline(MAX_PAGE_BYTES + 1):
                number += 1
                if not more:
                    raise CalibrationError(f"{path}, line {number}: goes on behind its last page; export it again")
                page = _page(line, f"{path}, line {number}")
                more = page.next is not None
                yield page
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror or error})") from error
    if more:
        raise CalibrationError(f"{path}: ends before its last page: it is not whole; export or copy it again")


def _page(data: bytes, where: str) -> VerdictPage:
    if len(data) > MAX_PAGE_BYTES:
        raise CalibrationError(f"{where}: over {MAX_PAGE_BYTES} bytes: not a page of verdicts")
    try:
        return VerdictPage.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise CalibrationError(f"{where}: not a page of verdicts, at {at or 'its start'}: {first['msg']}") from error


def _host_pages(source: Source) -> Iterator[VerdictPage]:
    connection, base = connect(source)
    headers = {"accept": "application/json"} | authorization(source.token_file)
    with closing(connection):
        after, more = 0, True
        while more:
            data = get(connection, f"{base}{PATH}?after={after}&limit={MAX_PAGE}", headers, source.url, MAX_PAGE_BYTES)
            page = _page(data, source.url)
            if page.next is not None and page.next <= after:
                raise CalibrationError(f"{source.url}: page behind {after} leads back to {page.next}")
            more, after = page.next is not None, page.next or 0
            yield page


def connect(source: Source) -> tuple[http.client.HTTPConnection, str]:
    """A connection, not open yet, and the path that stands before the API's. Raises CalibrationError."""
    try:
        parts = urlsplit(source.url)
        name, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise CalibrationError(f"{source.url!r}: {error}") from error
    if not name or parts.username is not None or parts.query or parts.fragment:
        raise CalibrationError(f"{parts.scheme}://HOST:PORT alone is expected; who asks is said by --token-file")
    base = parts.path.rstrip("/")
    if parts.scheme == "https":
        return http.client.HTTPSConnection(name, port, timeout=TIMEOUT_S, context=_trust(source.ca)), base
    if not is_loopback(name):
        raise CalibrationError(
            f"{source.url}: over plain http token and verdicts would travel in clear; use https, or carry a file: "
            "`flawline host export` there, --from-verdicts file:FILE here"
        )
    return http.client.HTTPConnection(name, port, timeout=TIMEOUT_S), base


def _trust(ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise CalibrationError(f"--ca {ca}: not certificates in PEM that can be read ({error})") from error
    if ca is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the host's own certificate does as well as its signer's
    return context


def authorization(file: Path | None) -> dict[str, str]:
    """The header that carries a token. Raises CalibrationError where others may read the file, or it holds none."""
    if file is None:
        return {}
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise CalibrationError(f"{file}: others may read it (mode {mode:o}, expected 600); chmod 600 {file}")
            token = opened.read(MAX_TOKEN_BYTES).decode("ascii").strip()
    except OSError as error:
        raise CalibrationError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{file}: expected a token, as `flawline host user token` writes it") from error
    if not token or not token.isprintable() or " " in token:
        raise CalibrationError(f"{file}: expected one token, as `flawline host user token` writes it")
    return {"authorization": f"Bearer {token}"}


def get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str], where: str, most: int) -> bytes:
    """What the host answers, or more than ``most`` bytes of it. Raises CalibrationError, AnswerError."""
    deadline = time.monotonic() + PAGE_S
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        data = bytearray()
        while len(data) <= most and (chunk := answer.read1(CHUNK)):
            data += chunk
            if time.monotonic() > deadline:
                raise TimeoutError
    except ssl.SSLCertVerificationError as error:
        raise CalibrationError(
            f"{where}: its certificate is not trusted ({error.verify_message}); give --ca FILE, that certificate or "
            "its signer's, and call the host by a name that stands in it"
        ) from error
    except TimeoutError as error:
        raise CalibrationError(f"{where}: did not answer in time ({TIMEOUT_S:g} s, a page {PAGE_S:g} s)") from error
    except (OSError, http.client.HTTPException) as error:
        raise CalibrationError(f"{where}: {error or type(error).__name__}; does a host run there?") from error
    if answer.status != http.HTTPStatus.OK:
        said = _said(bytes(data))
        raise AnswerError(_refusal(answer.status, said, where, path), answer.status, said)
    return bytes(data)


def _said(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])[:300]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "it gave no reason"


def _refusal(status: int, said: str, where: str, path: str) -> str:
    if status in (401, 403):
        return (
            f"{where}: refused ({status}: {said}). Give --token-file FILE, made on the host for an account with the "
            "role engineer: flawline host user token CONFIG NAME --token-file FILE"
        )
    if status == http.HTTPStatus.NOT_FOUND:
        return f"{where}: has no {path.partition('?')[0]}; is this a Flawline host, of this version?"
    return f"{where}: answered {status}: {said}"
