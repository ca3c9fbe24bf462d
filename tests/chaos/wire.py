"""A wire between edge and host: the edge in a network namespace of its own, every packet through this process.

The kernel's netem is not everywhere; two TUN devices and a relay between them do the same: packets are dropped, kept
back, sent twice, or cut off in the middle of a message, without a word to either side.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from collections.abc import Sequence

from contract.keys import authorise, new_pair
from tests.chaos.disks import command
from tests.chaos.scene import Gear, Scene

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1400


class Wire(Gear):
    """``loss`` and ``twice``: shares of packets; ``delay_s``: least and most that one is kept back.

    ``cut_after``: so many more bytes pass from the edge, then nothing does until ``mend``.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._relay, name="wire", daemon=True)
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self.dropped = self.passed = 0
        self.mend()

    def mend(self) -> None:
        self.loss = self.twice = 0.0
        self.delay_s = (0.0, 0.0)
        self.cut_after: int | None = None

    def lay(self, scene: Scene) -> None:
        self._namespace = f"flawline-{os.getpid()}"
        net = f"10.77.{os.getpid() % 256}"
        command("ip", "netns", "add", self._namespace)
        self._ends = [_tun(f"fl{end}{os.getpid()}") for end in "he"]
        inside = ("-netns", self._namespace)
        command("ip", "link", "set", f"fle{os.getpid()}", "netns", self._namespace)
        for where, name, host in (((), "h", 1), (inside, "e", 2)):
            device = f"fl{name}{os.getpid()}"
            command("ip", *where, "address", "add", f"{net}.{host}/30", "dev", device)
            command("ip", *where, "link", "set", device, "mtu", MTU, "up")
        command("ip", *inside, "link", "set", "lo", "up")
        self._thread.start()
        self._give_keys(scene, f"tcp://{net}.1:{scene.line.endpoint.rpartition(':')[2]}")

    def _give_keys(self, scene: Scene, endpoint: str) -> None:
        new_pair(scene.folder / "keys", "host")
        new_pair(scene.folder / "edge-keys", "edge-1")
        authorise(scene.folder / "keys", scene.folder / "edge-keys" / "edge-1.key")
        given = {
            "host": ("[events]", 'keys = "keys"\n[events]'),
            "edge": ("resend_ms", 'key = "edge-keys/edge-1.key_secret"\nserver_key = "keys/host.key"\nresend_ms'),
        }
        for side, (before, after) in given.items():
            file = scene.folder / f"{side}.toml"
            file.write_text(file.read_text().replace(scene.line.endpoint, endpoint).replace(before, after, 1))

    def prefix(self, side: str) -> Sequence[str]:
        return ("ip", "netns", "exec", self._namespace) if side == "edge" else ()

    def clear(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5)
        for end in getattr(self, "_ends", ()):
            os.close(end)
        command("ip", "netns", "delete", self._namespace)

    def _relay(self) -> None:
        host, edge = self._ends
        other = {host: edge, edge: host}
        while not self._stopping.is_set():
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now:
                _, _, to, packet = heapq.heappop(self._waiting)
                _put(to, packet)
            wait_s = min(0.05, self._waiting[0][0] - now) if self._waiting else 0.05
            for end in select.select([host, edge], [], [], max(0.0, wait_s))[0]:
                self._take(os.read(end, 65536), other[end], from_edge=end == edge)

    def _take(self, packet: bytes, to: int, from_edge: bool) -> None:
        if self.cut_after is not None and from_edge:
            self.cut_after = max(0, self.cut_after - len(packet))
        if self.cut_after == 0 or self._random.random() < self.loss:
            self.dropped += 1
            return
        self.passed += 1
        for _ in range(1 + (self._random.random() < self.twice)):
            due = time.monotonic() + self._random.uniform(*self.delay_s)
            self._number += 1
            heapq.heappush(self._waiting, (due, self._number, to, packet))


def _put(end: int, packet: bytes) -> None:
    try:
        os.write(end, packet)
    except OSError:
        return  # a device that goes down; the packet is lost


def _tun(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return end
