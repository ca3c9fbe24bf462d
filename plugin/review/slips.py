"""Which parts are shown blindly to whom, and the slips by which they are, which tell nothing of them (hop 11)."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import sqlalchemy as sa

from plugin import looks
from plugin.settings import LineSettings, QualitySettings

Value = TypeVar("Value")
MAX_SLIPS = 10_000


class Slip(NamedTuple):
    """What a browser's random word stands for: a part, why it is shown, to whom."""

    part: int
    purpose: Literal["second", "known"] | None
    inspector: str


class Slips:
    """Random words for parts, so that an address tells neither number nor purpose; after a restart none is known."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Slip] = OrderedDict()
        self._lock = threading.Lock()

    def issue(self, slip: Slip) -> str:
        """A new word."""
        word = secrets.token_urlsafe(16)
        with self._lock:
            self._known[word] = slip
            while len(self._known) > MAX_SLIPS:
                self._known.popitem(last=False)
        return word

    def find(self, word: str, inspector: str) -> Slip | None:
        """What a word stands for, for whom it was issued to."""
        with self._lock:
            slip = self._known.get(word)
        return slip if slip is not None and slip.inspector == inspector else None


class Quality:
    """What the pages ask of second looks, known parts and sums: the settings, the store to read, the slips."""

    def __init__(
        self, settings: QualitySettings, lines: Sequence[LineSettings], engine: sa.Engine, named: bool
    ) -> None:
        """``named``: whether people sign in, so that there is another inspector at all."""
        self.settings = settings
        self.lines = lines
        self.named = named
        self.slips = Slips()
        self._engine = engine

    @property
    def second_share(self) -> float:
        return self.settings.second_share if self.named else 0.0

    @property
    def known_share(self) -> float:
        return self.settings.known_share if self.named else 0.0

    @property
    def decoy_share(self) -> float:
        """As many flagged parts of production are shown as blindly, so that a blind page is no sign of a look."""
        return min(1.0, self.second_share + self.known_share)

    def ask(self, question: Callable[[sa.Connection], Value]) -> Value:
        """The answer of the store, on a connection of the readers."""
        with self._engine.connect() as connection:
            return question(connection)

    def is_sealed(self, part: dict[str, Any]) -> bool:
        """Whether a judged part waits for a second opinion or is a known one."""
        return self.named and bool(self.ask(lambda connection: looks.sealed(connection, [part["id"]])))

    def may_arbitrate(self, name: str, engineer: bool) -> bool:
        return name in self.settings.arbiters if self.settings.arbiters else engineer
