"""What poses as a host's export: endless, torn, redirected, of another kind; each is a sentence, none takes memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from calibration.errors import CalibrationError
from calibration.exports import Source, read_pages
from contract.verdicts import MAX_PAGE, MAX_PAGE_BYTES

EMPTY = {"format": "flawline.verdicts/1", "parts": [], "passed": []}
PART = {
    "row": 1,
    "edge_id": "e",
    "part_id": "p",
    "t_wall_ns": 1,
    "verdict": "PASS",
    "score": 0.5,
    "flags_above": 1.0,
    "model_sha256": "ab" * 32,
    "bundle_id": "b",
    "engine": "openvino",
    "audit_share": 0.5,
    "inclusion": 0.5,
    "judged": "good",
}


class Poser(ThreadingHTTPServer):
    """Answers every request alike and notes what was asked with which token."""

    daemon_threads = True

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.answer = (status, body, headers)
        self.asked: list[tuple[str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Answering)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answering(BaseHTTPRequestHandler):
    server: Poser

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("authorization")))
        status, body, headers = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "content-length" not in headers:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            return

    def log_message(self, *words: object) -> None:
        return


@pytest.fixture
def pose() -> Iterator[Callable[..., Poser]]:
    made: list[Poser] = []

    def make(body: bytes | dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Poser:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        made.append(Poser(status, data, headers or {}))
        threading.Thread(target=made[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return made[-1]

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("body", "status", "headers", "words"),
    [
        (b"<html>", 200, {}, "not a page of verdicts"),
        (b"[" * 100_000, 200, {}, "not a page of verdicts"),
        ({**EMPTY, "format": "flawline.verdicts/2"}, 200, {}, "at format"),
        ({**EMPTY, "next": 0}, 200, {}, "page behind 0 leads back to 0"),
        ({**EMPTY, "parts": [PART] * (MAX_PAGE + 1)}, 200, {}, "at parts"),
        ({**EMPTY, "parts": [{**PART, "inclusion": 0}]}, 200, {}, "inclusion"),
        ({**EMPTY, "parts": [{**PART, "inclusion": -1}]}, 200, {}, "inclusion"),
        ({**EMPTY, "parts": [{**PART, "verdict": "NOT_INSPECTED"}]}, 200, {}, "verdict"),
        ({**EMPTY, "parts": [{**PART, "score": float("nan")}]}, 200, {}, "score"),
        (b" " * (MAX_PAGE_BYTES + 1), 200, {}, "bytes: not a page"),
        (b" ", 200, {"content-length": str(1 << 40)}, "IncompleteRead|not a page"),
        (b"", 302, {"location": "http://127.0.0.1:1/elsewhere"}, "answered 302"),
        (b"", 404, {}, "is this a Flawline host"),
        ({"error": "Sign in first."}, 401, {}, "refused .401: Sign in first"),
        (b"{", 500, {}, "answered 500: it gave no reason"),
    ],
)
def test_whatever_answers_is_judged(
    pose: Callable[..., Poser], body: Any, status: int, headers: dict[str, str], words: str
) -> None:
    server = pose(body, status, headers)
    with pytest.raises(CalibrationError, match=words):
        list(read_pages(Source(server.url)))


def test_the_token_goes_to_the_address_given_and_nowhere_else(pose: Callable[..., Poser], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("secret\n")
    elsewhere = pose(EMPTY)
    server = pose(b"", 307, {"location": f"{elsewhere.url}/api/export/verdicts"})
    with pytest.raises(CalibrationError, match="answered 307"):
        list(read_pages(Source(server.url, token)))
    assert server.asked == [(f"/api/export/verdicts?after=0&limit={MAX_PAGE}", "Bearer secret")]
    assert elsewhere.asked == []
    assert [page.parts for page in read_pages(Source(elsewhere.url + "/", token))] == [()]
    for text in ("", "two words", "line\nbreak", "é"):
        token.write_text(text)
        with pytest.raises(CalibrationError, match="token"):
            list(read_pages(Source(elsewhere.url, token)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "ends before its last page"),
        (json.dumps({**EMPTY, "next": 7}).encode() + b"\n", "ends before its last page"),
        (json.dumps(EMPTY).encode() + b"\n{}", "goes on behind its last page"),
        (b"\0" * (MAX_PAGE_BYTES + 2), "bytes: not a page"),
        (b"\xff\xfe\n", "line 1: not a page of verdicts"),
    ],
)
def test_files_that_are_not_whole(tmp_path: Path, text: bytes, words: str) -> None:
    file = tmp_path / "a file.jsonl"
    file.write_bytes(text)
    for url in (f"file:{file}", f"file://{file}".replace(" ", "%20")):
        with pytest.raises(CalibrationError, match=words):
            list(read_pages(Source(url)))
