"""``loop://``: a line controller made of memory and, with a path, a file of JSON lines (hop 10).

For trying things out and for tests. ``loop://``, ``loop:///abs/outputs.jsonl``, ``loop://?path=outputs.jsonl&keep=100``.
"""

from __future__ import annotations

import collections
import json
import time
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from plugin.connectors.base import Connector, LineOutput
from plugin.errors import ConfigError, ConnectorError

KEEP = 1000


class Loop(Connector):
    """Keeps the last outputs in ``outputs`` and appends each to the file, flushed line by line."""

    def __init__(self, url: str, base_dir: Path) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        if unknown := sorted(set(query) - {"path", "keep"}):
            raise ConfigError(f"{url}: unknown option {unknown[0]!r}; there are: path, keep")
        name = unquote(parts.path) or query.get("path", [""])[0]
        if parts.netloc:
            raise ConfigError(f"{url}: a path needs three slashes: loop:///folder/outputs.jsonl")
        try:
            keep = int(query.get("keep", [str(KEEP)])[0])
        except ValueError as error:
            raise ConfigError(f"{url}: keep must be a number") from error
        self.outputs: collections.deque[LineOutput] = collections.deque(maxlen=max(keep, 1))
        self._file = None
        if name:
            path = base_dir / name
            try:
                self._file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"{url}: {path} cannot be written ({error.strerror})") from error

    def publish(self, output: LineOutput) -> None:
        self.outputs.append(output)
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
