"""What every way to a line controller implements, and what it is given (hop 10)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

from contract.event import LineCode


class LineOutput(NamedTuple):
    """One part's code for the line. ``due_ns``: CLOCK_MONOTONIC after which it must not be sent."""

    line: str
    number: int
    edge_id: str
    part_id: str
    camera_id: str
    trigger_id: int
    code: LineCode
    reason: str | None
    due_ns: int


class Connector(ABC):
    """One line controller. Made once, then used by a thread of its own; it may block, others do not wait for it.

    A number is given to ``publish`` once, ever: raise ConnectorError where it was not delivered; it is never retried.
    """

    @abstractmethod
    def __init__(self, url: str, base_dir: Path) -> None:
        """Read ``url`` (raises ConfigError); paths in it are relative to ``base_dir``. Connects nothing yet."""

    @abstractmethod
    def publish(self, output: LineOutput) -> None:
        """Deliver one output, connecting first where needed; raises ConnectorError."""

    def close(self) -> None:  # noqa: B027 - a connector without resources has nothing to close
        """Let go of the controller."""
