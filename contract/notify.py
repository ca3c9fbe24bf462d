"""Speaks systemd's notify protocol: one datagram of lines to the socket that it names (start of edge and host)."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

SOCKET = "NOTIFY_SOCKET"
WATCHDOG_US = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"


class Notifier:
    """``address``: a path, or ``@name`` in Linux's abstract namespace; None: nobody listens, and nothing is sent.

    ``watchdog_s``: within which whoever listens wants a sign of life; None where it wants none.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._address = None if not address else "\0" + address[1:] if address[0] == "@" else address
        self._socket: socket.socket | None = None
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """As the service manager asks in ``environment``; taken out of it, so that no child speaks for this process."""
        address = environment.pop(SOCKET, None)
        interval = environment.pop(WATCHDOG_US, "")
        meant = environment.pop(WATCHDOG_PID, "") in ("", str(os.getpid()))
        known = address is not None and address[:1] in ("/", "@")  # others (vsock) are for virtual machines
        watched = meant and interval.isdecimal() and int(interval) > 0
        return cls(address if known else None, int(interval) / 1e6 if watched else None)

    def tell(self, *lines: str) -> bool:
        """Send ``lines`` (``READY=1``, ``STATUS=...``); whether they were taken. Never waits and never raises."""
        if self._socket is None or self._address is None:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode(errors="replace"), socket.MSG_DONTWAIT, self._address)
        except OSError:  # a manager that restarts, or is behind: told again with the next sign of life
            return False
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
