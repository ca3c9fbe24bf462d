"""Ports and key files: who listens, whom this edge reaches, whom it trusts (before hop 1)."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import FlawlineError
from edge_runtime.checks.base import Finding, Status, Subject, edge_runs, settings_or_none

if TYPE_CHECKING:
    from edge_runtime.settings import EdgeSettings

PORTS = {5701: "the host's receiver", 5702: "the host's control socket", 8765: "the review pages"}
REACH_S = 3.0


def check_ports(subject: Subject) -> Iterator[Finding]:
    """Of an edge: whether it reaches its host, and whether its metrics' port is free. Else whether the host's are."""
    settings = settings_or_none(subject)
    if settings is None:
        for port, purpose in PORTS.items():
            yield _free(port, purpose)
        return
    yield _reach("host", settings.host.endpoint)
    if settings.host.control is not None:
        yield _reach("control", settings.host.control)
    yield from _metrics(settings)


def _free(port: int, purpose: str) -> Finding:
    try:
        _bind("127.0.0.1", port)
    except OSError as error:
        way_out = "fine where a host is running; else stop what listens there or choose another port"
        return Finding(f"port {port}", Status.WARN, f"{purpose}: in use ({error.strerror})", way_out)
    return Finding(f"port {port}", Status.OK, f"{purpose}: free")


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _reach(name: str, endpoint: str) -> Finding:
    """Whether something listens at a ZeroMQ endpoint; an edge runs without, and its spool grows."""
    try:
        _connect(endpoint)
    except OSError as error:
        way_out = (
            f"start the host, open its port in the firewall, or correct `{'endpoint' if name == 'host' else name}`"
        )
        found = f"{endpoint}: nobody answers ({error.strerror or error}); events wait in the spool until then"
        return Finding(name, Status.WARN, found, way_out)
    return Finding(name, Status.OK, f"{endpoint}: something listens there")


def _connect(endpoint: str) -> None:
    if endpoint.startswith("ipc://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(REACH_S)
            probe.connect(endpoint.removeprefix("ipc://"))
        return
    address = re.sub(r"^tcp://(?:.*;)?", "", endpoint)  # a source address may stand before a semicolon
    host, _, port = address.rpartition(":")
    try:
        number = int(port)
    except ValueError as error:
        raise OSError(f"{port!r} is no port") from error
    with socket.create_connection((host.strip("[]"), number), timeout=REACH_S):
        pass


def _metrics(settings: EdgeSettings) -> Iterator[Finding]:
    if settings.metrics.listen is None:
        return
    listen = settings.metrics.listen
    if settings.metrics.token is not None:
        from edge_runtime.metrics_http import read_token

        try:
            read_token(settings.metrics.token)
        except FlawlineError as error:
            yield Finding("metrics token", Status.FAIL, str(error), "mend the file of `token` under [metrics]")
        else:
            yield Finding("metrics token", Status.OK, f"{settings.metrics.token}: this user alone can read it")
    try:
        _bind(*settings.metrics.address())
    except OSError as error:
        if edge_runs(settings):
            yield Finding("metrics", Status.OK, f"{listen}: in use, and the edge runs")
            return
        way_out = "stop what listens there, or give another `listen` under [metrics]"
        yield Finding("metrics", Status.FAIL, f"{listen}: cannot be used ({error.strerror})", way_out)
    else:
        yield Finding("metrics", Status.OK, f"{listen}: free")


def check_keys(subject: Subject) -> Iterator[Finding]:
    """Whether the key files of the wire could be used now: modes, owners, pairs that belong together."""
    settings = settings_or_none(subject)
    if settings is None:
        return
    from contract.keys import fingerprint
    from edge_runtime.link import load_keys

    try:
        keys = load_keys(settings.host)
    except FlawlineError as error:
        yield Finding("keys", Status.FAIL, str(error), "flawline keys --help")
        return
    if keys is None:
        yield Finding("keys", Status.OK, "none: the host is on this machine")
    else:
        found = f"this edge's {fingerprint(keys.own.public)}, the host's {fingerprint(keys.host)}; they never expire"
        yield Finding("keys", Status.OK, found)
    yield from _strangers(settings)


def _strangers(settings: EdgeSettings) -> Iterator[Finding]:
    """Secret keys beside this edge's own: each belongs on another machine."""
    if settings.host.key is None:
        return
    try:
        others = sorted(file.name for file in Path(settings.host.key.parent).glob("*.key_secret"))
    except OSError:
        return
    others = [name for name in others if settings.host.key is not None and name != settings.host.key.name]
    if others:
        found = f"{settings.host.key.parent} also holds {', '.join(others[:5])}"
        yield Finding(
            "other keys", Status.WARN, found, "a secret key stays on the machine whose name it has; remove it"
        )
