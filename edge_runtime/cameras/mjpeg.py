"""Motion JPEG over HTTP: an endless multipart answer, one JPEG a part (hop 1).

Read by ourselves and not by FFmpeg, which takes memory by what a header declares, before anybody has checked it, and
fills in what a torn picture lacks.
"""

from __future__ import annotations

import http.client
import threading
import time
from http.client import HTTPMessage
from typing import IO, Any, NamedTuple, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import (
    HTTPBasicAuthHandler,
    HTTPDefaultErrorHandler,
    HTTPDigestAuthHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPPasswordMgrWithDefaultRealm,
    HTTPSHandler,
    OpenerDirector,
    Request,
)

from contract.camera import Value
from contract.errors import ImageError
from contract.images import PixelFormat, declared_size, decode_image
from edge_runtime.cameras.base import NAP_S, BadFrame, Camera, CameraFrame, Source, redacted, with_credentials
from edge_runtime.errors import CameraError

MAX_LINE = 1024  # longest line of a part's header
MAX_LINES = 64  # most lines between two parts
CHUNK = 1 << 16


class Stream(Protocol):
    """What is read from: an HTTP answer, as it comes."""

    def read1(self, n: int = -1, /) -> bytes: ...


class PartError(Exception):
    """What came is no multipart stream of pictures; the connection is of no use any more."""


class Part(NamedTuple):
    """One part; ``fault`` says why its bytes cannot be a whole picture."""

    data: bytes
    fault: str | None
    t_first_ns: int


class Parts:
    """The parts of a multipart answer, none of which takes more than ``most`` bytes of memory."""

    def __init__(self, stream: Stream, boundary: bytes, most: int) -> None:
        """``boundary`` without leading dashes: cameras disagree about whether they belong to it."""
        self._stream = stream
        self._boundary = boundary
        self._most = most
        self._held = bytearray()

    def next(self) -> Part | None:
        """The next part, None at the end of the answer. Raises PartError, and OSError of the connection."""
        headers = self._headers()
        if headers is None:
            return None
        t_first_ns = time.monotonic_ns()
        text = headers.get(b"content-length")
        if text is None:
            return self._up_to_boundary(t_first_ns)
        if not text.isdigit() or len(text) > 30:
            raise PartError(f"a part of {text[:30].decode('ascii', 'replace')!r} bytes; expected a number")
        length = int(text)
        if length > self._most:
            raise PartError(f"a part that declares {length} bytes, at most {self._most} are taken: raise max_frame_mb")
        while len(self._held) < length:
            if not self._more():
                return Part(b"", f"the connection ended after {len(self._held)} of {length} bytes", t_first_ns)
        data = bytes(self._held[:length])
        del self._held[:length]
        return Part(data, None, t_first_ns)

    def _headers(self) -> dict[bytes, bytes] | None:
        """Go to the next boundary and read the header behind it."""
        skipped = 0
        while True:
            line = self._line()
            if line is None:
                return None
            if line.strip().lstrip(b"-") == self._boundary:
                break
            skipped += len(line)
            if skipped > self._most:
                raise PartError(f"no boundary {self._boundary[:40]!r} within {self._most} bytes")
        found: dict[bytes, bytes] = {}
        for _ in range(MAX_LINES):
            line = self._line()
            if line is None:
                return None
            if not line.strip():
                return found
            name, _, value = line.partition(b":")
            found[name.strip().lower()] = value.strip()
        raise PartError(f"a part with more than {MAX_LINES} lines of header")

    def _line(self) -> bytes | None:
        """Up to the next newline, or MAX_LINE bytes where there is none; None at the end."""
        while True:
            at = self._held.find(b"\n", 0, MAX_LINE)
            if at >= 0 or len(self._held) >= MAX_LINE:
                end = at + 1 if at >= 0 else MAX_LINE
                line = bytes(self._held[:end])
                del self._held[:end]
                return line
            if not self._more():
                return None

    def _up_to_boundary(self, t_first_ns: int) -> Part:
        """A part without a length ends before the next boundary, which stays."""
        mark, looked = b"--" + self._boundary, 0
        while (at := self._held.find(mark, looked)) < 0:
            looked = max(0, len(self._held) - len(mark))
            if len(self._held) > self._most:
                raise PartError(f"a part of more than {self._most} bytes without an end: raise max_frame_mb")
            if not self._more():
                return Part(b"", f"the connection ended within a picture, after {len(self._held)} bytes", t_first_ns)
        data = bytes(self._held[:at]).rstrip(b"\r\n")
        del self._held[:at]
        return Part(data, None, t_first_ns)

    def _more(self) -> bool:
        data = self._stream.read1(CHUNK)
        self._held += data
        return bool(data)


