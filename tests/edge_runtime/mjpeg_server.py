"""A network camera's HTTP server as a process of its own: Motion JPEG, well and in every way wrong that PATHS names."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np

WIDTH, HEIGHT = 64, 48
COLOUR = (30, 90, 200)  # red, green, blue
PAUSE_S = 0.02
Send = Callable[[bytes], None]


def picture(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """A JPEG of one colour under noise, so that no two are the same."""
    noise = np.random.default_rng(number).integers(-6, 7, (size[1], size[0], 1))
    rgb = np.clip(np.array(COLOUR) + noise, 0, 255).astype(np.uint8)
    ok, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert ok
    return data.tobytes()


def bomb(width: int, height: int) -> bytes:
    """A JPEG that declares any size, with hardly any data."""
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    return b"\xff\xd8" + frame + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\0" * 32 + b"\xff\xd9"


def part(data: bytes, length: int | None = -1, boundary: bytes = b"frame") -> bytes:
    declared = len(data) if length == -1 else length
    header = b"" if declared is None else b"Content-Length: %d\r\n" % declared
    return b"--" + boundary + b"\r\nContent-Type: image/jpeg\r\n" + header + b"\r\n" + data + b"\r\n"


def endless(make: Callable[[int], bytes]) -> Callable[[Send], None]:
    def serve(send: Send) -> None:
        for number in count():
            send(make(number))
            time.sleep(PAUSE_S)

    return serve


def count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def every(other: Callable[[int], bytes], at: int = 5) -> Callable[[int], bytes]:
    """A good picture, and every fifth another one."""
    return lambda number: other(number) if number % at == at - 1 else part(picture(number))


def stops(send: Send) -> None:
    """Two pictures and a half, then silence on an open connection."""
    for number in range(2):
        send(part(picture(number)))
    send(part(picture(2))[:-300])
    time.sleep(60)


def drips(send: Send) -> None:
    for number in range(2):
        send(part(picture(number)))
    for byte in part(picture(2)):
        send(bytes([byte]))
        time.sleep(0.1)


def ends(send: Send) -> None:
    for number in range(3):
        send(part(picture(number)))
    send(part(picture(3))[:-300])


def lies(number: int) -> bytes:
    return part(picture(number, (WIDTH, HEIGHT) if number < 20 else (2 * WIDTH, HEIGHT)))


MULTIPART = b"multipart/x-mixed-replace; boundary=frame"
PATHS: dict[str, tuple[bytes, Callable[[Send], None]]] = {
    "good": (MULTIPART, endless(lambda number: part(picture(number)))),
    "quoted": (
        b'multipart/x-mixed-replace; boundary="--frame"',
        endless(lambda number: part(picture(number), boundary=b"--frame")),
    ),
    "no-length": (MULTIPART, endless(lambda number: part(picture(number), length=None))),
    "junk": (MULTIPART, endless(lambda number: b"\r\nsome words\r\n" + part(picture(number)))),
    "truncated": (MULTIPART, endless(every(lambda number: part(picture(number)[:-200])))),
    "short": (MULTIPART, endless(every(lambda number: part(picture(number), length=200)))),
    "no-jpeg": (MULTIPART, endless(every(lambda _: part(b"<html>no picture</html>")))),
    "bomb": (MULTIPART, endless(every(lambda _: part(bomb(60_000, 60_000))))),
    "large": (MULTIPART, endless(every(lambda _: part(bomb(2400, 2400))))),
    "huge-length": (MULTIPART, endless(every(lambda number: part(picture(number), length=1 << 60)))),
    "odd-length": (MULTIPART, endless(every(lambda _: b"--frame\r\nContent-Length: -5\r\n\r\n"))),
    "endless-part": (MULTIPART, endless(lambda _: b"\0" * 1_000_000)),
    "endless-header": (MULTIPART, endless(lambda number: b"--frame\r\n" * (number == 0) + b"x: y\r\n" * 1000)),
    "endless-picture": (MULTIPART, endless(lambda n: b"--frame\r\n\r\n" * (n == 0) + b"\0" * 1_000_000)),
    "stops": (MULTIPART, stops),
    "drips": (MULTIPART, drips),
    "ends": (MULTIPART, ends),
    "frozen": (MULTIPART, endless(lambda number: part(picture(min(number, 10))))),
    "lies": (MULTIPART, endless(lies)),
    "page": (b"text/html", lambda send: send(b"<html>")),
    "still": (b"image/jpeg", lambda send: send(picture(0))),
    "no-boundary": (b"multipart/x-mixed-replace", lambda send: send(part(picture(0)))),
}
REALM, NONCE = "camera", "c0ffee"
USER, PASSWORD = "viewer", "s3cr3t/@?"


def digest_right(request: str, path: str) -> bool:
    """Whether the request carries the right answer to the digest challenge."""
    fields = dict(re.findall(r'(\w+)="?([^",]*)"?', request.partition("Authorization: Digest ")[2].split("\r\n")[0]))
    first = hashlib.md5(f"{USER}:{REALM}:{PASSWORD}".encode()).hexdigest()
    second = hashlib.md5(f"GET:{path}".encode()).hexdigest()
    middle = f"{NONCE}:{fields.get('nc')}:{fields.get('cnonce')}:{fields.get('qop')}"
    wanted = hashlib.md5(f"{first}:{middle}:{second}".encode()).hexdigest()
    return fields.get("response") == wanted


def answer(connection: socket.socket, tls: ssl.SSLContext | None) -> None:
    try:
        connection = connection if tls is None else tls.wrap_socket(connection, server_side=True)
    except OSError:
        connection.close()  # whoever connected does not trust us
        return
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            data = connection.recv(4096)
            if not data:
                return
            request += data
        text = request.decode("latin-1")
        path = text.split(" ")[1]
        name = path.partition("?")[0].strip("/")
        if name == "away":
            connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /good\r\nContent-Length: 0\r\n\r\n")
            return
        if name == "signed":
            if not digest_right(text, path):
                challenge = f'Digest realm="{REALM}", nonce="{NONCE}", qop="auth", algorithm=MD5'
                head = f"HTTP/1.1 401 No\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n"
                connection.sendall(head.encode())
                return
            name = "good"
        if name == "mute":
            time.sleep(60)
        if name not in PATHS:
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        kind, serve = PATHS[name]
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: " + kind + b"\r\n\r\n")
        try:
            serve(connection.sendall)
        except OSError:
            return  # the reader went


if __name__ == "__main__":
    tls = None
    if len(sys.argv) > 2:  # a certificate and its key in one file
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(sys.argv[2])
    with socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=answer, args=(server.accept()[0], tls), daemon=True).start()
