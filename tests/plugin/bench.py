"""What a connector's own tests give it: a plant that says what the test wants, and outputs."""

from __future__ import annotations

import time
from pathlib import Path

from contract.event import LineCode
from plugin.connectors.base import Connector, LineOutput, LineState, Plant, RecipeState
from plugin.dispatch import make_connector


def output(number: int, code: LineCode = LineCode.PASS, due_s: float = 30.0) -> LineOutput:
    now_ns = time.monotonic_ns()
    reason = None if code is LineCode.PASS else "a dent"
    return LineOutput(
        "line-1", number, "edge-1", f"part-{number}", "cam-1", number, code, reason,
        now_ns + int(due_s * 1e9), captured_ns=now_ns, ratio=0.33333, model=0xABABABAB,
    )  # fmt: skip


class World:
    """A plant of one line."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.held: str | None = None
        self.connectors: list[Connector] = []

    def start(self, url: str, folder: Path, lines: tuple[str, ...] = ("line-1",)) -> Connector:
        connector = make_connector(url, folder)
        self.connectors.append(connector)
        connector.start(
            Plant(
                lines=lines,
                trouble=self.ask,
                last_number=lambda line: 0,
                deadline_ms=lambda line: 1000,
                counted=lambda line, counters, t_ns: None,
                recipe=lambda line: RecipeState(4, 0xCAFE0001),
                select_recipe=lambda line, number, done: None,
                fail=lambda output, detail: None,
                state=lambda line: LineState(held=self.held),
            )
        )
        return connector

    def ask(self, line: str) -> str | None:
        return self.trouble or self.held

    def close(self) -> None:
        for connector in self.connectors:
            connector.interrupt()
            connector.close()
