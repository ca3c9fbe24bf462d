"""Asks a running host for a sign of life, as a container engine does (beside hop 11)."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path

TIMEOUT_S = 5.0


def answers(state_dir: Path) -> bool:
    """Whether the host of ``state_dir`` answers on its own machine; what it says of itself no restart would mend."""
    try:
        address = json.loads((state_dir / "http.json").read_text())
        host = "::1" if ":" in address["host"] else "127.0.0.1" if address["host"] == "0.0.0.0" else address["host"]  # noqa: S104
        _ask(host, int(address["port"]), address["url"].startswith("https:"))
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return False
    return True


def _ask(host: str, port: int, tls: bool) -> None:
    if tls:  # the certificate names what browsers call the host, and this is the same machine
        context = ssl._create_unverified_context()  # noqa: S323
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse().read()
    finally:
        connection.close()
