"""A TCP relay that takes its time, for peers on a slow network; what has left its sender arrives, however late."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

STEP_S = 0.01


class Relay:
    """Listens at ``port`` of loopback and hands on to ``target``; each piece of data waits ``delay_s``, both ways."""

    def __init__(self, target: int) -> None:
        self.delay_s = 0.0
        self._target = target
        self._closing = False
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closing:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            done = threading.Semaphore(0)
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                one.settimeout(None)
                threading.Thread(target=self._pump, args=(one, other, done), daemon=True).start()
            threading.Thread(target=self._end, args=(near, far, done), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, done: threading.Semaphore) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                came = time.monotonic()
                while time.monotonic() - came < self.delay_s and not self._closing:
                    time.sleep(STEP_S)
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        done.release()

    def _end(self, near: socket.socket, far: socket.socket, done: threading.Semaphore) -> None:
        done.acquire()
        done.acquire()
        for each in (near, far):
            self._open.remove(each)
            each.close()