class MjpegCamera(Camera):
    """``http://user:password@host/path`` or ``https://``, with the camera's own options.

    User and password in the URL, or in the file that FLAWLINE_HTTP_<ID> names; basic and digest sign-in. A certificate
    is always checked. A thread of its own reads what comes, so that the picture given is the newest.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._answer: http.client.HTTPResponse | None = None
        self._parts: Parts | None = None
        self._size: tuple[int, int] | None = None  # width and height that the first picture declares
        self._ready = threading.Condition()
        self._newest: tuple[Part, int] | None = None
        self._failed: str | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        if not urlsplit(source.url).hostname:
            raise self.error(f"{redacted(source.url)}: expected http://host/path")

    def open(self) -> None:
        self._answer = self._ask()
        kind = self._answer.headers.get_content_type()
        boundary = self._answer.headers.get_param("boundary") or ""
        if kind != "multipart/x-mixed-replace" or not isinstance(boundary, str) or not boundary.strip("-"):
            raise self._told(
                f"answers with {kind}, expected multipart/x-mixed-replace with a boundary: it is no Motion JPEG stream"
            )
        self._parts = Parts(self._answer, boundary.lstrip("-").encode("latin-1"), self.source.max_frame_bytes)
        first = self._take()
        self._size = declared_size(first.data)
        self.hold_to_controls()
        self._newest = (first, 0)
        self._thread = threading.Thread(target=self._drain, name="drain", daemon=True)
        self._thread.start()

    def _ask(self) -> http.client.HTTPResponse:
        """The camera's answer, its body not read yet."""
        parts = urlsplit(with_credentials(self.source, "FLAWLINE_HTTP"))
        address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        opener = OpenerDirector()  # no proxy, no redirection to elsewhere, no file://
        for handler in (HTTPHandler, HTTPSHandler, HTTPErrorProcessor, HTTPDefaultErrorHandler):
            opener.add_handler(handler())
        if parts.username is not None:
            passwords = HTTPPasswordMgrWithDefaultRealm()
            passwords.add_password(None, address, unquote(parts.username), unquote(parts.password or ""))
            opener.add_handler(_Digest(passwords))
            opener.add_handler(_Basic(passwords))
        try:
            answer = opener.open(Request(address), timeout=self.source.stall_s)  # noqa: S310 - http and https alone
        except HTTPError as error:
            error.close()
            hint = "; are user and password accepted?" if error.code in (401, 403) else "; is the path right?"
            raise self._told(f"answers {error.code}{hint}") from None
        except (http.client.HTTPException, ValueError) as error:  # their words may hold a password, or the options
            raise self._told(
                f"its address cannot be used ({type(error).__name__}); write signs such as / ? # @ and blanks in user, "
                "password and options as %2F, %3F, %23, %40 and %20"
            ) from None
        except (URLError, OSError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise self._told(
                f"no answer within {self.source.stall_s:g} s ({reason}); is the camera on and the address right?"
            ) from None
        if not isinstance(answer, http.client.HTTPResponse):
            raise self._told(f"answers with a {type(answer).__name__}, which is not HTTP")
        return answer

    def _take(self) -> Part:
        """The next part; raises CameraError."""
        if self._parts is None:
            raise self.error("read before it was opened")
        try:
            part = self._parts.next()
        except (OSError, http.client.HTTPException) as error:
            raise self._told(f"stopped giving pictures ({error or type(error).__name__})") from None
        except PartError as error:
            raise self._told(f"sent {error}") from None
        if part is None:
            raise self._told("stopped giving pictures: it ended the connection")
        return part

    def _drain(self) -> None:
        number = 0
        while not self._closing:
            failed, part = None, None
            try:
                part = self._take()
            except CameraError as error:
                failed = str(error)
            except Exception as error:  # noqa: BLE001 - closed under the reader, or worse: the process is replaced
                failed = f"camera {self.source.camera_id}: {type(error).__name__}"
            with self._ready:
                number += 1
                self._failed = failed
                if part is not None:
                    self._newest = (part, number)
                self._ready.notify_all()
            if failed is not None:
                return

    def reported(self) -> dict[str, Value]:
        return {} if self._size is None else {"width": self._size[0], "height": self._size[1]}

    def read(self) -> CameraFrame | BadFrame | None:
        with self._ready:
            if self._newest is None and self._failed is None:
                self._ready.wait(NAP_S)
            newest, self._newest = self._newest, None
            if newest is None and self._failed is not None:
                raise CameraError(self._failed)
        if newest is None:
            return None
        part, number = newest
        fault = part.fault or (None if part.data[:2] == b"\xff\xd8" else f"its {len(part.data)} bytes are no JPEG")
        # What a picture says of itself is checked before memory is taken for it.
        fault = fault or self.source.too_large(declared_size(part.data), 3)
        if fault is None:
            try:
                pixels = decode_image(part.data, 3, "its picture")
                return CameraFrame(pixels, PixelFormat.RGB8, number, part.t_first_ns)
            except ImageError as error:
                fault = str(error)
        return BadFrame(f"a picture that cannot be used: {fault}", number, part.t_first_ns)

    def close(self) -> None:
        self._closing = True
        if self._thread is not None:
            self._thread.join(self.source.stall_s + 1)  # its socket gives up after stall_s
            if self._thread.is_alive():
                return
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _told(self, text: str) -> CameraError:
        return self.error(f"{redacted(self.source.url)}: {text}")


class _Digest(HTTPDigestAuthHandler):
    """Closes the answer that asked for a password, which the library leaves open."""

    def http_error_401(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> Any:
        fp.close()
        return super().http_error_401(req, fp, code, msg, headers)


class _Basic(HTTPBasicAuthHandler):
    """As _Digest."""

    def http_error_401(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> Any:
        fp.close()
        return super().http_error_401(req, fp, code, msg, headers)
