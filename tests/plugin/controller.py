"""A line controller made with libmodbus (Debian's libmodbus5), which shares no line with the server it talks to.

Its program is the one that docs/modbus.md gives to programmers; a test of that page runs against this one.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import pytest

from plugin.connectors.registers import (
    FLAGS,
    RING,
    SEQ_MAX,
    SLOT,
    SLOT_WORDS,
    SLOTS,
    STATUS,
    VERSION,
    WORDS,
    WRITTEN,
)

NEEDED = "libmodbus is not installed (Debian: apt-get install libmodbus5)"


def library() -> ctypes.CDLL:
    """The C library; skips the test where there is none."""
    name = ctypes.util.find_library("modbus")
    if name is None:
        pytest.skip(NEEDED)
    lib = ctypes.CDLL(name, use_errno=True)
    lib.modbus_new_tcp.restype = ctypes.c_void_p
    lib.modbus_new_tcp.argtypes = [ctypes.c_char_p, ctypes.c_int]
    lib.modbus_mapping_new.restype = ctypes.POINTER(_Mapping)
    lib.modbus_strerror.restype = ctypes.c_char_p
    for function in ("connect", "close", "free"):
        getattr(lib, f"modbus_{function}").argtypes = [ctypes.c_void_p]
    words = ctypes.POINTER(ctypes.c_uint16)
    for function in ("read_registers", "read_input_registers", "write_registers"):
        getattr(lib, f"modbus_{function}").argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, words]
    lib.modbus_write_register.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    lib.modbus_write_bit.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    lib.modbus_set_response_timeout.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]
    lib.modbus_tcp_listen.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.modbus_tcp_accept.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
    lib.modbus_receive.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint8)]
    lib.modbus_reply.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint8), ctypes.c_int, ctypes.c_void_p]
    return lib


class _Mapping(ctypes.Structure):
    _fields_ = [
        ("nb_bits", ctypes.c_int),
        ("start_bits", ctypes.c_int),
        ("nb_input_bits", ctypes.c_int),
        ("start_input_bits", ctypes.c_int),
        ("nb_input_registers", ctypes.c_int),
        ("start_input_registers", ctypes.c_int),
        ("nb_registers", ctypes.c_int),
        ("start_registers", ctypes.c_int),
        ("tab_bits", ctypes.POINTER(ctypes.c_uint8)),
        ("tab_input_bits", ctypes.POINTER(ctypes.c_uint8)),
        ("tab_input_registers", ctypes.POINTER(ctypes.c_uint16)),
        ("tab_registers", ctypes.POINTER(ctypes.c_uint16)),
    ]


class ModbusError(OSError):
    """What libmodbus says."""


class Master:
    """A connection of libmodbus; raises ModbusError."""

    def __init__(self, address: Sequence[object], timeout_s: float = 10.0) -> None:
        self._lib = library()
        self._open: int | None = self._lib.modbus_new_tcp(str(address[0]).encode(), int(str(address[1])))
        self._lib.modbus_set_response_timeout(self._context, int(timeout_s), int(timeout_s % 1 * 1e6))
        try:
            self._check(self._lib.modbus_connect(self._context))
        except ModbusError:
            self.close()
            raise

    @property
    def _context(self) -> int:
        """libmodbus' own; never one that was given back to it."""
        if self._open is None:
            raise ModbusError(0, "the connection is closed")
        return self._open

    def read(self, address: int, count: int, inputs: bool = False) -> list[int]:
        words = (ctypes.c_uint16 * count)()
        read = self._lib.modbus_read_input_registers if inputs else self._lib.modbus_read_registers
        self._check(read(self._context, address, count, words))
        return list(words)

    def write(self, address: int, *values: int) -> None:
        words = (ctypes.c_uint16 * len(values))(*values)
        self._check(self._lib.modbus_write_registers(self._context, address, len(values), words))

    def write_one(self, address: int, value: int) -> None:
        self._check(self._lib.modbus_write_register(self._context, address, value))

    def write_coil(self, address: int, value: bool) -> None:
        self._check(self._lib.modbus_write_bit(self._context, address, value))

    def close(self) -> None:
        if self._open is not None:
            self._lib.modbus_close(self._open)
            self._lib.modbus_free(self._open)
            self._open = None

    def _check(self, result: int) -> None:
        if result < 0:
            raise ModbusError(ctypes.get_errno(), self._lib.modbus_strerror(ctypes.get_errno()).decode())


class Judged(NamedTuple):
    """One part as the controller took it."""

    seq: int
    code: int
    trigger_id: int
    counter: int | None
    ratio: float


