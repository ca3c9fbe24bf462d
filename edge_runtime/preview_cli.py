"""``flawline edge preview``: look at what a camera sees, as a file or as a page on this machine (beside hop 1)."""

from __future__ import annotations

import html
import http.server
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import typer
import zmq

from contract.curve import keep_alive, secure_client
from contract.errors import ConfigError
from contract.keys import KeyPair, is_loopback, load_pair, load_public
from edge_runtime.preview import MAX_JPEG_BYTES, PreviewHeader, picture_of, topic_of
from edge_runtime.settings import load_settings

WAIT_S = 10.0
MOST_STREAMS = 8
BOUNDARY = "frame"


class Where(NamedTuple):
    """A preview's address, and the keys to speak to it with."""

    endpoint: str
    keys: tuple[KeyPair, str] | None
    cameras: list[str]


class Watcher:
    """One subscription to one camera; ``next`` gives the newest picture, whatever was missed. Close it."""

    def __init__(self, where: Where, camera: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, 2)
        self._socket.set(zmq.MAXMSGSIZE, MAX_JPEG_BYTES)
        keep_alive(self._socket)
        if where.keys is not None:
            secure_client(self._socket, *where.keys)
        self._socket.connect(where.endpoint)
        self._socket.subscribe(topic_of(camera))

    def next(self, timeout_s: float) -> tuple[PreviewHeader, bytes] | None:
        """The newest picture, None where none came in time."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return None
        frames = self._socket.recv_multipart()
        while self._socket.poll(0):
            frames = self._socket.recv_multipart()
        try:
            return picture_of(frames)
        except ValueError as error:
            raise ConfigError(f"what answers there is no preview of this version: {error}") from error

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


def where_of(config: Path, endpoint: str | None, key: Path | None, server_key: Path | None) -> Where:
    """Where the preview of ``edge.toml`` is. Raises ConfigError where it has none."""
    settings = load_settings(config)
    listen = endpoint or settings.preview.listen
    if listen is None:
        raise ConfigError(f'{config}: this edge has no preview; set listen = "tcp://127.0.0.1:5705" under [preview]')
    if (key is None) != (server_key is None):
        raise ConfigError("--key and --server-key belong together: who watches, and whom")
    keys = None if key is None or server_key is None else (load_pair(key), load_public(server_key, carried=True))
    if keys is None and settings.preview.keys is not None:
        raise ConfigError(
            f"{config}: this preview speaks only to watchers with keys: flawline keys new NAME, flawline keys "
            f"authorise NAME.key --dir {settings.preview.keys}, then --key NAME.key_secret --server-key host.key"
        )
    return Where(listen.replace("0.0.0.0", "127.0.0.1"), keys, [camera.id for camera in settings.cameras])  # noqa: S104


def save(where: Where, camera: str, path: Path) -> None:
    """Write the newest picture. Raises ConfigError where none comes."""
    with closing(Watcher(where, camera)) as watcher:
        got = watcher.next(WAIT_S)
    if got is None:
        raise ConfigError(
            f"{where.endpoint}: no picture of camera {camera!r} within {WAIT_S:g} s; does the edge run, with this "
            "`preview.listen`, and does the camera deliver?"
        )
    header, jpeg = got
    path.write_bytes(jpeg)
    typer.echo(f"{path} written: {_words(header)}")


def serve(where: Where, address: str, ready: Callable[[http.server.ThreadingHTTPServer], None] | None = None) -> None:
    """Serve a page with a live picture of each camera, on this machine alone, until Ctrl-C."""
    host, _, port = address.rpartition(":")
    if not is_loopback(host.strip("[]")) or not port.isdecimal():
        raise ConfigError(
            f"--http {address}: expected 127.0.0.1:PORT; the page has no sign-in and is for this machine alone (from "
            "another one: an ssh tunnel)"
        )
    server = _Server((host.strip("[]"), int(port)), where)
    typer.echo(f"http://{host}:{server.server_port}/ shows the cameras; pictures may be lost. Ctrl-C ends it")
    if ready is not None:
        ready(server)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], where: Where) -> None:
        self.where = where
        self.streams = threading.BoundedSemaphore(MOST_STREAMS)
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            raise ConfigError(f"--http {address[0]}:{address[1]}: cannot be bound ({error.strerror})") from error


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = 10

    def do_GET(self) -> None:
        name = (self.headers.get("Host") or "").rpartition(":")[0].strip("[]")
        if not is_loopback(name):  # another site's page, by a name that it made point here
            self.send_error(403)
        elif self.path == "/":
            self._page()
        elif self.path.endswith(".mjpg") and self.path[1:-5] in self.server.where.cameras:
            self._stream(self.path[1:-5])
        else:
            self.send_error(404)

    def _page(self) -> None:
        figures = "".join(
            f'<figure><img src="/{html.escape(each)}.mjpg" alt=""><figcaption>{html.escape(each)}</figcaption></figure>'
            for each in self.server.where.cameras
        )
        text = (
            "<!doctype html><meta charset=utf-8><title>Flawline preview</title><body style='font-family:sans-serif'>"
            f"<p>Live preview. Frames are left out; nothing is judged by it.</p>{figures}"
        )
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, camera: str) -> None:
        if not self.server.streams.acquire(blocking=False):
            self.send_error(503)
            return
        try:
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            with closing(Watcher(self.server.where, camera)) as watcher:
                while True:
                    got = watcher.next(WAIT_S)
                    if got is None:
                        return
                    self._send(*got)
        except OSError:
            return  # the browser has gone
        finally:
            self.server.streams.release()

    def _send(self, header: PreviewHeader, jpeg: bytes) -> None:
        head = (
            f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\nX-Flawline: {_words(header)}"
        )
        self.wfile.write(head.encode("ascii", "replace") + b"\r\n\r\n" + jpeg + b"\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        return


def _words(header: PreviewHeader) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(time.time() - header.age_ms / 1000))
    last = (
        "no verdict yet" if header.last is None else f"last {header.last.verdict.value} at frame {header.last.frame_no}"
    )
    return f"camera {header.camera_id}, frame {header.frame_no} of {when}, {header.dropped} not shown, {last}"
