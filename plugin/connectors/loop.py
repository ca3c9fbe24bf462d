"""``loop://``: a line controller made of memory and, with a path, a file of JSON lines (hop 10).

For trying things out and for tests. ``loop://``, ``loop:///abs/outputs.jsonl``, ``loop://?path=outputs.jsonl&keep=100``.
With ``gate=confirmed`` (or ``not_confirmed``) it plays a sensor behind the gate that says so of every part that is no
PASS.
"""

from __future__ import annotations

import collections
import json
import time
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qs, unquote, urlsplit

from contract.event import LineCode
from plugin.connectors.base import Connector, GateOutcome, LineOutput, Plant
from plugin.errors import ConfigError, ConnectorError

KEEP = 1000


class Loop(Connector):
    """Keeps the last outputs in ``outputs`` and appends each to the file, flushed line by line."""

    def __init__(self, url: str, base_dir: Path) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        if unknown := sorted(set(query) - {"gate", "path", "keep"}):
            raise ConfigError(f"{url}: unknown option {unknown[0]!r}; there are: gate, path, keep")
        name = unquote(parts.path) or query.get("path", [""])[0]
        if parts.netloc:
            raise ConfigError(f"{url}: a path needs three slashes: loop:///folder/outputs.jsonl")
        try:
            keep = int(query.get("keep", [str(KEEP)])[0])
        except ValueError as error:
            raise ConfigError(f"{url}: keep must be a number") from error
        gate = query.get("gate", [None])[0]
        self._gate: GateOutcome | None = next((each for each in get_args(GateOutcome) if each == gate), None)
        if gate is not None and self._gate is None:
            raise ConfigError(f"{url}: gate is {gate!r}; expected one of: {', '.join(get_args(GateOutcome))}")
        self._plant: Plant | None = None
        self.outputs: collections.deque[LineOutput] = collections.deque(maxlen=max(keep, 1))
        self._file = None
        if name:
            path = base_dir / name
            try:
                self._file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"{url}: {path} cannot be written ({error.strerror})") from error

    def start(self, plant: Plant) -> None:
        """Nothing listens; what the gate sees is told to ``plant``."""
        self._plant = plant

    def publish(self, output: LineOutput) -> None:
        self.outputs.append(output)
        self._write(output)
        if self._plant is not None and self._gate is not None and output.code is not LineCode.PASS:
            self._plant.gate(output.line, output.number, self._gate)

    def _write(self, output: LineOutput) -> None:
        if self._file is None:
            return
        line = {
            "line": output.line,
            "number": output.number,
            "edge_id": output.edge_id,
            "part_id": output.part_id,
            "trigger_id": output.trigger_id,
            "code": int(output.code),
            "reason": output.reason,
            "t": time.time(),
        }
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise ConnectorError(f"the file cannot be written: {error.strerror}") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
