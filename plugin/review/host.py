"""What the pages and the API are given of the host: questions to ask and one way to write (hop 11)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from plugin.blobs import Blobs
from plugin.connectors.base import LineState
from plugin.control import ControlServer
from plugin.errors import LineError
from plugin.feed import Feed
from plugin.finder import Finder
from plugin.ledger import LedgerReader
from plugin.lines import Asked
from plugin.review.archive import Exports
from plugin.review.holds import Holds
from plugin.review.signin import SignIn, Viewer
from plugin.review.slips import Quality
from plugin.review.stream import Streams
from plugin.reviews import Decision
from plugin.store import Store, is_blind

Value = TypeVar("Value")
DESK_S = 5.0
MOST_WAITING = 200
"""So far is counted on every page what waits, so that a page takes no longer where more do; above it says 199+."""

TERMINAL_HEADER = "x-flawline-terminal"


class Write(Protocol):
    """Runs a job on the store's own thread and returns its value."""

    def __call__(self, job: Callable[[Store], Value], timeout_s: float = 5.0) -> Value: ...


@dataclass(frozen=True)
class Asking:
    """How people ask edges: the control socket, the edges that are known, and what proves the host's own terminal."""

    server: ControlServer
    edges: Callable[[], list[str]]
    line_of: Callable[[str], str]
    token: str


@dataclass(frozen=True)
class LineDesk:
    """The lines, as people see to them: their ids, why one is not inspected, how it stands, a way to ask for more."""

    ids: tuple[str, ...]
    trouble: Callable[[str], str | None]
    state: Callable[[str], LineState]
    ask: Callable[..., Future[dict[str, Any]]]

    def do(self, line: str, what: Asked, who: str, **values: Any) -> dict[str, Any]:
        """Ask and wait until the ledger has it. Raises LineError, or TimeoutError: it is then never done."""
        order = self.ask(line, what, who, **values)
        try:
            return order.result(DESK_S)
        except TimeoutError:
            if order.cancel():
                raise
        try:
            return order.result(DESK_S)  # it was begun: its end is near, and it must not be denied
        except TimeoutError as error:
            raise LineError(
                "the ledger's disk does not answer, and whether this was done is not known yet: look at the line's "
                "journal before it is asked for again"
            ) from error


@dataclass(frozen=True)
class Host:
    """The store's and the ledger's readers, the pictures, the writer, how the host fares, who may come in.

    Without ``sign_in`` only this machine reaches the pages. ``names`` are those that browsers may call the host by.
    """

    reader: Finder
    ledger: LedgerReader
    blobs: Blobs
    write: Write
    health: Callable[[], dict[str, Any]]
    line_of: Callable[[str], str]
    feed: Feed
    streams: Streams
    metrics: Callable[[], bytes]
    sign_in: SignIn | None = None
    names: tuple[str, ...] = ()
    asking: Asking | None = None
    blind_share: float = 0.0
    classes: tuple[str, ...] = ()
    holds: Holds = field(default_factory=Holds)
    exports: Exports = field(default_factory=Exports)
    quality: Quality | None = None
    line_desk: LineDesk | None = None

    def is_blind(self, part: dict[str, Any]) -> bool:
        """Whether a part is shown without what is known of it: until it is judged, or judged by a second one.

        Unsure is no judgement. Parts whose truth is known to engineers alone stay so.
        """
        if part["review"] in (None, "unsure"):
            return is_blind(part, self.blind_share, self.quality.decoy_share if self.quality else 0.0)
        return self.quality is not None and self.quality.is_sealed(part)

    def is_unseen(self, part: dict[str, Any], viewer: Viewer | None) -> bool:
        """Whether this viewer must not be told of it: engineers are, and whoever judged a part knows what they said."""
        if viewer is None or viewer.may("engineer") or not self.is_blind(part):
            return False
        return part["review"] in (None, "unsure") or part["review_by"] != viewer.name

    def decide(self, part: int, decision: Decision, inspector: str, **more: Any) -> int:
        """Hop 12: append an inspector's verdict; ``more`` as ``plugin.reviews.Said`` has it."""
        return self.write(lambda store: store.review(part, decision, inspector, **more))

    def summary(self) -> dict[str, Any]:
        """Everything that is counted, for the API and the page of counts."""
        reader = self.reader
        counts, spools = reader.counts(), reader.spools()
        return {
            "parts": counts["parts"],
            "states_of_parts": counts["states"],
            "verdicts": counts["verdicts"],
            "masters": counts["masters"],
            "kinds": counts["kinds"],
            "events": sum(counts["kinds"].values()),
            "waiting": reader.waiting(),
            "duplicates": sum(spool["duplicates"] for spool in spools),
            "holes": sum(spool["holes"] for spool in spools),
            "spools": spools,
            "gaps": len(reader.gaps()),
            "states": reader.edges(),
            "latency_ms": reader.latency_ms(),
            "line": self.ledger.counts(),
            "audit": reader.audit(),
            "false_rejects": {name: rate._asdict() for name, rate in reader.reviewed_rates().items()},
            "receiver": self.health()["receiver"],
        }