class Controller:
    """The controller's program of docs/modbus.md: what the ring tells, taken by its counter.

    ``taken``: every result in the order of its number. ``is_ok(counter)``: whether the part that it counted may pass.
    """

    def __init__(self, address: Sequence[object]) -> None:
        self.master = Master(address)
        self.session: int | None = None
        self.last = 0
        self.taken: list[Judged] = []
        self.skipped: list[int] = []
        self.sessions = 0
        self.resyncs = 0
        self._codes: dict[int, int] = {}
        self._beat: tuple[int, float] = (-1, 0.0)
        self._ready = False

    def poll(self, acknowledge: bool = True) -> list[int]:
        """One cycle; returns the words that were read."""
        words = self.master.read(0, RING + SLOTS * SLOT_WORDS)
        if words[WORDS["version"]] != VERSION:
            return words
        self._watch(words)
        session = words[WORDS["session"]] << 16 | words[WORDS["session"] + 1]
        if session != self.session:
            if self.session is None:
                self.last = words[WORDS["head"]]
            self.session, self.sessions = session, self.sessions + 1
            self._codes.clear()
        self._take_all(words)
        if acknowledge and self.last:
            self.master.write(WRITTEN["acknowledge"], self.last)
        return words

    def is_ok(self, counter: int) -> bool:
        """At the gate: only the part's own PASS, and only while the line is inspected."""
        return self.inspected and self._codes.pop(counter, 0) == 1

    @property
    def inspected(self) -> bool:
        """Whether the heartbeat went on within half a second and the line is ready."""
        return self._ready and time.monotonic() - self._beat[1] < 0.5

    def _watch(self, words: list[int]) -> None:
        if words[WORDS["heartbeat"]] != self._beat[0]:
            self._beat = (words[WORDS["heartbeat"]], time.monotonic())
        self._ready = bool(words[WORDS["status"]] >> STATUS["ready"] & 1)

    def _take_all(self, words: list[int]) -> None:
        head = words[WORDS["head"]]
        gap = (head - self.last) % SEQ_MAX
        if head == 0 or gap > SEQ_MAX // 2:
            self.last, self.resyncs = head, self.resyncs + 1  # a host whose numbers went back
            self._codes.clear()
            return
        if gap > SLOTS:  # the ring holds no more: the others had no verdict that could be taken
            self.skipped += [(self.last + step - 1) % SEQ_MAX + 1 for step in range(1, gap - SLOTS + 1)]
            self.last = (head - SLOTS - 1) % SEQ_MAX + 1
        while self.last != head:
            self.last = self.last % SEQ_MAX + 1
            self._take(words)

    def _take(self, words: list[int]) -> None:
        at = RING + (self.last - 1) % SLOTS * SLOT_WORDS
        slot = words[at : at + SLOT_WORDS]
        if slot[SLOT["seq"]] != self.last or slot[SLOT["seq_again"]] != self.last:
            self.skipped.append(self.last)
            return
        counted = slot[SLOT["flags"]] >> FLAGS["counted"] & 1
        trigger_id = slot[SLOT["trigger_id"]] << 16 | slot[SLOT["trigger_id"] + 1]
        counter = slot[SLOT["counter"]] if counted else None
        code = slot[SLOT["code"]]
        if counter is not None:
            self._codes[counter] = 4 if counter in self._codes else code  # told twice: somebody is wrong
        self.taken.append(Judged(self.last, code, trigger_id, counter, slot[SLOT["ratio"]] / 1000))


class Module:
    """A remote I/O module: libmodbus' server with eight coils, and a record of every change."""

    def __init__(self) -> None:
        self._lib = library()
        self.port = 0
        self.history: list[tuple[int, bool, float]] = []
        self.coils = [False] * 8
        self.writes = 0
        self.slow_s = 0.0
        self._stopping = False
        self._map = self._lib.modbus_mapping_new(8, 0, 0, 0)
        self._thread: threading.Thread | None = None

    def start(self, port: int = 0) -> None:
        if port == 0:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        self.port = port
        self._stopping = False
        self._context = self._lib.modbus_new_tcp(b"127.0.0.1", port)
        self._listener = ctypes.c_int(self._lib.modbus_tcp_listen(self._context, 4))
        assert self._listener.value >= 0
        self._thread = threading.Thread(target=self._serve, args=(self._context,), daemon=True)
        self._thread.start()

    def _serve(self, context: int) -> None:
        query = (ctypes.c_uint8 * 260)()
        while not self._stopping:
            if self._lib.modbus_tcp_accept(context, ctypes.byref(self._listener)) < 0:
                return
            while (length := self._lib.modbus_receive(context, query)) >= 0:
                if self._stopping:
                    break
                if length == 0:
                    continue
                self._take_time()
                self._lib.modbus_reply(context, query, length, self._map)
                self.writes += 1
                now = time.monotonic()
                for number in range(8):
                    on = bool(self._map.contents.tab_bits[number])
                    if on != self.coils[number]:
                        self.coils[number] = on
                        self.history.append((number, on, now))
            self._lib.modbus_close(context)

    def _take_time(self) -> None:
        """A module that is made quick again does not end a slow answer first."""
        began = time.monotonic()
        while time.monotonic() - began < self.slow_s and not self._stopping:
            time.sleep(min(0.01, self.slow_s))

    def stop(self) -> None:
        """As if its power were cut: connection and listener end."""
        self._stopping = True
        handle = socket.socket(fileno=os.dup(self._listener.value))
        handle.shutdown(socket.SHUT_RDWR)
        handle.close()
        connection = self._lib.modbus_get_socket(ctypes.c_void_p(self._context))
        if connection >= 0:
            taken = socket.socket(fileno=os.dup(connection))
            with suppress(OSError):
                taken.shutdown(socket.SHUT_RDWR)
            taken.close()
        if self._thread is not None:
            self._thread.join(5)
        os.close(self._listener.value)
        self.coils = [False] * 8
        for number in range(8):
            self._map.contents.tab_bits[number] = 0
